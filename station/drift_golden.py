"""Golden parts: known good and known bad pictures that must still get their verdicts.

`golden/<recipe>/good` and `golden/<recipe>/bad` hold pictures. On a schedule each of them goes
through the very engine and recipe that judge the line; a good one that is not OK or a bad one that
is OK takes READY away until a later check passes. Drift is told by statistics, this by example.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from station.schema import Verdict
from station.sources.decode import decode
from station.sources.folder import PICTURES

Judge = Callable[[NDArray[np.uint8]], Verdict]


@dataclass(frozen=True)
class Wrong:
    """A golden part with the wrong verdict."""

    name: str
    good: bool
    verdict: str

    def __str__(self) -> str:
        return f"{self.name} is known {'good' if self.good else 'bad'} and was {self.verdict}"


@dataclass(frozen=True)
class GoldenReport:
    """One check. `fault` is the sentence for READY, None when all is well."""

    checked: int
    wrong: tuple[Wrong, ...]

    @property
    def fault(self) -> str | None:
        """At most three parts are named."""
        if not self.wrong:
            return None
        named = "; ".join(str(part) for part in self.wrong[:3])
        return f"golden parts: {len(self.wrong)} of {self.checked} wrong: {named}"


def golden_parts(folder: Path) -> list[tuple[Path, bool]]:
    """(picture, known good?) of a golden folder, sorted; empty when there is none."""
    found = []
    for name, good in (("good", True), ("bad", False)):
        inside = folder / name
        files = sorted(inside.iterdir()) if inside.is_dir() else []
        found += [(path, good) for path in files if path.suffix.lower() in PICTURES]
    return found


def check(folder: Path, judge: Judge) -> Generator[None, None, GoldenReport]:
    """Judge golden parts, one a step; the report is what the generator returns.

    A picture that cannot be read or judged is wrong: it proves nothing. `judge` must use the line's
    own engine without disturbing it: an engine session serves one thread, so step where the line's
    parts are judged, between two of them.
    """
    parts = golden_parts(folder)
    wrong = []
    for path, good in parts:
        verdict = _verdict(path, judge)
        if verdict != (Verdict.OK if good else Verdict.NG).value:
            wrong.append(Wrong(path.name, good, verdict))
        yield
    return GoldenReport(len(parts), tuple(wrong))


def _verdict(path: Path, judge: Judge) -> str:
    try:
        image, fault = decode(path.read_bytes())
        return judge(image).value if image is not None else f"unreadable ({fault})"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    except Exception as error:  # the engine's or a recipe's fault: the check has failed, not ended
        return f"not judged ({type(error).__name__}: {error})"


class GoldenSchedule:
    """When the next check is due; a recipe change makes it due at once."""

    def __init__(
        self, every_s: float, clock: Callable[[], float] = time.monotonic, first: bool = True
    ) -> None:
        self._every_s = every_s
        self._clock = clock
        self._due = clock() if first else clock() + every_s

    def due(self) -> bool:
        """Whether it is time; asking does not change it."""
        return self._clock() >= self._due

    def overdue(self) -> bool:
        """Whether a busy line has put it off for a whole period: then it does not wait."""
        return self._clock() >= self._due + self._every_s

    def done(self) -> None:
        """A check has ended."""
        self._due = self._clock() + self._every_s

    def at_once(self) -> None:
        """The recipe, engine or camera changed."""
        self._due = self._clock()
