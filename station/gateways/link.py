"""A gateway's link to its station: one thread that speaks ISP/1 and owns both sockets.

The thread keeps a session, watches the heartbeats, sends triggers and hands back what arrives for
them, paired by trigger id and never by "latest". Losing the session or three heartbeats is told
as Health(link=False); nothing that was asked before such a loss is ever answered after it.
"""

import itertools
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import zmq

from station.gateways.handshake import Health
from station.gateways.link_io import Beat, Sockets, StationAddress, read_answer, read_status, send
from station.keys import load_identity
from station.schema import STORED, Result
from station.schema_ctl import Kind, Reply

HB_MISSED = 3  # three missed heartbeats = NOT READY
HELLO_EVERY_S = 0.5
# Keeps the session from expiring over a long break, and notices within a second that a station
# which came back has forgotten it.
PING_EVERY_S = 1.0
POLL_MS = 20  # the gateway's own tick; a trigger wakes the poller at once
# A part the station has accepted is asked for again this often (same rid: answered again, never
# done again), because its verdict is lost with the connection if that breaks and is made anew.
# One it has not accepted is never repeated: it would be inspected late, as its neighbour.
REPEAT_EVERY_S = 0.2
# A gateway acts on the present alone: it acknowledges whatever is stored, or nobody does and the
# station may never delete an old row.
ACK_EVERY_S = 60.0
FORGET_S = 2.0  # after its deadline nobody waits for a part any more (bridge.GRACE_S is shorter)
REFUSALS = frozenset(
    {Kind.BUSY, Kind.NOT_READY, Kind.DUPLICATE, Kind.DENIED, Kind.ERROR, Kind.LIMITED}
)


class LinkListener(Protocol):
    """Called in the link's thread; each call must return within a millisecond."""

    def on_health(self, health: Health) -> None:
        """The station came, went, or changed READY."""
        ...

    def on_result(self, result: Result) -> None:
        """The verdict on a part asked for in this session."""
        ...

    def on_refusal(self, trigger_id: str, kind: Kind) -> None:
        """A part asked for was not accepted: busy, not_ready, duplicate, denied ..."""
        ...

    def on_tick(self) -> None:
        """At least every 20 ms, and only while the link's thread lives."""
        ...


@dataclass(frozen=True, slots=True)
class _Order:
    trigger_id: str
    part_id: str
    deadline_ms: int


@dataclass(slots=True)
class _Asked:
    """A trigger that was sent: its command, and when to ask again once it was accepted."""

    command: dict[str, Any]
    until: float
    repeat_at: float | None = None

    @property
    def trigger_id(self) -> str:
        return str(self.command["trigger_id"])


