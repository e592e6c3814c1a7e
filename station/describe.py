"""The describer process seen from the daemon: submit, get called back, never wait.

The child (`station.describe_worker`) is a program of its own at idle priority; killing it at any
moment costs at most the sentence it was saying, which is asked once more. Used by `station.daemon`:

    service = DescribeService(settings, on_description, on_event)
    service.start()
    if service.submit(request): ...        # False: the queue is full; counted and named
    service.stats()                        # for status and /metrics
    service.stop()
"""

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from engines.describer import DescribeRequest, DescriberSettings, Description, slim
from station.describe_child import Child, ChildGone, start_child

# Restart delays after a crash: quick once, then slower, never giving up.
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
# The child answers by itself at the deadline (with the template); this long after it, it hangs.
GRACE_S = 10.0
# Loading a 7B model from a slow disk takes a while; longer than this is a hang.
STARTUP_S = 120.0
DROPS_EVERY_S = 1.0  # a burst is told in one event a second, not in one event a part
DROPS_TEXT = 1500  # characters of part ids in one event (a body is bounded)


@dataclass(frozen=True)
class DescribeStats:
    """Counters since start. `source` is "starting", "llm" or "template"; `model` its name."""

    source: str
    model: str
    reason: str | None
    queued: int
    submitted: int
    described: int
    dropped: int
    restarts: int
    contradictions: int
    tokens_per_s: float


@dataclass
class _Job:
    request: DescribeRequest
    submitted: float
    tries: int = 0


@dataclass
class _State:
    """What the service thread owns; counters are read by others (ints and str: no lock needed)."""

    source: str = "starting"
    model: str = ""
    reason: str | None = None
    submitted: int = 0
    described: int = 0
    dropped: int = 0
    restarts: int = 0
    contradictions: int = 0
    tokens_per_s: float = 0.0
    flying: list[_Job] = field(default_factory=list)
    overdue: float = 0.0  # when the child counts as hung
    busy: bool = False  # a batch is with the child (also after its last answer, until "idle")
    crashes: int = 0  # in a row
    next_start: float = 0.0


