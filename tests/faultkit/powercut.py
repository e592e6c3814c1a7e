"""What a disk holds after the power went: replay of a write log, without what was not synced.

`powercut.c` writes down every change in order. `disk_at` rebuilds the files as they would be found
after a cut behind a record: what a completed fsync covers is there; every later write to the file
is, at random, there, not there, or torn at a sector; a name made or removed since the last sync of
its folder may be as before. That is harsher than any journaling file system.
"""

import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
SOURCE = Path(__file__).with_name("powercut.c")


def build_witness(folder: Path) -> Path | None:
    """Compile the LD_PRELOAD library; None without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    target = folder / "powercut.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", target, SOURCE, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return target


@dataclass(frozen=True)
class Change:
    """One record of the log."""

    op: str
    path: str
    offset: int
    data: bytes


def read_log(log: Path) -> list[Change]:
    """All whole records, in order."""
    raw, at, changes = log.read_bytes(), 0, []
    while (end := raw.find(b"\n", at)) >= 0:
        op, path, offset, length = _head(raw[at:end])
        data = raw[end + 1 : end + 1 + length]
        if len(data) < length:
            break
        changes.append(Change(op, path, offset, data))
        at = end + 1 + length
    return changes


def _head(line: bytes) -> tuple[str, str, int, int]:
    first, _, rest = line.decode().partition(" ")
    path, offset, length = rest.rsplit(" ", 2)
    return first, path, int(offset), int(length)


class _File:
    """Durable bytes of one file and what was done to it since its last sync."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[Change] = []

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change.op, change.offset, change.data)
        self.pending.clear()

    def after_cut(self, chance: random.Random) -> bytes:
        """Each write since the last sync: lost, whole, or torn at a sector, independently."""
        found, mood = bytearray(self.durable), chance.random()
        for change in self.pending:
            fate = chance.random() if mood > 0.3 else 0.0  # now and then all of it is lost
            if fate < 0.4:
                continue
            data = change.data
            if fate < 0.6 and len(data) > SECTOR:
                data = data[: SECTOR * chance.randrange(1, -(-len(data) // SECTOR))]
            _apply(found, change.op, change.offset, data)
        return bytes(found)


def _apply(content: bytearray, op: str, offset: int, data: bytes) -> None:
    if op == "truncate":
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset + len(data):
        content.extend(bytes(offset + len(data) - len(content)))
    content[offset : offset + len(data)] = data


def disk_at(changes: list[Change], root: Path, chance: random.Random) -> dict[str, bytes]:
    """path -> bytes after a cut behind the last of `changes`. `root` is the folder observed."""
    files: dict[str, _File] = {}
    durable_names: dict[str, _File] = {}
    for change in changes:
        if change.op == "create":
            files[change.path] = _File()
        elif change.op == "unlink":
            files.pop(change.path, None)
        elif change.op == "rename":
            files[change.data.decode()] = files.pop(change.path)
        elif change.op == "sync" and Path(change.path) == root:
            durable_names = dict(files)
        elif change.op == "sync":
            files[change.path].sync()
        else:
            files[change.path].pending.append(change)
    names = files if chance.random() < 0.5 else durable_names
    return {path: file.after_cut(chance) for path, file in names.items()}
