"""The detector threads: parts that are ready go through the engine and get their verdict."""

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty

import structlog

from station.flow import Flow
from station.inspection import Judged, infer, outcome, refuse, split
from station.parts import Part
from station.pictures import image_ref
from station.schema import DescState, Reason, Verdict
from station.supervise import Ticks
from station.turns import ReadyQueue

_BAD_IN_A_ROW = 3  # engine failures after which the station says it is not ready
_PROBE_S = 1.0  # how often a failed engine is tried again with the last good tiles
log = structlog.get_logger("detect")


class DetectorThreads:
    """`count` threads take from `ready`; verdicts are written in the order parts were taken.

    Several waiting parts of one product go through in one call of at most `batch`.
    """

    def __init__(
        self,
        flow: Flow,
        ready: ReadyQueue,
        ticks: Ticks,
        desc_room: Callable[[], bool],
        batch: int = 1,
        count: int = 1,
    ) -> None:
        self._flow = flow
        self._ready = ready
        self._ticks = ticks
        self._desc_room = desc_room
        self._batch = batch
        self._stop = threading.Event()
        self._bad = 0
        self._last_text = ""
        self._probe_part: Part | None = None  # the last good part, or the first that failed
        self._next_probe = 0.0
        self.between: Callable[[bool], None] = lambda _idle: None
        self.workers = ("infer", *(f"infer {n + 1}" for n in range(1, count)))
        self._until_ns = dict.fromkeys(self.workers, 0)  # deadline of the call in progress, or 0
        self._threads = [
            threading.Thread(target=self._run, args=(w,), name=f"detector-{n}", daemon=True)
            for n, w in enumerate(self.workers)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the parts in hand; returns at once."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Whether every thread has ended (a hanging engine cannot be stopped from here)."""
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def fault(self) -> str | None:
        """Why the engine is not ready, or None."""
        if any(not t.is_alive() and t.ident is not None for t in self._threads):
            return "the detector thread has ended"
        until = min((u for u in self._until_ns.values() if u), default=0)
        late_s = (time.monotonic_ns() - until) / 1e9 if until else 0.0
        if late_s >= 1:
            return f"the engine has not answered for {late_s:.0f} s after its part's deadline"
        if late_s > 0:
            return "the engine has not answered within its part's deadline"
        if self._bad >= _BAD_IN_A_ROW:
            return f"the engine failed {self._bad} times in a row: {self._last_text}"
        return None

    def _run(self, worker: str) -> None:
        first = worker == self.workers[0]
        while not self._stop.is_set():
            self._ticks.tick(worker)
            parts = self._take()
            if first:
                self._look_between(idle=not parts)
            if not parts:
                if first:
                    self._probe()
                continue
            try:
                self._inspect(parts, worker)
            except Exception as error:  # nothing may leave a part without verdict
                log.error("engine_failed", error=repr(error), exc_info=self._bad == 0)
                self._fail(parts, f"{type(error).__name__}: {error}")
            finally:
                self._until_ns[worker] = 0
                self._ticks.busy_until(worker, 0)
                for part in parts:
                    self._ready.turns.leave(part)

    def _look_between(self, *, idle: bool) -> None:
        """What else needs the engine (golden parts); its failure is never a part's."""
        try:
            self.between(idle)
        except Exception as error:
            log.error("golden_failed", error=repr(error), exc_info=True)

    def _take(self) -> list[Part]:
        """The next part, and those that wait behind it for the same engine."""
        try:
            parts = [self._ready.get(timeout=0.1)]
        except Empty:
            return []
        while len(parts) < self._batch:
            try:
                parts.append(self._ready.get_nowait())
            except Empty:
                break
        for part in parts:
            if part.done:
                self._ready.turns.leave(part)
        return [p for p in parts if not p.done]

    def _inspect(self, parts: Sequence[Part], worker: str) -> None:
        waiting: dict[int, list[Part]] = {}
        for part in parts:
            assert part.prepared is not None
            refusal = part.prepared.refusal
            if refusal is not None:
                judged = refuse(refusal.verdict, refusal.reason, refusal.text)
                self._commit(part, judged)
                self._flow.event(str(refusal.reason), refusal.text, trigger_id=part.trigger_id)
            else:
                waiting.setdefault(id(part.product), []).append(part)
        for together in waiting.values():
            self._call(together, worker)

    def _call(self, parts: list[Part], worker: str) -> None:
        prepared = [p.prepared for p in parts if p.prepared is not None]
        until = self._until_ns[worker] = max(p.deadline_ns for p in parts)
        self._ticks.busy_until(worker, until)
        start = time.monotonic_ns()
        answers = split(infer(prepared, parts[0].product), [len(p.boxes) for p in prepared])
        took = time.monotonic_ns() - start
        for part, ready, answer in zip(parts, prepared, answers, strict=True):
            part.infer_ns = took
            judged = outcome(ready, answer, part.product)
            self._note(judged, part)
            self._commit(part, judged)

    def _commit(self, part: Part, judged: Judged) -> None:
        """Hand the verdict to the ledger when it is this part's turn."""
        described = judged.map is not None and judged.verdict is not Verdict.OK
        state = DescState.NONE
        if described:
            state = DescState.QUEUED if self._desc_room() else DescState.DROPPED
        has_picture = part.frame is not None and (part.frame.raw or part.frame.image is not None)
        ref = image_ref(part.trigger_id) if has_picture else None
        self._ready.turns.wait(part)
        self._flow.commit(part, judged, image_ref=ref, desc_state=state)
        self._ready.turns.leave(part)

    def _note(self, judged: Judged, part: Part) -> None:
        """Count failures of the engine in a row; any good answer clears them."""
        if judged.verdict is Verdict.ERROR:
            self._bad += 1
            self._last_text = judged.text
            self._next_probe = time.monotonic() + _PROBE_S
            if self._probe_part is None and part.prepared is not None and not part.prepared.refusal:
                self._probe_part = part  # an engine that failed from the start is tried again too
        else:
            self._bad = 0
            self._probe_part = part

    def _fail(self, parts: Sequence[Part], text: str) -> None:
        judged = refuse(Verdict.ERROR, Reason.INFER, text)
        for part in parts:
            if not part.done and part.judged is None:
                self._note(judged, part)
                self._commit(part, judged)

    def _probe(self) -> None:
        """While the engine is out of order: try it now and then, so that READY can come back."""
        part = self._probe_part
        if self._bad < _BAD_IN_A_ROW or part is None or time.monotonic() < self._next_probe:
            return
        self._next_probe = time.monotonic() + _PROBE_S
        assert part.prepared is not None
        try:
            answer = infer([part.prepared], part.product)
            if outcome(part.prepared, answer, part.product).verdict is not Verdict.ERROR:
                self._bad = 0
        except Exception as error:  # still out of order; the reason is in fault()
            self._last_text = f"{type(error).__name__}: {error}"
