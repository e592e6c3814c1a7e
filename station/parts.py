"""A part on its way through the station, and what observers get when it is done."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.facts import Region
from engines.preprocess import Box
from station.schema import Result
from station.sources.base import Frame


@dataclass(slots=True)
class Part:
    """An accepted trigger. Times ending in _ns are monotonic, in _us wall labels."""

    trigger_id: str
    part_id: str
    t_trigger_ns: int
    t_trigger_us: int
    deadline_ns: int
    attempt: int = 1
    camera: str = ""
    handle: Any = None  # the ledger's PartHandle
    on_result: Callable[[bytes], None] | None = None  # answers the client that triggered
    frame: Frame | None = None
    times: dict[str, int] = field(default_factory=dict)  # monotonic ns: taken, prepared, inferred


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What recorder, archive and metrics see. `body` is the ledger row, byte for byte.

    map: f32 (h,w) over the inspected region, None where no engine answered.
    """

    frame: Frame | None
    body: bytes
    result: Result
    map: NDArray[np.float32] | None
    regions: tuple[Region, ...]
    region_box: Box | None
    threshold: float | None


class PartObserver(Protocol):
    """In-process consumer of finished parts: called from the observer thread, never the hot path.

    It may be slow (its queue drops, and the drop is counted) and may raise (it is then logged and
    switched off): verdicts do not wait for it.
    """

    def part(self, record: PartRecord) -> None:
        """One finished part."""
        ...

    def close(self) -> None:
        """Flush; called once at shutdown."""
        ...
