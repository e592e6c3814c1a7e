"""How a run differs from the settings, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass, field

from station.after import Totals
from station.inspection import Product
from station.parts import PartRecord
from station.settings import Settings, SourceSettings
from station.sources.base import Frame, Source


@dataclass
class Options:
    """How this run differs from the settings: replay, and what tests bring along."""

    simulated: bool = False
    threshold: float | None = None  # replay: what would have happened with this one
    engine: Callable[[Settings], "EngineSource"] | None = None
    source: Callable[[SourceSettings], Source] | None = None
    observers: bool = True
    ready_queue: int = 1  # one part prepared ahead: more only adds to the latency
    recipe_of: Callable[[Frame], str | None] | None = None  # replay: what a part was judged with
    listeners: list[Callable[[PartRecord], None]] = field(default_factory=list)


class EngineSource:
    """What Options.engine returns: gives products by recipe name (None = zero-shot)."""

    callers = 1  # threads that will call one product's engine at once, set by the daemon

    def product(self, name: str | None) -> Product:
        """The product ready to inspect."""
        raise NotImplementedError

    def prefix(self) -> str | None:
        """Path of the describer's prefix graph."""
        return None


@dataclass
class Outcome:
    """How a run ended. `fault`: the sentence of a source that failed for good, or None."""

    totals: Totals
    fault: str | None = None
    described: int = 0
    not_described: int = 0
    losses: dict[str, dict[str, int]] = field(default_factory=dict)  # of each lane, by cause
