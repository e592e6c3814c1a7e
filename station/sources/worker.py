"""The camera child: grabs frames, stamps them, puts them into the ring, tells the station.

Run as `python -m station.sources.worker SOCKET_FD RING_FD JSON`. It may hang in a driver for as
long as the driver likes: the station kills it. It ends by itself when the station is gone.
Messages to the station are JSON datagrams: {"frame": slot, "index": n}, {"event": kind, ...}.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from station.settings import SourceSettings
from station.sources.ring import Kind, Ring


@dataclass(frozen=True, slots=True)
class Grab:
    """One frame as grabbed. `fault`: the payload is no whole picture, and why."""

    payload: bytes | memoryview
    kind: Kind
    shape: tuple[int, int, int]
    t_ns: int
    wall_us: int
    fault: str | None = None


class Grabber(Protocol):
    """A driver: `opened` facts once, then frames for ever. Raises OSError when it loses it."""

    def open(self) -> dict[str, Any]:
        """Open the device; facts about it (fps, mismatch)."""
        ...

    def frames(self) -> Iterator[Grab]:
        """Frames as they come."""
        ...


def stamp() -> tuple[int, int]:
    """(monotonic ns, wall us) of now: taken right after a grab, never before it."""
    return time.monotonic_ns(), time.time_ns() // 1000


def grabber(spec: str, settings: SourceSettings, restore: dict[str, float]) -> Grabber:
    """The driver that `spec` needs."""
    if spec.startswith(("http://", "https://")):
        from station.sources.mjpeg import MjpegGrabber

        return MjpegGrabber(spec, settings)
    from station.sources.cvcam import CvGrabber

    return CvGrabber(spec, settings, restore)


class Link:
    """The way to the station: never blocks; a full socket means the station is busy, so drop."""

    def __init__(self, sock: socket.socket, ring: Ring) -> None:
        self.sock = sock
        self.ring = ring
        self.index = 0
        sock.setblocking(False)

    def send(self, message: dict[str, Any]) -> None:
        """One datagram; dropped when the station does not keep up."""
        try:
            self.sock.send(json.dumps(message).encode())
        except BlockingIOError:
            return
        except OSError:
            os._exit(0)  # the station is gone

    def put(self, grab: Grab) -> None:
        """Frame into the ring, then word of it; a frame that does not fit is told as an event."""
        message: dict[str, Any] = {"index": self.index}
        try:
            times = (grab.t_ns, grab.wall_us)
            message["frame"] = self.ring.write(
                self.index, grab.payload, grab.kind, grab.shape, times=times
            )
        except ValueError as error:
            message |= {"event": "too_large", "text": f"{error}; raise source.ring_bytes"}
        if grab.fault:
            message["fault"] = grab.fault
        self.send(message)
        self.index += 1


def _leave_with_station(watch: socket.socket) -> None:
    """Blocks until the station's end of the socket closes, then leaves whatever is hanging."""
    while True:
        try:
            if not watch.recv(16):
                break
        except OSError:
            break
    os._exit(0)


def main(argv: list[str]) -> int:
    """Exit 0 when told to stop, 4 when the camera cannot be opened or is lost."""
    sock = socket.socket(fileno=int(argv[1]))
    config = json.loads(argv[3])
    ring = Ring(int(argv[2]), config["slots"], config["slot_bytes"])
    watch = sock.dup()
    watch_blocking = socket.socket(fileno=watch.detach())
    link = Link(sock, ring)
    poller = threading.Thread(target=_wait_readable, args=(watch_blocking,), daemon=True)
    poller.start()
    settings = SourceSettings.model_validate(config["settings"])
    try:
        driver = grabber(config["spec"], settings, config["restore"])
        link.send({"event": "opened", **driver.open()})
        for grab in driver.frames():
            link.put(grab)
    except (OSError, ValueError) as error:
        link.send({"event": "lost", "text": str(error) or type(error).__name__})
        return 4
    link.send({"event": "lost", "text": "the camera ended its stream"})
    return 4


def _wait_readable(watch: socket.socket) -> None:
    import select

    select.select([watch], [], [])  # the station never sends: readable means closed
    _leave_with_station(watch)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
