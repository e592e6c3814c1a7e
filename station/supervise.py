"""Restart policy as data, readiness in one place, and ticks that prove a worker is alive."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Waits that double from `first_s` to `most_s`; `reset` once it works again."""

    first_s: float = 0.5
    most_s: float = 8.0
    _next: float = field(default=0.0, init=False)

    def next_s(self) -> float:
        """How long to wait before this attempt."""
        wait = self._next or self.first_s
        self._next = min(2 * wait, self.most_s)
        return wait

    def reset(self) -> None:
        """The next failure begins with `first_s` again."""
        self._next = 0.0


@dataclass
class RestartCap:
    """At most `most` restarts within `window_s`: above it the caller waits longer."""

    most: int = 5
    window_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _times: deque[float] = field(default_factory=deque, init=False)

    def allow(self) -> bool:
        """Whether one more restart may happen now (and count it)."""
        now = self.clock()
        while self._times and now - self._times[0] > self.window_s:
            self._times.popleft()
        if len(self._times) >= self.most:
            return False
        self._times.append(now)
        return True


class Ticks:
    """When each worker last proved alive. A worker may declare work inside a time limit."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        self._last: dict[str, int] = {}
        self._until: dict[str, int] = {}

    def tick(self, worker: str) -> None:
        """`worker` has gone round its loop."""
        self._last[worker] = self._clock_ns()

    def busy_until(self, worker: str, until_ns: int) -> None:
        """`worker` is inside one call that is legitimate until then (0: it has returned)."""
        self._until[worker] = until_ns

    def ticked_since(self, worker: str, since_ns: int) -> bool:
        """Whether it looped since then, or is inside its declared call."""
        return self._last.get(worker, 0) > since_ns or self._until.get(worker, 0) > self._clock_ns()

    def set(self, worker: str, t_ns: int) -> None:
        """Take over a tick that somebody else keeps (ledger, bus, camera)."""
        self._last[worker] = max(t_ns, self._last.get(worker, 0))


class Heartbeat:
    """`hb`: moves only if every named worker ticked since it last moved."""

    def __init__(self, ticks: Ticks, workers: tuple[str, ...]) -> None:
        self._ticks = ticks
        self.workers = workers
        self._since = 0
        self._count = 0
        self._lock = threading.Lock()

    def beat(self, now_ns: int) -> int:
        """Called for each status: the counter, one higher if all workers ticked."""
        with self._lock:
            if all(self._ticks.ticked_since(w, self._since) for w in self.workers):
                self._count += 1
                self._since = now_ns
            return self._count


class Readiness:
    """READY is computed here and nowhere else: ready = no fault. Each fault has one owner."""

    def __init__(self, on_change: Callable[[bool, tuple[str, ...]], None]) -> None:
        self._faults: dict[str, str] = {"start": "starting"}
        self._probes: dict[str, Callable[[], str | None]] = {}
        self._on_change = on_change
        self._lock = threading.Lock()
        self._was = False

    def probe(self, owner: str, look: Callable[[], str | None]) -> None:
        """Ask `look` at every evaluation: a sentence is a fault, None is well."""
        self._probes[owner] = look

    def set(self, owner: str, fault: str | None) -> None:
        """Raise (a sentence) or clear (None) the fault of `owner`."""
        with self._lock:
            if fault is None:
                self._faults.pop(owner, None)
            else:
                self._faults[owner] = fault
        self.evaluate()

    def evaluate(self) -> tuple[bool, tuple[str, ...]]:
        """(ready, faults) of this moment; tells `on_change` when readiness flipped."""
        faults = dict(self._faults)
        for owner, look in list(self._probes.items()):
            if fault := look():
                faults[owner] = fault
        ready = not faults
        with self._lock:
            changed, self._was = ready != self._was, ready
        said = tuple(faults.values())
        if changed:
            self._on_change(ready, said)
        return ready, said

    @property
    def faults(self) -> Mapping[str, str]:
        """Faults that were set, by owner (without the probes')."""
        return dict(self._faults)
