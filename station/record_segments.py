"""The files of one recording class: rotated by size, kept within their byte budget."""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from station.record_budget import Budget, Unit, free_bytes
from station.record_mcap import SUMMARY, McapFile
from station.record_stream import SyncedStream

Clock = Callable[[], float]
Identity = Callable[[], dict[str, str]]  # of the station, asked for each file anew
Free = Callable[[Path], int]


def _units(folder: Path, kind: str) -> list[Unit]:
    """What is there of this class, oldest first, with what recovery set aside or had to leave."""
    files = sorted(folder.glob(f"rec-*-{kind}.mcap*"))
    return [Unit(file.name, file.stat().st_size) for file in files]


class Segments:
    """Files `rec-<UTC time>-<kind>.mcap` in `folder`, at most `limit` bytes of them together."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        limit: int,
        file_bytes: int,
        min_free: int,
        identity: Identity,
        clock: Clock = time.monotonic,
        free: Free = free_bytes,
    ) -> None:
        self.folder = folder
        self.kind = kind
        # A quarter: with fewer, larger files the oldest could be most of what there is.
        self._file_bytes = max(1, min(file_bytes, limit // 4))
        self._identity = identity
        self._clock = clock
        self._file: McapFile | None = None
        self._counted = 0
        units = deque(_units(folder, kind))
        used = sum(unit.size for unit in units)
        self.budget = Budget(limit, self._remove, units, used, min_free, lambda: free(folder))

    def write(self, size: int, put: Callable[[McapFile], None]) -> bool:
        """Let `put` write about `size` bytes; False when there is no room. OSError passes."""
        if self._file is not None and self._file.size + size > self._file_bytes:
            self.rotate()
        if not self.budget.room(size + SUMMARY):
            return False
        try:
            put(self._current())
        except OSError:
            self._abandon()
            raise
        self._count()
        return True

    def sync_if_due(self) -> None:
        """Make the last second durable. OSError passes, the file is left for recovery."""
        if self._file is None or not self._file.sync_due():
            return
        try:
            self._file.sync()
        except OSError:
            self._abandon()
            raise
        self._count()

    def rotate(self) -> None:
        """Close the file that is being written, if any. OSError passes."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.finish()
        except OSError:
            file.stream.abandon()
            raise
        finally:
            self.budget.close(Unit(file.stream.path.name, file.stream.size))
            self._counted = 0

    def _current(self) -> McapFile:
        if self._file is None:
            name = datetime.now(UTC).strftime("rec-%Y%m%dT%H%M%S%f") + f"-{self.kind}.mcap"
            self._file = McapFile(SyncedStream(self.folder / name, self._clock), self._identity())
        return self._file

    def _count(self) -> None:
        assert self._file is not None
        size = self._file.size
        self.budget.grow(size - self._counted)
        self._counted = size

    def _abandon(self) -> None:
        if self._file is not None:
            self._file.stream.abandon()
            self.budget.close(Unit(self._file.stream.part.name, self._file.stream.size))
        self._file, self._counted = None, 0

    def _remove(self, unit: Unit) -> None:
        (self.folder / unit.name).unlink(missing_ok=True)