class DescribeService:
    """Owner of the describer child, a bounded queue and one thread. All methods return at once.

    `on_description(description)` and `on_event(name, text, part_id | None)` are called from the
    service's own thread and must not raise. Event names: describer_ready, describer_fallback,
    describer_restart, description_dropped, description_failed.
    """

    def __init__(
        self,
        settings: DescriberSettings,
        on_description: Callable[[Description], None],
        on_event: Callable[[str, str, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._on_description = on_description
        self._on_event = on_event
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._drops: list[str] = []
        self._drops_told = 0.0
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._stop = threading.Event()
        self._state = _State()
        self._child: Child | None = None
        self._thread = threading.Thread(target=self._run, name="describer", daemon=True)

    def start(self) -> None:
        """Start thread and child; returns at once, descriptions wait until the child is warm."""
        self._thread.start()

    def submit(self, request: DescribeRequest) -> bool:
        """Queue one part; False when the queue is full (this newest one is dropped and named)."""
        with self._lock:
            full = len(self._queue) >= self._settings.queue or self._stop.is_set()
            if full:
                self._state.dropped += 1
                self._drops.append(request.part_id)
            else:
                self._state.submitted += 1
                self._queue.append(_Job(request, self._clock()))
        self._wake()
        return not full

    @property
    def room(self) -> int:
        """How many requests `submit` would take now (for `desc_state` at verdict time)."""
        return max(0, self._settings.queue - len(self._queue))

    @property
    def pid(self) -> int | None:
        """Process id of the child, None between two."""
        child = self._child
        return child.pid if child else None

    def stats(self) -> DescribeStats:
        """Counters of this moment."""
        s = self._state
        return DescribeStats(
            source=s.source,
            model=s.model,
            reason=s.reason,
            queued=len(self._queue) + len(s.flying),
            submitted=s.submitted,
            described=s.described,
            dropped=s.dropped,
            restarts=s.restarts,
            contradictions=s.contradictions,
            tokens_per_s=s.tokens_per_s,
        )

    def stop(self, timeout_s: float = 1.0) -> None:
        """Kill the child and end the thread; requests still queued are dropped and named."""
        self._stop.set()
        self._wake()
        child = self._child
        if child is not None:
            child.signal_kill()  # wakes a thread that is blocked in sending to it
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        # A full wake pipe already wakes.
        with contextlib.suppress(BlockingIOError):
            self._wake_in.send(b"x")

    # --- service thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._step()
        finally:
            self._close_child()
            self._drop_rest()
            self._tell_drops(force=True)

    def _step(self) -> None:
        now = self._clock()
        if self._child is None and now >= self._state.next_start:
            self._start_child(now)
        self._wait(0.1 if self._child is None else 0.5)
        try:
            self._hear()
            self._speak()
        except ChildGone as gone:
            if not self._stop.is_set():  # `stop` kills the child itself: that is no crash
                self._lost(str(gone))
        if self._child is not None and self._clock() > self._state.overdue:
            self._lost("it did not answer in time")
        self._tell_drops()

    def _start_child(self, now: float) -> None:
        self._child = start_child(self._settings)
        self._state.source = "starting"
        self._state.overdue = now + STARTUP_S

    def _wait(self, timeout_s: float) -> None:
        poll = select.poll()
        for end in (self._wake_out, *([self._child.socket] if self._child else [])):
            poll.register(end, select.POLLIN)
        poll.poll(timeout_s * 1e3)
        with contextlib.suppress(BlockingIOError):
            self._wake_out.recv(4096)

    def _hear(self) -> None:
        """Take every message that the child has sent."""
        while self._child is not None and (message := self._child.poll()) is not None:
            match message["kind"]:
                case "ready":
                    self._ready(message)
                case "described":
                    self._described(Description.model_validate(message["description"]))
                case "idle":
                    self._idle(leaves=bool(message["leaves"]))

    def _idle(self, *, leaves: bool) -> None:
        """The batch is over; a child that `leaves` is recycled, which is not a crash."""
        s = self._state
        for job in s.flying:
            self._drop(job, "description_failed", "the describer left this part out")
        s.flying, s.busy, s.overdue = [], False, float("inf")
        if leaves:
            self._close_child()

    def _ready(self, message: dict[str, str | None]) -> None:
        s = self._state
        s.source, s.model, s.reason = str(message["source"]), str(message["model"]), message["note"]
        s.overdue = float("inf")
        if s.reason:
            self._on_event("describer_fallback", s.reason, None)
        else:
            told = "" if s.source != "llm" else f"; {message['prefix'] or 'fed by the prefix'}"
            self._on_event("describer_ready", f"describer ready: {s.model}{told}", None)

    def _described(self, description: Description) -> None:
        s = self._state
        key = (description.trigger_id, description.part_id, description.attempt)
        mine = [j for j in s.flying if _key(j.request) == key]
        if not mine:  # an answer to a part that nobody asked about is not passed on
            self._on_event(
                "description_failed", "the describer named another part", description.part_id
            )
            return
        s.flying.remove(mine[0])
        s.crashes = 0
        s.described += 1
        s.contradictions += description.contradiction is not None
        if description.tokens_per_s:
            s.tokens_per_s = description.tokens_per_s
        self._on_description(description)

    def _speak(self) -> None:
        """Send the next batch when the child is idle."""
        s = self._state
        if self._child is None or s.source == "starting" or s.busy:
            return
        with self._lock:
            many = min(self._settings.batch, len(self._queue))
            s.flying = [self._queue.popleft() for _ in range(many)]
        if not s.flying:
            return
        s.busy = True
        now = self._clock()
        left = self._settings.deadline_s - (now - s.flying[0].submitted)
        s.overdue = now + max(left, 0.0) + GRACE_S
        self._child.send(max(left, 0.0), [slim(job.request) for job in s.flying])

    def _lost(self, why: str) -> None:
        """The child died or hangs: kill it, ask once more for what it was saying, start again."""
        s = self._state
        self._close_child()
        s.restarts += 1
        s.next_start = self._clock() + BACKOFF_S[min(s.crashes, len(BACKOFF_S) - 1)]
        s.crashes += 1
        self._on_event("describer_restart", f"the describer is restarted: {why}", None)
        again, s.flying = s.flying, []
        for job in again:
            job.tries += 1
        with self._lock:
            self._queue.extendleft(j for j in reversed(again) if j.tries < 2)
        for job in (j for j in again if j.tries >= 2):  # it may be the part that kills it
            self._drop(job, "description_failed", "the describer died twice on this part")

    def _drop(self, job: _Job, name: str, text: str) -> None:
        self._state.dropped += 1
        self._on_event(name, text, job.request.part_id)

    def _close_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None
        self._state.source = "starting"
        self._state.busy = False

    def _drop_rest(self) -> None:
        with self._lock:
            rest = [*self._state.flying, *self._queue]
            self._queue.clear()
            self._state.flying.clear()
            self._state.dropped += len(rest)
            self._drops += [job.request.part_id for job in rest]

    def _tell_drops(self, *, force: bool = False) -> None:
        now = self._clock()
        if not self._drops or (not force and now - self._drops_told < DROPS_EVERY_S):
            return
        with self._lock:
            named, self._drops = self._drops, []
        self._drops_told = now
        while named:
            ids = [named.pop(0)]
            while named and sum(map(len, ids)) + len(named[0]) + 2 * len(ids) < DROPS_TEXT:
                ids.append(named.pop(0))
            text = f"{len(ids)} descriptions dropped, the describer is busy: {', '.join(ids)}"
            self._on_event("description_dropped", text, ids[0] if len(ids) == 1 else None)


def _key(request: DescribeRequest) -> tuple[str, str, int]:
    return request.trigger_id, request.part_id, request.attempt
