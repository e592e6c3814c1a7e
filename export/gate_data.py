"""Where the gate's frames come from: folders of sets with an index.jsonl, or drawn parts.

Found and checked before anything is written; its identity is part of the build key, so that other
frames mean another build.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import EngineError

DRAWN = "drawn"
"""What `--data` says for drawn parts."""
USUAL = Path("../shared/data")
INDEX = "index.jsonl"
Row = dict[str, Any]
_KEYS: dict[str, type] = {"image": str, "normal": bool, "split": str}


@dataclass(frozen=True)
class GateData:
    """Sets to take frames from; none: parts are drawn.

    identity: sha256 over indexes and the sizes of the files they name; told: a sentence for the
    one who builds.
    """

    roots: tuple[Path, ...]
    identity: str
    told: str


def find_data(given: str | None) -> GateData:
    """The frames of `--data`: a folder of sets, one set, "drawn", or None for the usual place.

    Only the usual place may be missing (drawn parts then, and `told` says so); EngineError when a
    folder that was named is not there, holds no set, or an index is damaged.
    """
    if given == DRAWN:
        return GateData((), DRAWN, "gate frames: drawn parts, as asked for")
    folder = USUAL if given is None else Path(given)
    roots = _roots(folder)
    if roots:
        names = ", ".join(root.name for root in roots)
        return GateData(roots, _identity(roots), f"gate frames: {names} of {folder}")
    what = f"no set (SET/{INDEX})" if folder.is_dir() else "no folder"
    if given is None:
        told = f"gate frames: drawn parts, there is {what} at {folder}"
        return GateData((), DRAWN, told)
    raise EngineError(
        f"--data: {what} at {folder}; name a folder of sets, or give '--data {DRAWN}' for drawn "
        "parts"
    )


def _roots(folder: Path) -> tuple[Path, ...]:
    """The sets in `folder`, by name, or `folder` itself when it is one."""
    if (folder / INDEX).is_file():
        return (folder.resolve(),)
    return tuple(sorted(path.parent for path in folder.glob(f"*/{INDEX}")))


def read_rows(root: Path) -> list[Row]:
    """Rows of a set's index. EngineError names the line that cannot be used and why."""
    index = root / INDEX
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{index} cannot be read ({error}): correct or remove it") from error
    return [_row(line, f"{index}, line {number}") for number, line in enumerate(lines, 1)]


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise EngineError(f"{where}: {error}: correct that line") from error
    for key, kind in _KEYS.items():
        if not isinstance(row, dict) or not isinstance(row.get(key), kind):
            raise EngineError(
                f"{where}: '{key}' must be of type {kind.__name__}: correct that line"
            )
    if not isinstance(row.get("mask"), str | None):
        raise EngineError(f"{where}: 'mask' must be a path or null: correct that line")
    return dict(row)


def _identity(roots: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for root in roots:
        for line in _listing(root):
            digest.update(line.encode())
    return digest.hexdigest()


def _listing(root: Path) -> Iterator[str]:
    """Rows and sizes of files: hashing all pixels would take longer than an idle build."""
    yield f"set {root.name}\n"
    for row in read_rows(root):
        yield json.dumps(row, sort_keys=True) + "\n"
        for name in (row["image"], row.get("mask")):
            path = root / name if name else None
            size = path.stat().st_size if path is not None and path.is_file() else -1
            yield f"{name} {size}\n"
