"""The bus (ISP/1): PUB for watchers, ROUTER for the accountable path, one owner thread.

The bus listens to the ledger itself: each committed row is published and, when it is the RESULT of
a TRIGGER, answered to whoever asked, in seq order and byte for byte. The daemon publishes nothing
that is stored; status goes out by itself every 200 ms.
"""

import base64
import logging
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import zmq

from station.bus_desk import Desk, stored_last
from station.bus_flood import Flood
from station.bus_sessions import Route
from station.bus_sockets import bind, check_exposure, make_socket
from station.bus_types import AdminReply, BusConfig, BusHandler, TriggerReply
from station.ledger import Ledger
from station.ledger_types import Committed
from station.schema import Status, StatusFacts, Stream, Thumb, body, topic
from station.security import Access, Audit, Doorbell, Guard

__all__ = ["AdminReply", "Bus", "BusConfig", "BusHandler", "TriggerReply"]

log = logging.getLogger("station.bus")

INBOX_TURN = 32  # requests per turn before status and outbox are looked at again
EXPIRE_S = 60.0
FLOOD_S = 0.1


class Bus:
    """Binds both sockets in `start()`: InUseError for a taken port, ConfigError for an open bind
    without keys. `pub_address` and `ctl_address` are the real ones from then on."""

    def __init__(self, config: BusConfig, ledger: Ledger, handler: BusHandler) -> None:
        check_exposure(config)
        self.config, self._ledger, self._handler = config, ledger, handler
        self._access = None if config.keys is None else Access(config.keys)
        default = None if config.keys is None else config.keys / "audit.jsonl"
        self.audit = Audit(config.audit or default)
        self.pub_address, self.ctl_address = config.pub, config.ctl
        self._outbox: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = sockets.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._published = stored_last(ledger)
        self._counts = {Stream.STATUS: 0, Stream.THUMB: 0}
        self.unsent = 0  # answers to peers that had gone, and rows no socket would take
        self._stopping = threading.Event()
        self._tick_ns = time.monotonic_ns()

    def start(self) -> None:
        """Bind and run the owner thread; the first status goes out at once."""
        self._context = zmq.Context()
        self._guard: Guard | None = None
        self._doors: dict[zmq.Socket, Doorbell] = {}
        self.flood = Flood(self.audit)
        self._poller = zmq.Poller()
        if self._access is not None:
            self._guard = Guard(self._context, self._access, self.audit)
            self._guard.start()
        self._pub, self._ctl = self._make(zmq.PUB), self._make(zmq.ROUTER)
        try:
            self.pub_address = bind(self._pub, self.config.pub)
            self.ctl_address = bind(self._ctl, self.config.ctl)
        except BaseException:
            self._close()
            raise
        self._desk = Desk(self, self._ledger, self._handler, self._access, self.audit)
        self._ledger.add_listener(self._heard)
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)
        self._thread.start()

    @property
    def tick_ns(self) -> int:
        """Monotonic time of the owner thread's last loop."""
        return self._tick_ns

    @property
    def alive(self) -> bool:
        """Whether the owner thread runs."""
        return self._thread.is_alive()

    def publish_thumb(self, jpeg: bytes, w: int, h: int, trigger_id: str | None = None) -> None:
        """Publish a small preview (at most 11 kB of JPEG, ValueError above); from any thread."""
        text = base64.b64encode(jpeg).decode("ascii")
        if len(text) > 15_000:
            raise ValueError(f"a thumb of {len(jpeg)} bytes is above the limit of 11 kB")
        self.post(partial(self._send_thumb, text, w, h, trigger_id))

    def reload_keys(self) -> int:
        """Re-read the client keys (SIGHUP); how many are valid now. Revoked ones are cut off:
        commands are denied at once and the PUB socket is bound anew without them."""
        if self._access is None:
            return 0
        gone = self._access.reload()
        self.audit.write("keys_reloaded", valid=len(self._access), gone=len(gone))
        if gone:
            self.post(partial(self._cut_off, gone))
        return len(self._access)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Send what waits (LINGER 200 ms), close the sockets, end the thread."""
        self._stopping.set()
        self._wake()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("the bus thread did not end within %s s", timeout_s)

    # -- for the desk (Floor) ------------------------------------------------------------------

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` in the bus thread; from any thread, in order."""
        self._outbox.append(action)
        self._wake()

    def publish_status(self) -> None:
        """Send a status now and not only at its turn (READY has changed); from any thread."""
        self.post(lambda: self._publish(Stream.STATUS, self.status_body()))

    def send(self, route: Route, frames: list[bytes]) -> None:
        """Answer a peer without waiting; one that is gone or stuck is counted, not waited for."""
        try:
            self._ctl.send_multipart([*route, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self.unsent += 1
            log.debug("an answer could not be sent: %s", error)

    def status_body(self) -> bytes:
        """The status as of now; a daemon that cannot tell its status is not ready."""
        try:
            facts = self._handler.status()
        except Exception:
            log.exception("the daemon could not tell its status")
            facts = StatusFacts(ready=False, busy=False, mode="unknown", faults=("status",), hb=0)
        faults = [] if self._ledger.healthy else [f"ledger: {self._ledger.fault}"]
        # Cut so that the worst status still fits a body: no status at all would tell less.
        faults = [fault[:200] for fault in (*faults, *facts.faults)][:12]
        self._counts[Stream.STATUS] += 1
        fields = facts.model_dump() | {
            "ready": facts.ready and self._ledger.healthy,
            "faults": tuple(faults),
        }
        return body(
            Status(
                **fields,
                line=self.config.line,
                station=self.config.station,
                epoch=self._ledger.epoch,
                seq=self._counts[Stream.STATUS],
                t_us=time.time_ns() // 1000,
                last_seq=self._published,
                cursors=dict(list(self._ledger.cursors.items())[:32]),
            )
        )

    def published(self) -> dict[str, int]:
        """The newest published seq of each stored stream."""
        return dict(self._published)

    # -- the owner thread ----------------------------------------------------------------------

    def _heard(self, row: Committed) -> None:
        self.post(partial(self._send_row, row))

    def _send_row(self, row: Committed) -> None:
        """The answer first, then the watchers."""
        self._desk.committed(row)
        self._published[str(row.stream)] = row.seq
        self._publish(row.stream, row.body)

    def _publish(self, stream: Stream, data: bytes) -> None:
        name = topic(self.config.line, self.config.station, stream)
        try:
            self._pub.send_multipart([name, data], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self.unsent += 1
            log.error("a body could not be published: %s", error)

    def _send_thumb(self, jpeg: str, w: int, h: int, trigger_id: str | None) -> None:
        self._counts[Stream.THUMB] += 1
        thumb = Thumb(
            line=self.config.line,
            station=self.config.station,
            epoch=self._ledger.epoch,
            seq=self._counts[Stream.THUMB],
            trigger_id=trigger_id,
            w=w,
            h=h,
            jpeg=jpeg,
        )
        self._publish(Stream.THUMB, body(thumb))

    def _run(self) -> None:
        self._poller.register(self._ctl, zmq.POLLIN)
        self._poller.register(self._wake_out.fileno(), zmq.POLLIN)
        status_at, expire_at = time.monotonic(), time.monotonic() + EXPIRE_S
        flood_at = status_at
        try:
            while True:
                wait_ms = max(0, int((status_at - time.monotonic()) * 1000))
                self._poller.poll(min(wait_ms, 100))
                self._tick_ns = time.monotonic_ns()
                self._drain_wake()
                self._flush()
                self._receive()
                for door in self._doors.values():
                    door.report()
                now = time.monotonic()
                if now >= flood_at:
                    flood_at = now + FLOOD_S
                    self._safely(self.flood.check)
                if now >= status_at:
                    status_at = max(status_at + self.config.status_ms / 1000, now)
                    self._safely(lambda: self._publish(Stream.STATUS, self.status_body()))
                if now >= expire_at:
                    expire_at = now + EXPIRE_S
                    self._desk.sessions.expire()
                if self._stopping.is_set() and not self._outbox:
                    break
        finally:
            self._desk.stop()
            self._close()

    def _receive(self) -> None:
        for _ in range(INBOX_TURN):
            try:
                frames = self._ctl.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:
                return
            self._safely(partial(self._request, frames))
            self._flush()

    def _request(self, frames: list[zmq.Frame]) -> None:
        """One request: [route] ([empty]) [JSON]; anything else is dropped and counted."""
        self.flood.whole(_connection(frames[-1]))
        parts = [frame.bytes for frame in frames]
        if len(parts) not in (2, 3) or (len(parts) == 3 and parts[1] != b""):
            self.audit.write("malformed", frames=len(parts))
            return
        client = str(frames[-1].get("User-Id")) if self._access is not None else ""
        self._desk.request(tuple(parts[:-1]), client, parts[-1])

    def _flush(self) -> None:
        while self._outbox:
            self._safely(self._outbox.popleft())

    def _safely(self, action: Callable[[], None]) -> None:
        """One bad message must not end the thread that all verdicts go through."""
        try:
            action()
        except Exception:
            log.exception("the bus met an unexpected error and goes on")

    def _cut_off(self, gone: set[str]) -> None:
        for public in gone:
            self._desk.sessions.drop_client(public)
        self._pub.unbind(self.pub_address)
        self._discard(self._pub)
        self._pub = self._make(zmq.PUB)
        for _ in range(50):  # the old listener closes in another thread, within milliseconds
            try:
                self._pub.bind(self.pub_address)
                return
            except zmq.ZMQError:
                time.sleep(0.002)
        log.error("the bus could not bind %s again after cutting off a key", self.pub_address)

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"x")
        except OSError:
            return  # full: it will wake anyway; closed: the bus has ended

    def _drain_wake(self) -> None:
        try:
            while len(self._wake_out.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def _make(self, kind: int) -> zmq.Socket:
        """An unbound socket whose failed handshakes are recorded."""
        made = make_socket(self._context, kind, self._access)
        door = self._doors[made] = Doorbell(self._context, made, self.audit, self.flood.came)
        self._poller.register(door.socket, zmq.POLLIN)
        return made

    def _discard(self, made: zmq.Socket) -> None:
        door = self._doors.pop(made)
        self._poller.unregister(door.socket)
        door.close()
        made.close()

    def _close(self) -> None:
        """The sockets first (with their LINGER), then the guard."""
        for made in (self._pub, self._ctl):
            self._discard(made)
        if self._guard is not None:
            self._guard.stop()
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()


def _connection(frame: zmq.Frame) -> int:
    """The file descriptor a frame came from; -1 where there is none (inproc)."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1
