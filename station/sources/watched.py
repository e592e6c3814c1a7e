"""A watched folder: pictures that are new, or that came again under a name known already.

A camera that writes `cam.png` over and over, or a counter that begins again at 1, must be seen
each time. Only folders whose own time changed are listed again; the files that are known are
looked at in turn, for some milliseconds a look: a tree of any size costs little.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PERIOD_S = 0.1  # between two looks
SETTLE_S = 0.2  # a file that still changes is being written: a copy is not a broken picture
_SLICE_S = 0.01  # of a look, for the files that are known
_RESTS = 4  # times as long as a look took, at least
_HOT_NS = 2_000_000_000  # file systems count time in ticks of up to 2 s: list such a folder again


class Key(NamedTuple):
    """What changes when a file is written again, replaced, or comes back."""

    mtime_ns: int
    size: int
    inode: int


def key_of(path: str | Path) -> Key | None:
    """None: there is no such file (any more)."""
    try:
        found = os.stat(path)  # noqa: PTH116 (no Path is made of each of many files)
    except OSError:
        return None
    return Key(found.st_mtime_ns, found.st_size, found.st_ino)


class WatchedFolder:
    """`look` often. `wanted(file name)` says which files count. Not thread-safe."""

    def __init__(self, folder: Path, wanted: Callable[[str], bool]) -> None:
        self._wanted = wanted
        self._root = str(folder)
        self._known: dict[str, dict[str, Key | None]] = {self._root: {}}  # None: not yet settled
        self._listed: dict[str, tuple[int, bool]] = {}  # (its mtime, hot) when listed last
        self._settling: dict[str, tuple[Key, float]] = {}  # since when it has this key
        self._turn: Iterator[None] = iter(())
        self._next_look = 0.0

    def present(self) -> list[Path]:
        """All that are there, at once, sorted: what a station begins with."""
        self._list_if_changed(self._root)
        found = sorted(self._settled(time.monotonic() + SETTLE_S))
        return [Path(name) for name in found]

    def look(self) -> list[Path]:
        """Pictures that came or changed and are no longer being written, sorted."""
        start = time.monotonic()
        if start < self._next_look:
            return []
        if key_of(self._root) is None:
            return []  # a share that is away for a while: nothing of it is gone or new
        for folder in list(self._known):
            self._list_if_changed(folder)
        self._go_on(start + _SLICE_S)
        found = sorted(self._settled(time.monotonic()))
        now = time.monotonic()
        self._next_look = now + max(PERIOD_S, _RESTS * (now - start))
        return [Path(name) for name in found]

    def _list_if_changed(self, folder: str) -> None:
        own = key_of(folder)
        if own is None:
            self._known.pop(folder, None)
            self._listed.pop(folder, None)
        elif self._listed.get(folder) != (own.mtime_ns, False):
            hot = abs(time.time_ns() - own.mtime_ns) < _HOT_NS
            self._listed[folder] = own.mtime_ns, hot
            self._list(folder)

    def _list(self, folder: str) -> None:
        """Take in names that are new, forget those that are gone."""
        before, now = self._known.get(folder, {}), dict[str, Key | None]()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path not in self._known:
                            self._known[entry.path] = {}
                            self._list_if_changed(entry.path)
                    elif self._wanted(entry.name) and entry.is_file():
                        now[entry.name] = before.get(entry.name)
        except OSError:  # gone, or not ours to read: looked at again when it changes
            return
        self._known[folder] = now
        for name in now.keys() - before.keys():
            self._changed(f"{folder}/{name}")

    def _changed(self, path: str) -> None:
        key = key_of(path)
        if key is not None:
            self._settling[path] = key, time.monotonic()

    def _go_on(self, end: float) -> None:
        """Look at known files until `end`, where the last look left off; at each once at most."""
        if next(self._turn, self) is self:
            self._turn = self._each_known()
        for _ in self._turn:
            if time.monotonic() >= end:
                return

    def _each_known(self) -> Iterator[None]:
        for folder in list(self._known):
            for name in list(self._known.get(folder, ())):
                known = self._known.get(folder, {}).get(name)
                path = f"{folder}/{name}"
                if known is not None and path not in self._settling and key_of(path) != known:
                    self._changed(path)
                yield

    def _settled(self, now: float) -> Iterator[str]:
        for path, (key, since) in list(self._settling.items()):
            current = key_of(path)
            folder, _, name = path.rpartition("/")
            if current is None or name not in self._known.get(folder, ()):
                del self._settling[path]  # it comes again as a new name
                self._known.get(folder, {}).pop(name, None)
                self._listed.pop(folder, None)
            elif current != key:
                self._settling[path] = current, now
            elif now - since >= SETTLE_S:
                del self._settling[path]
                self._known[folder][name] = key
                yield path
