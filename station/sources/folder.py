"""A folder of pictures, or a list of them: every file is one part, in sorted order.

Files are read as bytes and decoded later, off the verdict path; a file that is no picture is a
frame with a fault, so that its part becomes ERROR/camera and the run goes on.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from engines.errors import SourceError
from station.settings import SourceSettings
from station.sources.base import EndOfSource, Frame
from station.sources.decode import digest
from station.sources.watched import PERIOD_S, SETTLE_S, Key, WatchedFolder, key_of

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def is_picture(name: str) -> bool:
    """By its file name; hidden files are none."""
    return Path(name).suffix.lower() in PICTURES and not name.startswith(".")


def pictures(path: Path) -> list[Path]:
    """Picture files of a folder (recursively), or those that a list file names; sorted.

    A .txt list holds one path a line, a .jsonl list one object with "image" a line, both relative
    to the list; lists keep their own order.
    """
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if is_picture(p.name) and p.is_file())
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = [json.loads(s)["image"] for s in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"source {path}: not a readable list of pictures ({error})") from None
    return [path.parent / name.strip() for name in names]


class FolderSource:
    """Ends after the last file, unless `watch` (wait for more) or `loop` (begin again)."""

    live = False

    def __init__(self, path: Path, settings: SourceSettings) -> None:
        self.path = path
        self.settings = settings
        self.ends = not (settings.watch or settings.loop)
        self._pace_ns = int(1e9 / settings.fps) if settings.fps else 0
        self._next_ns = 0
        self._index = 0
        self._watched: WatchedFolder | WatchedList | None = None
        self._files: Iterator[Path] = iter(())

    def open(self) -> None:
        """List the folder. Raises SourceError when it is missing or has no pictures (a watched one
        may be empty)."""
        if not self.path.exists():
            raise SourceError(f"source {self.path}: no such folder; check the path")
        if self.settings.watch:
            made = WatchedFolder(self.path, is_picture) if self.path.is_dir() else None
            self._watched = made or WatchedList(self.path)
            self._files = iter(self._watched.present())
            return
        files = pictures(self.path)
        if not files:
            raise SourceError(
                f"source {self.path}: no pictures in it ({', '.join(sorted(PICTURES))})"
            )
        self._files = iter(files)

    def read(self, timeout_s: float) -> Frame | None:
        """The next file's bytes; None after `timeout_s` without one (watch), EndOfSource."""
        if not self._wait_pace(timeout_s):
            return None
        path = next(self._files, None)
        if path is None:
            path = self._more(timeout_s)
            if path is None:
                return None
        return self._frame(path)

    def _wait_pace(self, timeout_s: float) -> bool:
        """Whether it is time for the next frame at `fps` (0: always)."""
        if not self._pace_ns:
            return True
        now = time.monotonic_ns()
        self._next_ns = self._next_ns or now
        wait = self._next_ns - now
        if wait > timeout_s * 1e9:
            time.sleep(timeout_s)
            return False
        if wait > 0:
            time.sleep(wait / 1e9)
        self._next_ns = max(self._next_ns + self._pace_ns, now)
        return True

    def _more(self, timeout_s: float) -> Path | None:
        if self._watched is not None:
            end = time.monotonic() + timeout_s
            while not (new := self._watched.look()) and (left := end - time.monotonic()) > 0:
                time.sleep(min(left, PERIOD_S))
            self._files = iter(new)
            return next(self._files, None)
        if self.settings.loop:
            self._files = iter(pictures(self.path))
        else:
            raise EndOfSource
        return next(self._files, None)

    def _frame(self, path: Path) -> Frame:
        fault, raw, name = None, b"", printable(path.name)
        try:
            raw = path.read_bytes()
        except OSError as error:
            fault = f"{name}: cannot be read ({error.strerror})"
        self._index += 1
        return Frame(
            image=None,
            raw=raw,
            name=name,
            t_capture_ns=time.monotonic_ns(),
            wall_us=time.time_ns() // 1000,
            index=self._index,
            fault=fault,
            digest=digest(raw),
        )

    def close(self) -> None:
        """Nothing is held open."""


def printable(name: str) -> str:
    """A file name with `_` for what no message, label or journal can hold: control characters, and
    bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "_" for c in name)


class WatchedList:
    """The files of a list that were added to it, or changed, and are no longer being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before: dict[Path, Key | None] = {}  # at the last look
        self._given: dict[Path, Key | None] = {}
        self._next_look = 0.0

    def present(self) -> list[Path]:
        """All of them, as they are now. SourceError: the list cannot be read."""
        self._given = self._before = {path: key_of(path) for path in pictures(self._path)}
        return list(self._given)

    def look(self) -> list[Path]:
        """In the order of the list. SourceError: it cannot be read."""
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + SETTLE_S
        keys = {path: key_of(path) for path in pictures(self._path)}
        still = [p for p, key in keys.items() if p in self._before and self._before[p] == key]
        new = [p for p in still if p not in self._given or self._given[p] != keys[p]]
        self._before = keys
        self._given = {p: k for p, k in self._given.items() if p in keys} | {
            p: keys[p] for p in new
        }
        return new
