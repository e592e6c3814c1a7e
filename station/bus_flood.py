"""Peers that send one message without end: libzmq keeps its frames until the last one has come.

MAXMSGSIZE bounds a single frame and no option their number, so what each TCP connection has sent
since its last whole message is bounded here, as the kernel counts it (Linux). All of it belongs to
the bus thread; only that thread closes sockets that it knows by number.
"""

import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from station.security import Audit

# The largest command is 64 KiB; what comes beyond it without being whole is no command.
ALLOWED = 1 << 20
# An idle peer's heartbeats and subscriptions, encrypted: a quarter of this.
ALLOWED_PER_S = 1024.0
MOST = 32 << 20  # however slowly; a watcher is cut off for it once in a day, and comes back
TURN = 64  # connections looked at in one call: the thread has verdicts to send
_BYTES_RECEIVED = 128  # offset of tcpi_bytes_received (u64) in Linux' struct tcp_info


@dataclass(slots=True)
class _Peer:
    address: Any  # tells whether the number still means this connection
    base: int  # bytes received when its last whole message was seen
    since: float
    whole: bool = False


class Flood:
    """Counts what connections send, and ends those that never finish a message."""

    def __init__(self, audit: Audit, now: Callable[[], float] = time.monotonic) -> None:
        self._audit, self._now = audit, now
        self._peers: dict[int, _Peer] = {}
        self.cut_off = 0

    def __len__(self) -> int:
        return len(self._peers)

    def came(self, fd: int) -> None:
        """A connection was accepted on one of the bus's sockets. That it has ended is seen at the
        next check, and its number may be another's by then."""
        found = _look(fd)
        if found is not None:
            self._peers[fd] = _Peer(found[0], found[1], self._now())

    def whole(self, fd: int) -> None:
        """A whole message of this connection was read."""
        if fd in self._peers:
            self._peers[fd].whole = True

    def check(self) -> None:
        """End connections that have sent too much since their last whole message."""
        for fd in list(self._peers)[:TURN]:
            peer = self._peers.pop(fd)
            if self._lawful(fd, peer):
                self._peers[fd] = peer  # at the end: the next call looks at others first

    def _lawful(self, fd: int, peer: _Peer) -> bool:
        """Whether it is still there and may stay."""
        found, now = _look(fd), self._now()
        if found is None or found[0] != peer.address:
            return False
        if peer.whole:
            peer.base, peer.since, peer.whole = found[1], now, False
        sent = found[1] - peer.base
        if sent <= min(MOST, ALLOWED + ALLOWED_PER_S * (now - peer.since)):
            return True
        self.cut_off += 1
        self._audit.write("endless_message", address=str(peer.address)[:100], bytes=sent)
        _end(fd)
        return False


def _look(fd: int) -> tuple[Any, int] | None:
    """(address of the peer, bytes received from it), None when it is no TCP connection."""
    try:
        there = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        info = there.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return there.getpeername(), struct.unpack_from("Q", info, _BYTES_RECEIVED)[0]
    except (OSError, struct.error):
        return None
    finally:
        there.detach()  # libzmq's own


def _end(fd: int) -> None:
    """Hang up; libzmq then closes the connection and drops what it held of the message."""
    try:
        there = socket.socket(fileno=fd)
    except OSError:
        return
    try:
        # Its close resets the connection: the sender hears of it though it never reads.
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
    finally:
        there.detach()
