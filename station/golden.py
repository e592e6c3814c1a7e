"""Golden parts in the running station: checked between parts, by the line's own engine."""

import functools
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from station.drift_golden import GoldenSchedule, check
from station.inspection import Product, infer, outcome, prepare
from station.schema import Verdict
from station.settings import GoldenSettings
from station.sources.base import Frame


class GoldenWatch:
    """`look` is called by the first detector thread, between two of its parts.

    `set_fault(sentence or None)` takes READY away; `on_event(kind, severity, text)` tells why.
    """

    def __init__(
        self,
        settings: GoldenSettings,
        products: Callable[[], Iterable[Product]],
        set_fault: Callable[[str | None], None],
        on_event: Callable[[str, str, str], None],
    ) -> None:
        self._folder = settings.folder
        self._products = products
        self._set_fault = set_fault
        self._on_event = on_event
        self._schedule = GoldenSchedule(settings.every_s)
        self._judged_by: set[str] = set()
        self._again = False
        self._steps: Generator[None, None, list[str]] | None = None  # of the check that goes on

    def look(self, idle: bool) -> None:
        """Check if it is due: when nothing waits, or when a busy line has put it off too long."""
        products = list(self._products())
        now = {product.sha for product in products}
        if now != self._judged_by or self._again:
            self._judged_by, self._again = now, False
            self._schedule.at_once()
            self._steps = None
        if (self._schedule.due() and idle) or self._schedule.overdue():
            self._step(products)

    def at_once(self) -> None:
        """Check anew as soon as nothing waits; from any thread."""
        self._again = True

    def _step(self, products: list[Product]) -> None:
        """One picture; the heartbeat and the next part wait no longer than that."""
        self._steps = self._steps or self._checks(products)
        try:
            next(self._steps)
            return
        except StopIteration as ended:
            faults = ended.value
        except Exception as error:
            faults = [f"golden parts could not be checked ({type(error).__name__}: {error})"]
        self._steps = None
        self._schedule.done()
        self._set_fault(faults[0] if faults else None)
        for fault in faults:
            self._on_event("golden_failed", "error", fault)

    def _checks(self, products: list[Product]) -> Generator[None, None, list[str]]:
        faults = []
        for product in products:
            folder: Path = self._folder / product.name
            if product.loaded is not None and folder.is_dir():
                judge = functools.partial(judge_picture, product=product)
                report = yield from check(folder, judge)
                faults += [report.fault] if report.fault else []
        return faults


def judge_picture(image: NDArray[np.uint8], product: Product) -> Verdict:
    """What the line would say of this picture (H,W,3) BGR, without ledger or bus."""
    frame = Frame(image, None, "golden", time.monotonic_ns(), time.time_ns() // 1000, 0)
    ready = prepare(frame, product, live=False)
    if ready.refusal is not None:
        return ready.refusal.verdict
    return outcome(ready, infer([ready], product), product).verdict
