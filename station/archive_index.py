"""Where each archived part lies: an index on disk, so that a full archive costs no memory.

Rebuilt from the files at every start, so it can never be stale: the files are the truth.
"""

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from station.record_budget import Unit

SUFFIXES = (".json", ".jpg", ".png", ".map.png", ".desc.json")
_STEM = re.compile(r"\d{16}_[0-9a-f]{16}")  # what the archive itself has written
TABLE = """
CREATE TABLE parts (kind TEXT, n INTEGER, day TEXT, name TEXT, trigger_id TEXT, size INTEGER,
                    PRIMARY KEY (kind, n)) WITHOUT ROWID;
CREATE INDEX by_trigger ON parts (trigger_id);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One archived part: `stem` + suffix are its files."""

    kind: str
    folder: Path
    name: str

    @property
    def stem(self) -> Path:
        """Path of its files without suffix."""
        return self.folder / self.name

    @property
    def trigger_id(self) -> str:
        """The part's trigger id, from the file name."""
        return self.name.rpartition("_")[2]

    def files(self) -> list[Path]:
        """The files that exist."""
        paths = [self.folder / (self.name + suffix) for suffix in SUFFIXES]
        return [path for path in paths if path.exists()]

    def read(self, suffix: str) -> bytes | None:
        """One of its files, or None."""
        path = self.folder / (self.name + suffix)
        return path.read_bytes() if path.exists() else None

    @property
    def picture(self) -> Path | None:
        """The frame's file."""
        for suffix in (".jpg", ".png"):
            path = self.folder / (self.name + suffix)
            if path.exists():
                return path
        return None


def entries(folder: Path, kind: str) -> list[Entry]:
    """The archived parts of a class, oldest first (their names begin with the time)."""
    found = (entry for entry, _size, whole in _found(folder / kind) if whole)
    return sorted(found, key=lambda e: e.name)


def _found(folder: Path) -> Iterator[tuple[Entry, int, bool]]:
    """Entries below one class's folder, day after day: the bytes of their files, and whether they
    are whole (one that is not is being written, or its writer was killed or the disk full)."""
    days = sorted(folder.iterdir()) if folder.is_dir() else []
    for day in (d for d in days if d.is_dir()):
        sizes: dict[str, int] = {}
        whole: set[str] = set()  # with its .json, which is written last, an entry exists
        for file in _files(day):
            name, _, suffix = file.name.partition(".")
            with suppress(OSError):  # deleted meanwhile: the station keeps its budgets
                sizes[name] = sizes.get(name, 0) + file.stat().st_size
                if suffix == "json":
                    whole.add(name)
        for name in sorted(sizes):
            yield Entry(folder.name, day, name), sizes[name], name in whole


def _files(day: Path) -> Iterator[os.DirEntry[str]]:
    """The files of a day; none where it is gone meanwhile or may not be read."""
    try:
        with os.scandir(day) as files:
            yield from files
    except OSError:
        return


class Queue:
    """The parts of one class, oldest first: what `record_budget.Units` asks for."""

    def __init__(self, index: "ArchiveIndex", kind: str) -> None:
        self._index, self._kind = index, kind
        ((self._count, self.used),) = index.run(
            "SELECT count(*), coalesce(sum(size), 0) FROM parts WHERE kind=?", kind
        )

    def __len__(self) -> int:
        return self._count

    def append(self, unit: Unit) -> None:
        """The youngest: `unit.name` is its stem below the archive's folder."""
        _kind, day, name = unit.name.split("/")
        self._index.add(self._kind, day, name, unit.size)
        self._count += 1

    def popleft(self) -> Unit:
        """Forget the oldest. IndexError: there is none."""
        day, name, size = self._index.run(
            "DELETE FROM parts WHERE kind=?1 AND n=(SELECT min(n) FROM parts WHERE kind=?1)"
            " RETURNING day, name, size",
            self._kind,
        )[0]
        self._count -= 1
        return Unit(f"{self._kind}/{day}/{name}", size)


class ArchiveIndex:
    """Entries by trigger id, and each class's queue of them; any thread.

    A file of its own in the archive's folder, unlinked as soon as it is open: nothing to clean up
    after `kill -9`, nothing that could be stale. OSError: it cannot be written (a full disk).
    """

    def __init__(self, folder: Path, kinds: tuple[str, ...]) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._db = _open(folder)
        self._next = 0
        self.run("BEGIN")
        for kind in kinds:
            for entry, size, whole in _found(folder / kind):
                if whole:
                    self.add(kind, entry.folder.name, entry.name, size)
                elif _STEM.fullmatch(entry.name):
                    _forget(entry)
        self.run("COMMIT")

    def add(self, kind: str, day: str, name: str, size: int) -> None:
        """Take in the youngest part of a class."""
        self._next += 1
        trigger_id = name.rpartition("_")[2]
        row = (kind, self._next, day, name, trigger_id, size)
        self.run("INSERT INTO parts VALUES (?,?,?,?,?,?)", *row)

    def enlarge(self, entry: Entry, size: int) -> None:
        """Its files have got `size` more bytes. OSError: see `run`."""
        where = (entry.kind, entry.trigger_id, entry.name)
        self.run(
            "UPDATE parts SET size=size+? WHERE kind=? AND trigger_id=? AND name=?", size, *where
        )

    def find(self, trigger_id: str) -> Entry | None:
        """The youngest part of that trigger."""
        rows = self.run(
            "SELECT kind, day, name FROM parts WHERE trigger_id=? ORDER BY n DESC LIMIT 1",
            trigger_id,
        )
        return Entry(rows[0][0], self.folder.joinpath(*rows[0][:2]), rows[0][2]) if rows else None

    def run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of one statement. OSError: it failed."""
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OSError(f"its index: {error}") from error

    def close(self) -> None:
        """Give its space back."""
        self._db.close()


def _forget(entry: Entry) -> None:
    """Delete half a part: nothing counts it, nobody can ask for it."""
    with suppress(OSError):
        for path in entry.files():
            path.unlink()


def _open(folder: Path) -> sqlite3.Connection:
    """An empty index beside the parts; in memory where that folder cannot be written (yet)."""
    path = folder / f".index-{os.getpid()}-{time.monotonic_ns():x}.db"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        db = _with_table(str(path))
        path.unlink()
    except (OSError, sqlite3.Error):
        with suppress(OSError):
            path.unlink()
        return _with_table(":memory:")
    return db


def _with_table(name: str) -> sqlite3.Connection:
    db = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
    # Losing it loses nothing: no fsync, a rollback journal in memory, 256 KiB of cache.
    for pragma in ("synchronous=OFF", "journal_mode=MEMORY", "cache_size=-256"):
        db.execute(f"PRAGMA {pragma}")
    db.executescript(TABLE)
    return db
