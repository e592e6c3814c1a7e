"""Who may come in: CURVE authentication over ZAP, roles, and the audit log.

A CURVE server without a ZAP handler accepts any key, so the guard runs before the sockets bind,
every socket names its ZAP domain and enforces it, and the decision is a function that cannot raise
out of its loop. When the guard is dead nobody gets in (libzmq refuses without an answer).
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message
from zmq.utils.z85 import encode

from engines.errors import ConfigError
from station.keys import ClientKey, Role, load_client, station_key
from station.schema_ctl import AnyCommand

log = logging.getLogger("station.security")

DOMAIN = b"isp1"
ZAP = "inproc://zeromq.zap.01"
LOCAL = "local"  # the one who connects where no keys are used: loopback, or declared insecure

_ANYONE = {"HELLO", "FETCH", "GET", "STATUS", "PING"}
ALLOWED: dict[str, frozenset[str]] = {
    Role.OBSERVER: frozenset(_ANYONE | {"LATEST"}),
    Role.GATEWAY: frozenset(_ANYONE | {"TRIGGER", "ACK"}),
    Role.ADMIN: frozenset(_ANYONE | {"LATEST", "RECIPE", "MODE", "RESET"}),
    LOCAL: frozenset(_ANYONE | {"LATEST", "TRIGGER", "ACK", "RECIPE", "MODE", "RESET"}),
}


def may(role: str, command: AnyCommand) -> bool:
    """Whether a role may give this command; an unknown role may nothing."""
    return command.cmd in ALLOWED.get(role, frozenset())


class Access:
    """The valid client keys of a folder, re-read on demand. Safe to read from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.station = station_key(folder)
        self._by_public: dict[str, ClientKey] = {}
        self.reload()

    def reload(self) -> set[str]:
        """Read the folder again; the public keys that are no longer valid.

        A damaged file counts as no key: one bad file must not keep a revoked key alive.
        """
        found: dict[str, ClientKey] = {}
        for path in sorted((self.folder / "clients").glob("*.json")):
            try:
                client = load_client(path)
            except ConfigError as error:
                log.error("%s", error)
                continue
            if not client.revoked:
                found[client.public] = client
        gone = set(self._by_public) - set(found)
        self._by_public = found
        return gone

    def __len__(self) -> int:
        return len(self._by_public)

    def client(self, public: str) -> ClientKey | None:
        """The client of a public key (Z85), None if it has no right to be here."""
        return self._by_public.get(public)


class Audit:
    """One JSON line per refusal or key event, bounded in rate and size: strangers cannot fill
    the disk. Rotated once at 8 MB (`.1` is overwritten). Safe from any thread."""

    MAX_BYTES = 8 << 20
    PER_SECOND = 20

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._second, self._count, self._hidden = 0, 0, 0
        self.total = 0

    def write(self, what: str, **facts: object) -> None:
        """Record one event; more than 20 in a second are counted, not written."""
        with self._lock:
            self.total += 1
            now = int(time.monotonic())
            if now != self._second:
                facts = facts | ({"hidden_before": self._hidden} if self._hidden else {})
                self._second, self._count, self._hidden = now, 0, 0
            self._count += 1
            if self._count > self.PER_SECOND:
                self._hidden += 1
                return
            log.warning("%s %s", what, facts)
            self._append({"t_us": time.time_ns() // 1000, "what": what, **facts})

    def _append(self, entry: dict) -> None:
        if self._path is None:
            return
        try:
            if self._path.exists() and self._path.stat().st_size > self.MAX_BYTES:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            with self._path.open("a") as stream:
                stream.write(json.dumps(entry, default=str) + "\n")
        except OSError as error:
            log.error("the audit log %s cannot be written: %s", self._path, error)


def zap_answer(frames: Sequence[bytes], access: Access, audit: Audit) -> list[bytes]:
    """The ZAP reply (RFC 27) to a request; anything but a known key in our domain is refused.

    [version, request id, domain, address, identity, mechanism, credentials...] ->
    [version, request id, status, text, user id, metadata]. The user id is the public key.
    """
    request_id = frames[1] if len(frames) > 1 else b""
    refused = [b"1.0", request_id, b"400", b"refused", b"", b""]
    address = frames[3].decode("ascii", "replace")[:64] if len(frames) > 3 else ""
    if len(frames) != 7 or frames[0] != b"1.0" or frames[2] != DOMAIN or frames[5] != b"CURVE":
        audit.write("refused", address=address, why="not CURVE in our domain")
        return refused
    public = encode(frames[6]).decode("ascii") if len(frames[6]) == 32 else ""
    client = access.client(public)
    if client is None:
        audit.write("refused", address=address, why="unknown key", public=public)
        return refused
    audit.write("admitted", address=address, client=client.name, role=str(client.role))
    return [b"1.0", request_id, b"200", b"OK", public.encode("ascii"), b""]


class Guard:
    """The thread that answers ZAP. Make and start it before the sockets bind."""

    def __init__(self, context: zmq.Context, access: Access, audit: Audit) -> None:
        self._access, self._audit = access, audit
        self._zap = context.socket(zmq.ROUTER)
        self._zap.linger = 0
        self._zap.bind(ZAP)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bus-guard", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; from then on nobody new gets in."""
        self._stop.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._zap.poll(100):
                    self._answer()
            except Exception:  # the one thread that must not die of anything a stranger sends
                log.exception("the bus guard met an unexpected error")
                time.sleep(0.01)
        self._zap.close(0)

    def _answer(self) -> None:
        frames = self._zap.recv_multipart(zmq.NOBLOCK)
        cut = frames.index(b"") + 1 if b"" in frames else len(frames)
        answer = zap_answer(frames[cut:], self._access, self._audit)
        self._zap.send_multipart([*frames[:cut], *answer], zmq.NOBLOCK)


class Doorbell:
    """Failed handshakes of one socket, for the audit log; used by the socket's own thread.

    `accepted` is told the file descriptor of each new connection.

    libzmq's I/O thread waits when nobody takes its events, and everything waits for the I/O
    thread: hence an unbounded queue, read by the thread that owns the socket, and closed first.
    """

    TURN = 200
    EVENTS = (
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    )

    def __init__(
        self,
        context: zmq.Context,
        watched: zmq.Socket,
        audit: Audit,
        accepted: Callable[[int], None],
    ) -> None:
        self._watched, self._audit, self._accepted = watched, audit, accepted
        address = f"inproc://doorbell-{secrets.token_hex(8)}"
        watched.monitor(address, self.EVENTS | zmq.EVENT_ACCEPTED)
        self.socket = context.socket(zmq.PAIR)
        self.socket.linger = 0
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(address)

    def report(self) -> None:
        """Record what has rung, a bounded number at a time."""
        for _ in range(self.TURN):
            try:
                event = recv_monitor_message(self.socket, zmq.NOBLOCK)
            except zmq.Again:
                return
            kind, value = event["event"], int(event["value"])
            if kind == zmq.EVENT_ACCEPTED:
                self._accepted(value)
            else:
                name = str(zmq.Event(kind).name).lower()
                self._audit.write("handshake_failed", event=name, detail=value)

    def close(self) -> None:
        """Stop watching; before the watched socket closes."""
        self._watched.monitor(None, 0)
        self.socket.close(0)
