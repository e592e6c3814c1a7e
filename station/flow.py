"""The life of a part around the ledger: opened, judged, committed; at its deadline undecided.

Everything that can end a part meets here, and the ledger's "first write wins" decides. No verdict
is sent from here: the bus hears of a row when the ledger has made it durable.
"""

import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import structlog

from engines.errors import LedgerError
from station.inspection import Judged, Product, refuse
from station.ledger import Ledger
from station.ledger_types import Committed, Duplicate, PartHandle
from station.parts import Part
from station.schema import (
    DescState,
    EventDraft,
    Opening,
    Reason,
    Region,
    ResultDraft,
    Severity,
    Stream,
    Timings,
    Verdict,
)

_SILENT_S = 1.0  # the keeper looks ten times a second
log = structlog.get_logger("flow")


class Flow:
    """Open parts and their deadlines. `on_done(part)` runs in the ledger's writer thread."""

    def __init__(self, ledger: Ledger, on_done: Callable[[Part], None], most: int = 1) -> None:
        self.ledger = ledger
        self.most = most
        self._on_done = on_done
        self._open: dict[str, Part] = {}
        self._reserved = 0
        self._changed = threading.Condition()
        self._due: list[tuple[int, int, Part]] = []
        self._count = 0
        self._stop = False
        self.tick_ns = time.monotonic_ns()
        self._keeper = threading.Thread(target=self._keep_deadlines, name="deadline", daemon=True)
        self._keeper.start()

    # -- opening -----------------------------------------------------------------------------

    def reserve(self) -> bool:
        """Claim one of the places in flight; False when all are taken (busy)."""
        with self._changed:
            if len(self._open) + self._reserved >= self.most:
                return False
            self._reserved += 1
            return True

    def force_reserve(self) -> None:
        """Claim a place beyond the limit: for a part that only gets UNDECIDED/queue_full."""
        with self._changed:
            self._reserved += 1

    def release(self) -> None:
        """Give a reserved place back (the part was not opened)."""
        with self._changed:
            self._reserved -= 1
            self._changed.notify_all()

    def open(
        self,
        opening: Opening,
        product: Product,
        lane: str,
        on_open: Callable[[Part | Duplicate | BaseException], None],
    ) -> None:
        """Make PENDING durable, then call `on_open` (writer thread) with the part, or why not.

        A place must have been reserved.
        """

        def opened(future: "Future[PartHandle | Duplicate]") -> None:
            error = future.exception()
            if error is not None:
                self.release()
                on_open(error)
                return
            handle = future.result()
            if isinstance(handle, Duplicate):
                self.release()
                on_open(handle)
                return
            part = Part(opening, handle.part_id, handle.attempt, product, lane)
            self._begin(part)
            on_open(part)

        self.ledger.open_part(opening).add_done_callback(opened)

    def _begin(self, part: Part) -> None:
        with self._changed:
            self._reserved -= 1
            self._open[part.trigger_id] = part
            self._count += 1
            heapq.heappush(self._due, (part.deadline_ns, self._count, part))
            self._changed.notify_all()

    # -- ending ------------------------------------------------------------------------------

    def commit(self, part: Part, judged: Judged, **extra: object) -> None:
        """Write the verdict; returns at once. `extra`: image_ref, desc_state of the draft."""
        if part.judged is None:
            part.judged = judged
        draft = _draft(part, judged, extra)
        self.ledger.commit_result(draft).add_done_callback(
            lambda future: self._committed(part, judged, future)
        )

    def _committed(self, part: Part, judged: Judged, future: "Future[Committed]") -> None:
        error = future.exception()
        if error is not None:
            log.error("commit_failed", trigger_id=part.trigger_id, error=str(error))
            self._end(part)
            return
        row = future.result()
        if not row.first or row.replaced:
            self._late_answer(part, judged)
        if row.first:
            part.committed = row
            self._end(part)
            self._on_done(part)

    def _late_answer(self, part: Part, judged: Judged) -> None:
        """The engine spoke after the deadline's verdict: an event, nothing else."""
        if judged.score is None:
            return
        self.event(
            "late_answer",
            f"the engine answered {judged.verdict} after the deadline of part {part.part_id}",
            Severity.WARNING,
            part.trigger_id,
            score=judged.score,
        )

    def on_row(self, row: Committed) -> None:
        """Ledger listener, registered before the bus: the place is free before the RESULT is out,

        or a PLC that triggers at once on a RESULT would be told busy.
        """
        part = self._open.get(row.trigger_id or "") if row.stream is Stream.RESULT else None
        if part is not None:
            self._end(part)

    def _end(self, part: Part) -> None:
        with self._changed:
            part.done = True
            self._open.pop(part.trigger_id, None)
            self._changed.notify_all()

    def event(
        self,
        kind: str,
        text: str,
        severity: Severity = Severity.INFO,
        trigger_id: str | None = None,
        **data: str | int | float | bool | None,
    ) -> None:
        """Store and publish an event; a ledger that cannot is already READY=0."""
        draft = EventDraft(
            kind=kind, severity=severity, text=text[:2000], trigger_id=trigger_id, data=data
        )
        getattr(log, severity.value)(kind, text=text, trigger_id=trigger_id, **data)
        future = self.ledger.append(Stream.EVENT, draft)
        future.add_done_callback(lambda f: f.exception())  # told by ledger.healthy

    # -- deadlines ---------------------------------------------------------------------------

    def _keep_deadlines(self) -> None:
        while not self._stop:
            now = self.tick_ns = time.monotonic_ns()
            for part in self._overdue(now):
                text = f"no answer within {part.opening.deadline_ms} ms"
                try:
                    self.commit(part, refuse(Verdict.UNDECIDED, Reason.DEADLINE, text))
                except Exception:  # one part's trouble must not end every other part's deadline
                    log.error("deadline_failed", trigger_id=part.trigger_id, exc_info=True)

    def _overdue(self, now_ns: int) -> list[Part]:
        """Open parts whose deadline has passed; waits up to 100 ms for the next when none has."""
        with self._changed:
            due: list[Part] = []
            while self._due and (self._due[0][0] <= now_ns or self._due[0][2].done):
                part = heapq.heappop(self._due)[2]
                if not part.done:
                    due.append(part)
            if not due:
                wait = (self._due[0][0] - now_ns) / 1e9 if self._due else 0.1
                self._changed.wait(min(wait, 0.1))
            return due

    def keeper_fault(self, now_ns: int) -> str | None:
        """Why deadlines are not kept, or None: READY needs it, no part may wait for ever."""
        silent_s = (now_ns - self.tick_ns) / 1e9
        return (
            f"deadlines were not looked at for {silent_s:.0f} s" if silent_s > _SILENT_S else None
        )

    # -- looking -----------------------------------------------------------------------------

    @property
    def open_count(self) -> int:
        """Accepted parts without a verdict, those about to be accepted included."""
        return len(self._open) + self._reserved

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until every open part has its verdict; whether that happened in time."""
        return self.wait_below(1, timeout_s)

    def settle(self, timeout_s: float) -> bool:
        """Wait until `on_done` was called for every verdict written so far; whether in time.

        A place is free before the RESULT is out (`on_row`), so an empty flow alone does not say
        that the last parts have reached the summary, the recorder and the describer.
        """
        try:
            self.ledger.latest(Stream.RESULT).result(timeout_s)  # behind them in the writer thread
        except (TimeoutError, LedgerError) as error:
            log.warning("not_settled", error=str(error))
            return False
        return True

    def wait_below(self, count: int, timeout_s: float) -> bool:
        """Wait until fewer than `count` parts are open."""
        with self._changed:
            return self._changed.wait_for(lambda: self.open_count < count, timeout_s)

    def fail_open(self, reason: Reason, text: str) -> None:
        """Give every open part ERROR with this reason (shutdown)."""
        with self._changed:
            parts = list(self._open.values())
        for part in parts:
            self.commit(part, refuse(Verdict.ERROR, reason, text))

    def close(self) -> None:
        """End the deadline thread."""
        self._stop = True
        with self._changed:
            self._changed.notify_all()


def _draft(part: Part, judged: Judged, extra: dict[str, object]) -> ResultDraft:
    frame = part.frame
    timings = Timings(
        queue=_us(part.opening.received_ns, part.taken_ns),
        acquire=_us(part.taken_ns, part.ready_ns),
        infer=part.infer_ns // 1000,
    )
    return ResultDraft(
        trigger_id=part.trigger_id,
        verdict=judged.verdict,
        reason=judged.reason,
        score=judged.score,
        threshold=part.product.threshold,
        regions=tuple(Region.model_validate(r) for r in judged.regions[:64]),
        region_count=judged.region_count,
        t_capture_us=frame.wall_us if frame else None,
        timings_us=timings,
        image_ref=extra.get("image_ref"),  # type: ignore[arg-type]
        desc_state=extra.get("desc_state", DescState.NONE),  # type: ignore[arg-type]
    )


def _us(start_ns: int, end_ns: int) -> int:
    return max(0, (end_ns - start_ns) // 1000) if start_ns and end_ns else 0
