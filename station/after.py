"""What happens to a part when its verdict is out: observers, words, counts. Never before it.

One thread takes finished parts from the ledger's writer; each observer has a thread and a bounded
queue of its own, so that a slow disk costs pictures and never verdicts.
"""

import contextlib
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from station.describe import DescribeService
from station.describe_request import describe_request
from station.ledger_types import Committed
from station.parts import Part, PartObserver, PartRecord
from station.schema import DescState, Result, Stream, Verdict
from station.sources.base import Frame

_TICK_S = 0.25
_TELL_S = 60.0  # at most one event a minute of an observer that fails
Tell = Callable[[str, str, str], None]  # kind, severity, text; thread-safe
_KEPT_LATENCIES = 20_000
log = structlog.get_logger("after")


class ObserverThread:
    """One observer behind a bounded queue. A full queue drops what comes, and counts it.

    A part on which the observer raises is left out, counted and told (once a minute, through
    `tell(kind, severity, text)`): one odd picture must not cost all that come after it.
    """

    def __init__(
        self, name: str, observer: PartObserver, depth: int = 64, tell: Tell | None = None
    ) -> None:
        self.name = name
        self.dropped = 0
        self._observer = observer
        self._tell = tell
        self._told_s = float("-inf")
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"observer-{name}", daemon=True)
        self._thread.start()

    def offer(self, method: str, *args: Any) -> None:
        """Hand something over if the observer has such a method; never blocks."""
        if not hasattr(self._observer, method):
            return
        try:
            self._queue.put_nowait((method, args))
        except queue.Full:
            self.dropped += method != "frame"

    def end(self) -> None:
        """Finish what waits, then flush and end; returns at once, the thread wakes at once."""
        self._stop.set()
        with contextlib.suppress(queue.Full):  # then it is awake
            self._queue.put_nowait(("tick", ()))

    def close(self, timeout_s: float) -> None:
        """`end()`, and wait for it within the time."""
        self.end()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not (self._stop.is_set() and self._queue.empty()):
                try:
                    method, args = self._queue.get(timeout=_TICK_S)
                except queue.Empty:
                    method, args = "tick", ()
                self._call(method, args)
        finally:
            self._call("close", ())

    def _call(self, method: str, args: tuple[Any, ...]) -> None:
        call = getattr(self._observer, method, None)
        if call is None:
            return
        try:
            call(*args)
        except Exception as error:  # an observer's fault is its own
            self.dropped += method in ("part", "message")
            if time.monotonic() - self._told_s < _TELL_S:
                return
            self._told_s = time.monotonic()
            log.exception("observer_failed", observer=self.name, at=method)
            if self._tell is not None:
                text = f"{self.name}: {type(error).__name__}: {error}"
                self._tell("observer_failed", "error", f"{text}; left out, it goes on")


class Ring:
    """The last `size` counts, in memory taken once: a list of numbers grows for half an hour."""

    def __init__(self, size: int) -> None:
        self._values = np.zeros(size, np.int64)
        self._count = 0

    def append(self, value: int) -> None:
        """One more; the oldest is overwritten."""
        self._values[self._count % len(self._values)] = value
        self._count += 1

    def last(self) -> tuple[int, ...]:
        """Those kept, oldest first."""
        at = self._count % len(self._values)
        whole = self._count >= len(self._values)
        kept = np.roll(self._values, -at) if whole else self._values[:at]
        return tuple(kept.tolist())


@dataclass(frozen=True)
class Totals:
    """Counts since the start, for the summary and the status."""

    verdicts: dict[str, int]
    reasons: dict[str, int]
    late: int
    latencies_us: tuple[int, ...]
    infer_us: tuple[int, ...]
    first_ns: int
    last_ns: int

    @property
    def parts(self) -> int:
        """All verdicts."""
        return sum(self.verdicts.values())

    @property
    def fps(self) -> float:
        """Parts a second from the first to the last verdict."""
        span = self.last_ns - self.first_ns
        return (self.parts - 1) * 1e9 / span if span > 0 and self.parts > 1 else 0.0


