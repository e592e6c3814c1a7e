"""The parts of a gateway's link: address, sockets, heartbeat and the reading of answers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from station.address import check_address, connect
from station.client import apply_identity
from station.keys import ClientIdentity
from station.schema import Result, Status, Stream, topic
from station.schema_ctl import Reply


@dataclass(frozen=True, slots=True)
class StationAddress:
    """Where a station is and who it must be: answers of any other are not listened to.

    ConfigError when `ctl` or `pub` is no address.
    """

    ctl: str
    pub: str
    line: str
    station: str
    keys: Path | None = None
    client: str = "gateway"

    def __post_init__(self) -> None:
        check_address(self.ctl)
        check_address(self.pub)


class Beat:
    """Whether the station's counter `hb` moved within the limit (seconds, monotonic)."""

    def __init__(self, limit_s: float = 0.6) -> None:
        self.limit_s = limit_s
        self.status: Status | None = None
        self._moved: float | None = None

    def heard(self, status: Status, now: float) -> None:
        """A status arrived. The first one alone proves nothing: the counter must move."""
        if self.status is not None and status.hb != self.status.hb:
            self._moved = now
        self.status = status

    def moves(self, now: float) -> bool:
        """True while the last movement is younger than the limit."""
        return self._moved is not None and now - self._moved <= self.limit_s


class Sockets:
    """DEALER to ctl, SUB to the status of this one station, PAIR to be woken."""

    def __init__(
        self,
        context: zmq.Context,
        address: StationAddress,
        wake: str,
        identity: ClientIdentity | None,
    ) -> None:
        self._open: list[zmq.Socket] = []
        try:
            self.ctl, self.sub, self.wake = (
                self._made(context, kind) for kind in (zmq.DEALER, zmq.SUB, zmq.PAIR)
            )
            for socket in (self.ctl, self.sub):
                socket.setsockopt(zmq.LINGER, 0)
                socket.setsockopt(zmq.RECONNECT_IVL, 50)
                socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
                socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
                socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1500)
                # libzmq 4.3.5 aborts the process when a full queue meets a heartbeat's timeout.
                socket.setsockopt(zmq.RCVHWM, 0)
                apply_identity(socket, identity)
            # Triggers wait for nobody: without a connection they are refused, not queued for later.
            self.ctl.setsockopt(zmq.IMMEDIATE, 1)
            self.ctl.setsockopt(zmq.SNDHWM, 64)
            self.sub.subscribe(topic(address.line, address.station, Stream.STATUS))
            connect(self.ctl, address.ctl)
            connect(self.sub, address.pub)
            self.wake.connect(wake)
            self._poller = zmq.Poller()
            self._names = {self.ctl: "ctl", self.sub: "pub", self.wake: "wake"}
            for socket in self._names:
                self._poller.register(socket, zmq.POLLIN)
        except BaseException:
            self.close()  # an open socket would hold up the context's end for ever
            raise

    def _made(self, context: zmq.Context, kind: int) -> zmq.Socket:
        self._open.append(context.socket(kind))
        return self._open[-1]

    def wait(self, timeout_ms: int) -> list[str]:
        """The sockets that have something to read."""
        return [self._names[socket] for socket, _ in self._poller.poll(timeout_ms)]

    def close(self) -> None:
        """Close all that were opened."""
        for socket in self._open:
            socket.close(0)


def send(socket: zmq.Socket, **command: Any) -> bool:
    """Send a command as JSON; False when nobody is connected."""
    try:
        socket.send(json.dumps(command).encode(), zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


def read_answer(frames: list[bytes]) -> Reply | Result | None:
    """A reply, or a result: the one frame whose body says `stream: result`. None if neither."""
    data = frames[-1] if len(frames) <= 2 else frames[1]  # REQ-style empty delimiter allowed
    try:
        if "stream" in (raw := json.loads(data)) and "reply" not in raw:
            return Result.model_validate(raw)
        return Reply.model_validate(raw)
    except (ValueError, TypeError):
        return None


def read_status(frames: list[bytes]) -> Status | None:
    """The status in a publication; None when it is none."""
    try:
        return Status.model_validate_json(frames[-1])
    except ValueError:
        return None
