"""The parts `make demo` inspects: real solar cells from PyPI, or a folder of your own.

Nothing is copied: the demo's folders hold symbolic links to the installed package or your folder.
"""

import csv
import importlib.util
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import SourceError, UsageError
from station.sources.folder import printable

GOOD_PARTS = 64  # for enrolment: 16 references, 48 held out, so 5 % false rejects can be stated
BATCH_GOOD, BATCH_BAD = 36, 24
STEM_BYTES = 100  # of a link's name: a part id has 128 characters at most
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Part:
    """One labelled picture."""

    path: Path
    good: bool
    label: str


@dataclass(frozen=True)
class DemoSet:
    """`normals` are shown to the station, `batch` is then inspected, in this order."""

    title: str
    noun: str
    phrases: tuple[str, ...]
    normals: tuple[Part, ...]
    batch: tuple[Part, ...]
    remark: str = ""


def solar_cells() -> DemoSet:
    """Monocrystalline cells of elpv-dataset: sound ones (p = 0) and surely defective ones (p = 1).

    SourceError where the package is absent.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            "the demo's pictures are not installed: pip install elpv-dataset, "
            "or show your own with --data FOLDER"
        )
    data = Path(spec.submodule_search_locations[0]) / "data"
    parts = []
    with (data / "labels.csv").open(encoding="utf-8") as lines:
        for name, probability, kind in (line.split() for line in lines):
            if kind == "mono" and float(probability) in (0.0, 1.0):
                good = float(probability) == 0.0
                parts.append(Part(data / name, good, "good" if good else "defective"))
    return _draw(
        "solar cells (elpv-dataset, electroluminescence photographs)",
        "solar cell",
        ("{} with a crack", "{} with a dark inactive area"),
        parts,
        remark="Solar cells are a kind the shipped nano model never saw in training: all it "
        "knows of them are the good parts above.\nIts training and its figures: "
        "engines/bundles/nano/MODEL_CARD.md, docs/evaluation.md",
    )


def folder(path: Path) -> DemoSet:
    """Your own: `index.jsonl` (image, normal, category, split) or the subfolders good/ and bad/.

    SourceError names what is missing.
    """
    if not path.is_dir():
        raise SourceError(
            f"{path} is not a folder: give one with index.jsonl, or with good/ and bad/"
        )
    noun = {"mt": "magnetic tile", "bsdata": "ball screw", "cfd": "asphalt road"}.get(
        path.name, "part"
    )
    index = path / "index.jsonl"
    if index.is_file():
        rows = _labelled(index)
        parts = [part for split, part in rows if split == "val"]
        shown = [part for split, part in rows if split == "train" and part.good]
        return _draw(str(path), noun, (), parts, shown)
    parts = [
        Part(file, name == "good", name)
        for name in ("good", "bad")
        for file in sorted((path / name).glob("*"))
        if file.suffix.lower() in PICTURES
    ]
    return _draw(str(path), noun, (), parts)


def _labelled(index: Path) -> list[tuple[str, Part]]:
    """(split, part) of every line. SourceError names the first that is none, or has no picture."""
    found = []
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{index} cannot be read ({error}): correct it") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            good = bool(row["normal"])
            label = "good" if good else str(row.get("category", "defective"))
            part = Part(index.parent / str(row["image"]), good, label)
            split = str(row.get("split", "val"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise SourceError(
                f'{index}, line {number}: write {{"image": "FILE", "normal": true or false}}'
            ) from None
        if not part.path.is_file():
            raise SourceError(f"{index}, line {number}: there is no picture {part.path}")
        found.append((split, part))
    return found


def _draw(
    title: str,
    noun: str,
    phrases: tuple[str, ...],
    parts: Sequence[Part],
    shown: Sequence[Part] = (),
    remark: str = "",
) -> DemoSet:
    """Seeded: good parts to show, then a mixed batch that shares none of them."""
    rng = random.Random(42)
    good = [part for part in parts if part.good]
    bad = [part for part in parts if not part.good]
    shown = list(shown)
    for group in (good, bad, shown):
        rng.shuffle(group)
    if not shown:
        keep = min(GOOD_PARTS, max(1, len(good) * 2 // 3))
        shown, good = good[:keep], good[keep:]
    if not shown or not bad:
        raise SourceError(
            f"{title}: the demo needs good and defective parts, found {len(good)} and {len(bad)}"
        )
    batch = good[:BATCH_GOOD] + bad[:BATCH_BAD]
    rng.shuffle(batch)
    return DemoSet(title, noun, phrases, tuple(shown[:GOOD_PARTS]), tuple(batch), remark)


def link(parts: Sequence[Part], into: Path) -> dict[str, Part]:
    """Symbolic links `0001_<file>` in inspection order; returns link name -> part.

    UsageError where the folder holds anything but such links: it would be inspected, too.
    """
    into.mkdir(parents=True, exist_ok=True)
    for old in into.iterdir():
        if not old.is_symlink():
            raise UsageError(f"{old} is not of the demo: take it away, or name another --out")
        old.unlink()
    linked = {}
    for number, part in enumerate(parts, start=1):
        name = f"{number:04d}_{_label(part.path)}"
        (into / name).symlink_to(part.path.resolve())
        linked[name] = part
    return linked


def _label(path: Path) -> str:
    """A file's name as parts, labels and the journal can hold it: printable, of a fair length."""
    stem = printable(path.stem).encode()[:STEM_BYTES].decode(errors="ignore")
    return stem + path.suffix


def write_labels(linked: dict[str, Part], path: Path) -> None:
    """The labels beside the batch, for people who want to check the table."""
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows((name, part.label) for name, part in linked.items())
