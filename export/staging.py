"""A bundle is built beside the place where it will be, and moved there when it has proved itself.

So a build that fails or is broken off leaves the bundle that was there as it was.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.bundle import MANIFEST
from engines.errors import EngineError


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """An empty folder on the disk of `out`, gone afterwards. EngineError when none can be made."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Inside a folder that is there: it may be a disk of its own.
        place = out if out.is_dir() else out.parent
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=place))
    except OSError as error:
        raise EngineError(
            f"--out: no folder can be made in {out.parent} ({error.strerror}); choose another place"
        ) from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def install(work: Path, out: Path, names: Iterable[str]) -> None:
    """Move `names` and, last, the manifest from `work` to `out`; drop what the old one had more.

    Files that belong to no manifest stay (a model card). Each file appears whole: a move of the
    bundle's files that is broken off leaves one that is refused by its hashes and built again.
    EngineError when a file cannot be moved.
    """
    kept = list(names)
    old = _listed(out)
    try:
        for name in [*kept, MANIFEST]:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).replace(out / name)
        for name in old - set(kept):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(
            f"--out: {error.filename} cannot be written ({error.strerror}); make room and build "
            "again"
        ) from error


def _listed(out: Path) -> set[str]:
    """Files of the bundle in `out`; none where its manifest cannot be read.

    Only names that lie inside: a damaged manifest must not name what is deleted elsewhere.
    """
    try:
        files = json.loads((out / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    root = out.resolve()
    return {n for n in files if (root / n).resolve().is_relative_to(root)}
