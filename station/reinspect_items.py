"""What a re-inspection looks at: pictures of folders and archives, and what was said of them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import SourceError, UsageError
from station.sources.folder import pictures


@dataclass(frozen=True)
class Item:
    """One picture. `key`: its path below what was named, unique and stable; `was`: the verdict and
    score an archive holds beside it, None elsewhere."""

    key: str
    path: Path
    was: tuple[str, float | None] | None = None


def _archived(path: Path) -> tuple[str, float | None] | None:
    """(verdict, score) of the archive's `.json` beside a picture, None without one."""
    body = path.with_suffix(".json")
    if not body.exists():
        return None
    try:
        result = json.loads(body.read_text(encoding="utf-8"))
        return str(result["verdict"]), result.get("score")
    except (ValueError, KeyError, OSError) as error:
        raise SourceError(f"{body}: not a result of the archive ({error}); remove it") from error


def _below(root: Path) -> list[tuple[str, Path]]:
    if root.suffix == ".mcap":
        raise UsageError(f"{root}: a recording is inspected again with 'station replay {root}'")
    if not root.exists():
        raise SourceError(f"{root}: no such folder or list; check the path")
    found = [p for p in pictures(root) if not p.name.endswith(".map.png")]
    base = root if root.is_dir() else root.parent
    return [(p.relative_to(base).as_posix() if base in p.parents else str(p), p) for p in found]


def items(roots: Sequence[Path]) -> list[Item]:
    """Every picture below the roots (folders, archives, list files), in sorted order of keys.

    With several roots a key begins with its root's name. Raises SourceError when a root is missing
    or nothing is found, UsageError when two pictures would share a key.
    """
    found: dict[str, Item] = {}
    for root in roots:
        for name, path in _below(root):
            key = name if len(roots) == 1 else f"{root.name}/{name}"
            if key in found:
                raise UsageError(f"{path} and {found[key].path} are both '{key}': name one only")
            found[key] = Item(key, path, _archived(path))
    if not found:
        raise SourceError(f"no pictures in {', '.join(map(str, roots))}")
    return [found[key] for key in sorted(found)]


def shard(all_items: Sequence[Item], text: str | None) -> list[Item]:
    """The share `i/n` (1 <= i <= n) of the items: every n-th, so that shares cost alike.

    Raises UsageError for anything else.
    """
    if text is None:
        return list(all_items)
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UsageError(f"--shard {text}: say i/n with 1 <= i <= n, such as 2/5")
    return list(all_items[int(number) - 1 :: int(of)])


def chunks(work: Iterable[Item], size: int) -> Iterable[list[Item]]:
    """Lists of up to `size` items, in order."""
    batch: list[Item] = []
    for item in work:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
