"""A camera (or file source) and its thread: gives every part the frame that belongs to it.

Two declared policies, never one: **triggered** waits and drops nothing, a miss is a verdict;
**free run** takes the newest frame, drops the others and counts them. Decoding, cutting and
resizing happen here, so that they overlap the engine's call on the part before.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from engines.errors import StationError
from station.flow import Flow
from station.inspection import Product, prepare, refuse
from station.ledger_types import Duplicate
from station.parts import Part
from station.schema import Opening, Reason, Verdict
from station.sources.base import EndOfSource, Frame, Source

_TICK_S = 0.1  # idle workers tick every 100 ms
log = structlog.get_logger("lane")


@dataclass
class LaneCounts:
    """Frames that became no part, by cause."""

    stale: int = 0
    superseded: int = 0
    refused: int = 0


@dataclass
class LaneHooks:
    """What a lane asks of the daemon: may parts begin, what an opening says, where parts go."""

    accepting: Callable[[], bool]
    opening: Callable[[Frame | None, str], tuple[Opening, Product]]
    ready: "queue.Queue[Part]"
    tick: Callable[[str], None]
    loose_frame: Callable[[Frame], None] = lambda _frame: None
    ended: Callable[[str, str | None], None] = lambda _lane, _fault: None


@dataclass
class Lane:
    """One source. `by` is "every_frame" or "trigger" and may change while it runs."""

    name: str
    source: Source
    flow: Flow
    hooks: LaneHooks
    by: str = "every_frame"
    free_run: bool = False
    staleness_ns: int = 500_000_000
    triggers: "queue.Queue[Part]" = field(default_factory=queue.Queue)
    counts: LaneCounts = field(default_factory=LaneCounts)
    finished: bool = False
    error: Exception | None = None  # what it ended of, when not with its source
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def worker(self) -> str:
        """Its name among the ticks."""
        return f"capture {self.name}".strip()

    def start(self) -> None:
        """Run until stopped or until the source ends."""
        name = f"lane-{self.name}" if self.name else "lane"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no further frame; returns at once."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def fault(self) -> str | None:
        """Why this lane is not ready, or None."""
        if self.error is not None:
            return f"{self.worker} has ended: {str(self.error) or type(self.error).__name__}"
        if not self.source.live:
            return None
        health = self.source.health()  # type: ignore[attr-defined]
        return health.fault  # type: ignore[no-any-return]

    def losses(self) -> dict[str, int]:
        """By cause: frames that became no part; repeats, damage and restarts of a camera."""
        counts = self.counts
        found = {"stale": counts.stale, "superseded": counts.superseded, "refused": counts.refused}
        if self.source.live:
            health = self.source.health()  # type: ignore[attr-defined]
            found["overrun"] = health.dropped  # nobody took them while they were there
            found |= {name: getattr(health, name) for name in ("repeats", "damaged", "restarts")}
        return found

    def _run(self) -> None:
        fault = None
        try:
            while not self._stop.is_set():
                self.hooks.tick(self.worker)
                if self.by == "every_frame":
                    self._next_frame()
                else:
                    self._next_trigger()
        except EndOfSource:
            pass
        except Exception as error:  # any: a lane that dies in silence looks like a finished one
            fault, self.error = str(error) or type(error).__name__, error
            if not isinstance(error, StationError):
                log.exception("lane_failed", lane=self.name)
        finally:
            self.finished = True
            self.leave_no_trigger(fault)
            self.hooks.ended(self.name, fault)

    def leave_no_trigger(self, fault: str | None) -> None:
        """Give every trigger that waits its verdict: no frame will come."""
        while True:
            try:
                part = self.triggers.get_nowait()
            except queue.Empty:
                return
            text = fault or "the source has ended"
            self.flow.commit(part, refuse(Verdict.ERROR, Reason.CAMERA, text))

    # -- every frame -------------------------------------------------------------------------

    def _next_frame(self) -> None:
        if not self.hooks.accepting():
            self._idle()
            return
        if self.free_run and self.hooks.ready.full():  # the engine is behind: a newer frame later
            time.sleep(0.001)
            return
        frame = self.source.read(_TICK_S)
        if frame is None:
            return
        if self.free_run:
            frame = self._newest(frame)
            if frame is None:
                return
            if self.fault():  # such as an exposure that is not the recipe's
                self.counts.refused += 1
                return
        part = self._open(frame)
        if part is not None:
            self._give(part, frame)

    def _newest(self, frame: Frame) -> Frame | None:
        """The last of the frames that wait, None when even that is older than the budget."""
        while (newer := self.source.read(0)) is not None:
            self.counts.superseded += 1
            self.hooks.loose_frame(frame)
            frame = newer
        if time.monotonic_ns() - frame.t_capture_ns > self.staleness_ns:
            self.counts.stale += 1
            return None
        return frame

    def _open(self, frame: Frame) -> Part | None:
        """Open a part for this frame and wait until PENDING is durable.

        None in free run, and when the mode changed: the place that is waited for may be taken by a
        trigger that waits for this thread.
        """
        while not self._stop.is_set() and self.by == "every_frame":
            if self.flow.wait_below(self.flow.most, _TICK_S) and self.flow.reserve():
                answer = self._opened(frame)
                if isinstance(answer, Part):
                    return answer
                self.counts.refused += 1
                log.warning("part_not_opened", frame=frame.name, why=str(answer))
                if self.free_run or isinstance(answer, Duplicate):
                    return None
                time.sleep(_TICK_S)  # a file waits for the ledger; nothing is skipped
            self.hooks.tick(self.worker)
        return None

    def _opened(self, frame: Frame) -> Part | Duplicate | BaseException:
        """In the place that is reserved; given back when it does not come to an opening."""
        try:
            opening, product = self.hooks.opening(frame, self.name)
        except BaseException:
            self.flow.release()
            raise
        done: Future[Part | Duplicate | BaseException] = Future()
        self.flow.open(opening, product, self.name, done.set_result)
        return done.result()

    # -- on trigger --------------------------------------------------------------------------

    def _next_trigger(self) -> None:
        try:
            part = self.triggers.get(timeout=_TICK_S)
        except queue.Empty:
            self._idle(0)
            return
        frame = self._frame_for(part)
        if frame is not None:
            self._give(part, frame)

    def _frame_for(self, part: Part) -> Frame | None:
        """The first frame grabbed after the trigger; None when the part has its verdict already."""
        part.taken_ns = time.monotonic_ns()
        while not part.done:
            self.hooks.tick(self.worker)
            if fault := self.fault():
                self.flow.commit(part, refuse(Verdict.ERROR, Reason.CAMERA, fault))
                return None
            try:
                frame = self.source.read(0.02)
            except Exception as error:
                ended = isinstance(error, EndOfSource)
                text = "the source has ended" if ended else str(error) or type(error).__name__
                self.flow.commit(part, refuse(Verdict.ERROR, Reason.CAMERA, text))
                raise
            if frame is None:
                continue
            if not self.source.live or frame.t_capture_ns > part.opening.received_ns:
                return frame
            self.hooks.loose_frame(frame)
        return None

    def _give(self, part: Part, frame: Frame) -> None:
        """Prepare the part and hand it to the detector; whatever goes wrong is its verdict."""
        part.taken_ns = part.taken_ns or time.monotonic_ns()
        part.frame = frame
        try:
            part.prepared = prepare(frame, part.product, live=self.source.live)
            part.frame = part.prepared.frame
        except Exception as error:  # any, or the part would wait for its deadline
            text = f"{frame.name}: {str(error) or type(error).__name__}"
            self.flow.commit(part, refuse(Verdict.ERROR, Reason.CAMERA, text))
            return
        part.ready_ns = time.monotonic_ns()
        while not part.done:
            try:
                self.hooks.ready.put(part, timeout=_TICK_S)
                return
            except queue.Full:
                self.hooks.tick(self.worker)

    def _idle(self, wait_s: float = _TICK_S) -> None:
        """Keep a live source's frames moving while no part wants them (a ring for the recorder)."""
        if not self.source.live:
            time.sleep(wait_s)
            return
        while (frame := self.source.read(wait_s)) is not None:
            wait_s = 0
            self.hooks.loose_frame(frame)
