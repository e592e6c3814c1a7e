"""How a simulated PLC reaches a station: the interface both ways (ISP/1, Modbus) share."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from station.simplc_script import Fault


class State(StrEnum):
    """What became of a part, as the PLC saw it."""

    VERDICT = "verdict"
    REFUSED = "refused"  # busy, not_ready, duplicate, overrun, bad_id ...
    MISSING = "missing"  # no answer in time, or no connection
    MISSED = "missed"  # the line had moved on before the PLC could trigger


@dataclass(frozen=True, slots=True)
class Answer:
    """The PLC's view of one part. `passed` is the only thing that lets it through."""

    state: State
    trigger_id: str = ""
    passed: bool = False
    verdict: str = ""
    reason: str = ""
    accepted: bool | None = None  # None: this way does not tell
    epoch: str = ""
    seq: int = 0
    ms: float = 0.0


class Driver(Protocol):
    """One way to reach a station. No method but `open` raises: a PLC must go on."""

    def open(self, timeout_s: float) -> None:
        """Wait until the station is READY; StationError if it is not in time."""
        ...

    def inspect(self, trigger: int, part_id: str, fault: Fault | None = None) -> list[Answer]:
        """Answers for the part: one, or two where a fault triggers twice."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...
