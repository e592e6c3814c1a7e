"""Byte budgets per class, enforced before a write: the oldest of the same class goes first.

One class never eats another's room, so a flood of good parts cannot push out the one reject that
matters. Below the floor of free disk space nothing is written at all: verdicts need that room.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Unit:
    """What is deleted together: a recording, or the files of one archived part."""

    name: str
    size: int


@dataclass
class BudgetState:
    """Counters for events and metrics."""

    used: int = 0
    removed: int = 0
    refused: int = 0


def free_bytes(folder: Path) -> int:
    """Free space of the file system that holds `folder` (or its nearest existing parent)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class Units(Protocol):
    """What is there already, oldest first: a deque, or a queue on disk."""

    def __len__(self) -> int: ...

    def append(self, unit: Unit, /) -> None:
        """The youngest."""

    def popleft(self) -> Unit:
        """Take out the oldest."""


class Budget:
    """Room of one class. `units` are those already there, of `used` bytes together."""

    def __init__(
        self,
        limit: int,
        remove: Callable[[Unit], None],
        units: Units,
        used: int,
        floor: int = 0,
        free: Callable[[], int] = lambda: 1 << 62,
    ) -> None:
        self._limit = limit
        self._remove = remove
        self._floor = floor
        self._free = free
        self._units = units
        self._open = 0
        self.state = BudgetState(used=used)

    def room(self, size: int) -> bool:
        """Make room for `size` more bytes, deleting oldest units; False: do not write."""
        if size + self._open > self._limit or not self._reachable(size):
            self.state.refused += 1
            return False
        while self._units and not self._fits(size):
            unit = self._units.popleft()
            self._remove(unit)
            self.state.used -= unit.size
            self.state.removed += 1
        if self._fits(size):
            return True
        self.state.refused += 1
        return False

    def grow(self, size: int) -> None:
        """Account for bytes of a unit still being written (a `.part`)."""
        self._open += size
        self.state.used += size

    def close(self, unit: Unit) -> None:
        """The unit being written is whole: from now on it may be deleted."""
        self.state.used += unit.size - self._open
        self._open = 0
        self._units.append(unit)

    def add(self, unit: Unit) -> None:
        """Account for a unit that was written at once. OSError of `units`: it is not counted."""
        self._units.append(unit)
        self.state.used += unit.size

    def enlarge(self, size: int) -> None:
        """A unit that is there already has got `size` more bytes (fewer: negative)."""
        self.state.used += size

    def _reachable(self, size: int) -> bool:
        """Whether deleting all of this class would lift the disk above its floor. If another
        program fills it, what is recorded stays: its loss would help nobody."""
        own = self.state.used - self._open
        return self._free() + own - size >= self._floor

    def _fits(self, size: int) -> bool:
        return self.state.used + size <= self._limit and self._free() - size >= self._floor
