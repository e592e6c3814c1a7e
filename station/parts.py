"""A part on its way through the station, and what observers get when it is done."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.facts import Region
from engines.preprocess import Box
from station.inspection import Judged, Prepared, Product
from station.ledger_types import Committed
from station.schema import Opening, Result
from station.sources.base import Frame


@dataclass(slots=True, eq=False)
class Part:
    """An accepted trigger; its PENDING row is durable. Times ending in _ns are monotonic."""

    opening: Opening
    part_id: str
    attempt: int
    product: Product
    lane: str = ""
    frame: Frame | None = None
    prepared: Prepared | None = None
    judged: Judged | None = None
    taken_ns: int = 0
    ready_ns: int = 0
    infer_ns: int = 0
    turn: int = 0  # place in the order in which parts were taken to the engine
    done: bool = False  # a verdict is durable, or can no longer be: nobody waits for it
    committed: Committed | None = None

    @property
    def trigger_id(self) -> str:
        """The id all answers are paired by."""
        return self.opening.trigger_id

    @property
    def deadline_ns(self) -> int:
        """Monotonic time at which UNDECIDED/deadline is committed."""
        return self.opening.deadline_ns


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What recorder, archive and metrics see. `body` is the ledger row, byte for byte.

    map: f32 (h,w) over the inspected region, None where no engine answered. level: of the map,
    above which the regions lie (of a part that is not OK: half its peak), None without regions.
    """

    frame: Frame | None
    body: bytes
    result: Result
    map: NDArray[np.float32] | None
    regions: tuple[Region, ...]
    region_box: Box | None
    threshold: float | None
    level: float | None = None

    @property
    def alarm_level(self) -> float:
        """Of the map: what is above it is drawn as suspicious. The regions' own level, so that
        heat, outline and boxes of a reject are the same places; else the threshold."""
        known = [v for v in (self.level, self.threshold) if v is not None and v > 0]
        return known[0] if known else 0.5


class PartObserver(Protocol):
    """In-process consumer of finished parts: called from its own thread, never the hot path.

    It may be slow (its queue drops, and the drop is counted) and may raise (that part is then left
    out, counted and told): verdicts do not wait for it. Optional besides `part` and `close`:
    `frame(Frame)` for frames that belong to no part, `message(stream, body)` for descriptions and
    events, and `tick()` about four times a second.
    """

    def part(self, record: PartRecord) -> None:
        """One finished part."""
        ...

    def close(self) -> None:
        """Flush; called once at shutdown."""
        ...