class StationLink:
    """Start it, then `trigger()` from any thread. `failed` holds what ended the thread, if so.

    ConfigError when the address names a key file that cannot be read.
    """

    def __init__(
        self,
        address: StationAddress,
        listener: LinkListener,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self._identity = None if address.keys is None else load_identity(address.keys)
        self.failed: BaseException | None = None
        self._listener = listener
        self._clock = clock
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._context = zmq.Context()
        self._wake_address = f"inproc://gateway-{secrets.token_hex(8)}"
        self._wake_lock = threading.Lock()
        self._waker = self._context.socket(zmq.PAIR)
        self._waker.bind(self._wake_address)
        self._stop = threading.Event()
        self._rid = itertools.count(1)
        self._session: str | None = None
        self._epoch: str | None = None
        self._hello_at = -HELLO_EVERY_S
        self._hello_rid = ""
        self._ping_at = 0.0
        self._ack_at = -ACK_EVERY_S
        self._beat = Beat()
        self._open: dict[str, _Asked] = {}  # by rid, of this session
        self._health = Health()
        self._thread = threading.Thread(target=self._run, name="station-link", daemon=True)

    def start(self) -> None:
        """Connect in the background; the station may come later."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def trigger(self, trigger_id: str, part_id: str, deadline_ms: int) -> None:
        """Ask for a part; the answer comes to the listener, or never (bound your wait)."""
        self._orders.put(_Order(trigger_id, part_id, deadline_ms))
        with self._wake_lock:
            self._waker.send(b"", zmq.NOBLOCK)

    def stop(self) -> None:
        """End the thread and close the sockets."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        self._waker.close(0)
        self._context.term()

    def _run(self) -> None:
        sockets: Sockets | None = None
        try:
            sockets = Sockets(self._context, self.address, self._wake_address, self._identity)
            while not self._stop.is_set():
                self._turn(sockets)
        except BaseException as error:
            # The listener's heartbeat stops with on_tick, so whoever reads it rejects; the
            # program around this thread sees `failed` and ends.
            self.failed = error
        finally:
            self._lost()
            if sockets is not None:
                sockets.close()

    def _turn(self, sockets: Sockets) -> None:
        for name in sockets.wait(POLL_MS):
            if name == "wake":
                sockets.wake.recv()
            elif name == "pub":
                self._on_pub(sockets.sub.recv_multipart())
            else:
                self._on_ctl(sockets.ctl.recv_multipart())
        now = self._clock()
        if self._session is None and now - self._hello_at >= HELLO_EVERY_S:
            self._hello(sockets, now)
        elif self._session is not None and now - self._ping_at >= PING_EVERY_S:
            self._ping_at = now
            send(sockets.ctl, cmd="PING", rid=f"p{next(self._rid)}", session=self._session)
        if self._session is not None and now - self._ack_at >= ACK_EVERY_S:
            self._acknowledge(sockets, now)
        self._send_orders(sockets)
        self._repeat(sockets, now)
        self._tell_health(now)
        self._listener.on_tick()

    def _hello(self, sockets: Sockets, now: float) -> None:
        self._hello_at = now
        self._hello_rid = f"h{next(self._rid)}"
        send(sockets.ctl, cmd="HELLO", rid=self._hello_rid, client=self.address.client)

    def _acknowledge(self, sockets: Sockets, now: float) -> None:
        """Move this gateway's cursors to the newest rows that a status of this session told."""
        status = self._beat.status
        if status is None:
            return
        self._ack_at = now
        for stream in STORED:
            if seq := status.last_seq.get(stream):
                ids = {"rid": f"a{next(self._rid)}", "session": self._session}
                send(sockets.ctl, cmd="ACK", **ids, stream=str(stream), upto_seq=seq)

    def _send_orders(self, sockets: Sockets) -> None:
        while True:
            try:
                order = self._orders.get_nowait()
            except Empty:
                return
            rid = f"t{next(self._rid)}"
            command = {"cmd": "TRIGGER", "rid": rid, "session": self._session, **asdict(order)}
            if self._session is None or not send(sockets.ctl, **command):
                self._listener.on_refusal(order.trigger_id, Kind.NOT_READY)
            else:
                until = self._clock() + order.deadline_ms / 1000 + FORGET_S
                self._open[rid] = _Asked(command, until)

    def _repeat(self, sockets: Sockets, now: float) -> None:
        """Ask again for what was accepted: the connection may have been lost and made anew."""
        for rid, asked in list(self._open.items()):
            if now > asked.until:
                del self._open[rid]
            elif asked.repeat_at is not None and now >= asked.repeat_at:
                asked.repeat_at = now + REPEAT_EVERY_S
                send(sockets.ctl, **asked.command)

    def _on_ctl(self, frames: list[bytes]) -> None:
        answer = read_answer(frames)
        if answer is None or (answer.line, answer.station) != self._who:
            return
        if isinstance(answer, Result):
            self._on_result(answer)
        else:
            self._on_reply(answer)

    @property
    def _who(self) -> tuple[str, str]:
        return self.address.line, self.address.station

    def _on_result(self, result: Result) -> None:
        rid = next((r for r, a in self._open.items() if a.trigger_id == result.trigger_id), None)
        if rid is None or result.epoch != self._epoch:
            return  # of an earlier session, or of another ledger: never act on it
        del self._open[rid]
        self._listener.on_result(result)

    def _on_reply(self, reply: Reply) -> None:
        if reply.reply is Kind.HELLO and reply.rid == self._hello_rid:
            self._session, self._epoch = reply.session, reply.epoch
            self._beat = Beat(limit_s=HB_MISSED * (reply.hb_ms or 200) / 1000)
        elif reply.reply is Kind.HELLO_FIRST:
            self._lost()
        elif reply.reply is Kind.ACCEPTED and reply.rid in self._open:
            self._open[reply.rid].repeat_at = self._clock() + REPEAT_EVERY_S
        elif reply.reply in REFUSALS and reply.rid in self._open:
            self._listener.on_refusal(self._open.pop(reply.rid).trigger_id, reply.reply)

    def _on_pub(self, frames: list[bytes]) -> None:
        status = read_status(frames)
        if status is None or (status.line, status.station) != self._who:
            return
        if self._session is not None and status.epoch != self._epoch:
            self._lost()
        self._beat.heard(status, self._clock())

    def _tell_health(self, now: float) -> None:
        alive = self._session is not None and self._beat.moves(now)
        status = self._beat.status
        if self._health.link and not alive:
            self._lost()
        elif alive and status is not None:
            self._tell(Health(True, status.ready, bool(status.faults)))

    def _lost(self) -> None:
        """Forget the session and all that was asked in it; HELLO again."""
        self._session = None
        self._open.clear()
        self._tell(Health())

    def _tell(self, health: Health) -> None:
        if health != self._health:
            self._health = health
            self._listener.on_health(health)