class Aftermath:
    """Takes every finished part. `product_words(part)` gives anchors and nouns for the prefix."""

    def __init__(self, describe: DescribeService | None) -> None:
        self.describe = describe
        self.observers: list[ObserverThread] = []
        self.listeners: list[Callable[[PartRecord], None]] = []
        self._queue: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._verdicts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._late = 0
        self.not_described = 0  # parts for which the describer had no room at verdict time
        self._latencies = Ring(_KEPT_LATENCIES)
        self._infer = Ring(_KEPT_LATENCIES)
        self._recent: deque[int] = deque(maxlen=64)
        self._span = [0, 0]
        self._thread = threading.Thread(target=self._run, name="after", daemon=True)
        self._thread.start()

    def put(self, part: Part) -> None:
        """Called in the ledger's writer thread: returns at once."""
        now = time.monotonic_ns()
        self._span = [self._span[0] or now, now]
        self._recent.append(now)
        self._queue.put(part)

    def message(self, row: Committed) -> None:
        """Ledger listener: descriptions and events are for the recorder too."""
        if row.stream is Stream.RESULT:
            return
        for observer in self.observers:
            observer.offer("message", str(row.stream), row.body)

    def frame(self, frame: Frame) -> None:
        """A frame that belongs to no part, for the recorder's ring."""
        for observer in self.observers:
            observer.offer("frame", frame)

    def fps(self) -> float:
        """Parts a second over the last few (0 when the last is old)."""
        recent = list(self._recent)
        if len(recent) < 2 or time.monotonic_ns() - recent[-1] > 2_000_000_000:
            return 0.0
        return (len(recent) - 1) * 1e9 / max(1, recent[-1] - recent[0])

    def totals(self) -> Totals:
        """A copy of the counts."""
        return Totals(
            dict(self._verdicts),
            dict(self._reasons),
            self._late,
            self._latencies.last(),
            self._infer.last(),
            self._span[0],
            self._span[1],
        )

    def close(self, timeout_s: float) -> None:
        """Finish what waits, then close every observer, all within the time."""
        end = time.monotonic() + timeout_s
        self._queue.put(None)
        self._thread.join(timeout_s)
        for observer in self.observers:
            observer.end()  # all together: the last one has as much of the time as the first
        for observer in self.observers:
            observer.close(max(0.05, end - time.monotonic()))

    def _run(self) -> None:
        while (part := self._queue.get()) is not None:
            try:
                self._finish(part)
            except Exception:  # nothing after a verdict may end the station
                log.exception("after_failed", trigger_id=part.trigger_id)

    def _finish(self, part: Part) -> None:
        assert part.committed is not None
        result = Result.model_validate_json(part.committed.body)
        self._count(result)
        judged = part.judged
        record = PartRecord(
            frame=part.frame,
            body=part.committed.body,
            result=result,
            map=judged.map if judged else None,
            regions=judged.regions if judged else (),
            region_box=part.prepared.area if part.prepared else None,
            threshold=result.threshold,
            level=judged.level if judged else None,
        )
        for observer in self.observers:
            observer.offer("part", record)
        for listener in self.listeners:
            listener(record)
        if self.describe and result.desc_state is DescState.QUEUED:
            assert part.judged is not None and part.prepared is not None
            request = describe_request(result, part.product, part.prepared, part.judged)
            self.describe.submit(request)

    def _count(self, result: Result) -> None:
        self._verdicts[result.verdict] += 1
        if result.verdict is not Verdict.OK:
            self._reasons[result.reason] += 1
        self._late += result.late
        self.not_described += result.desc_state is DescState.DROPPED
        self._latencies.append(max(0, result.t_done_us - result.t_trigger_us))
        if result.timings_us.infer:
            self._infer.append(result.timings_us.infer)
