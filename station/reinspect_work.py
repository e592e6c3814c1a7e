"""One worker of a re-inspection: the station's own steps from bytes to verdict."""

import time
from collections.abc import Sequence
from typing import Any

import cv2

from engines.errors import StationError
from station.boot import EngineRoom
from station.inspection import Judged, Product, infer, outcome, prepare, refuse
from station.reinspect_items import Item
from station.schema import Reason, Verdict
from station.settings import Settings
from station.sources.base import Frame

Row = dict[str, Any]
_worker: Product | None = None


def open_product(settings: Settings) -> Product:
    """The recipe on its engine, as `station run` opens it."""
    return EngineRoom(settings).product(settings.recipe.name)


def set_up(settings: Settings) -> None:
    """Once per worker process."""
    global _worker  # noqa: PLW0603 - the process pool offers no other place
    cv2.setNumThreads(1)  # processes are the parallelism here
    _worker = open_product(settings)


def work(batch: Sequence[Item]) -> list[Row]:
    """Rows of a batch, in its order (in a process that was `set_up`)."""
    assert _worker is not None
    return [inspect(item, _worker) for item in batch]


def inspect(item: Item, product: Product) -> Row:
    """Verdict of one picture as a row of the report."""
    judged = _judged(item, product)
    row: Row = {
        "picture": item.key,
        "verdict": str(judged.verdict),
        "reason": str(judged.reason),
        "score": judged.score,
        "regions": [[r.x, r.y, r.w, r.h] for r in judged.regions],
    }
    if judged.text:
        row["text"] = judged.text
    if item.was is not None:
        row["was"] = {"verdict": item.was[0], "score": item.was[1]}
    return row


def _judged(item: Item, product: Product) -> Judged:
    now = time.monotonic_ns()
    try:
        raw = item.path.read_bytes()
        frame = Frame(None, raw, item.key, now, time.time_ns() // 1000, 0, None)
        prepared = prepare(frame, product, live=False)
    except OSError as error:
        return refuse(Verdict.ERROR, Reason.CAMERA, f"cannot be read ({error.strerror})")
    except (StationError, ValueError, ArithmeticError) as error:
        return refuse(Verdict.ERROR, Reason.CAMERA, str(error))
    if prepared.refusal is not None:
        refusal = prepared.refusal
        return refuse(refusal.verdict, refusal.reason, refusal.text)
    try:
        return outcome(prepared, infer([prepared], product), product)
    except Exception as error:  # as in the station: whatever the engine does is this part's verdict
        return refuse(Verdict.ERROR, Reason.INFER, f"{type(error).__name__}: {error}")
