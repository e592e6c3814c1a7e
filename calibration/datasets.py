"""Labelled image sets for training and evaluation: layouts, splits and shots."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import SourceError, UsageError

SEED = 42
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
# Noun phrases of the sets this project knows; any other set is an "object".
NOUNS = {
    "mt": "magnetic tile",
    "bsdata": "ball screw",
    "cfd": "asphalt road",
    "elpv": "solar cell",
}
SPLITS = ("train", "val", "test")
INDEX_KEYS: dict[str, tuple[type, ...]] = {
    "image": (str,), "mask": (str, NoneType), "category": (str,), "normal": (bool,),
    "split": (str,), "text": (str, NoneType),
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One labelled image. `mask` None with `normal` False: defective, but where is unknown.

    `polygons` ((x,y) pixel lists) stand in for a mask file where a set ships outlines. `spot` is
    the part (or place on it) shown: samples of one spot are not independent. Grey values of the
    mask over `above` are defect: half of 255, or 0 where a set's masks hold class numbers.
    """

    image: Path
    mask: Path | None
    category: str
    normal: bool
    split: str = ""
    polygons: tuple[tuple[tuple[float, float], ...], ...] = ()
    text: str | None = None
    above: int = 127

    @property
    def located(self) -> bool:
        """Whether pixels are labelled: good parts always are (all zero)."""
        return self.normal or self.mask is not None or bool(self.polygons)

    @property
    def spot(self) -> str:
        """`bsdata` names hold date, position and angle: the last two say which spot it is."""
        pieces = self.image.stem.split("_")
        if len(pieces) >= 4 and pieces[-2] == "crop":
            return "_".join([pieces[0], *pieces[2:]])
        return self.image.stem


@dataclass(frozen=True)
class Dataset:
    """Samples of one set (one product), sorted by path."""

    name: str
    noun: str
    samples: tuple[Sample, ...]

    def of(self, split: str, normal: bool | None = None) -> tuple[Sample, ...]:
        """Samples of a split, optionally only good (True) or only defective (False) ones."""
        return tuple(
            s for s in self.samples if s.split == split and (normal is None or s.normal == normal)
        )


def load_dataset(root: Path) -> Dataset:
    """Read a set in any known layout; `index.jsonl` wins. SourceError when none fits."""
    from calibration.layouts import scan

    root = Path(root)
    if not root.is_dir():
        raise SourceError(f"no folder {root}: give the folder of an image set")
    index = root / "index.jsonl"
    samples = _read_index(index) if index.is_file() else split_samples(scan(root))
    name = set_name(root)
    return Dataset(name, NOUNS.get(name, "object"), tuple(samples))


def set_name(root: Path) -> str:
    """What a set is called everywhere (nouns, corpus, reports): its folder's name in lower case."""
    name = Path(root).name
    return (name if name not in {"", ".."} else Path(root).resolve().name).lower()


def named_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by the name of their set; UsageError where two have the same."""
    found: dict[str, Path] = {}
    for folder in folders:
        name = set_name(folder)
        if name in found:
            raise UsageError(
                f"{found[name]} and {folder} are both called {name}: rename one of the folders"
            )
        found[name] = folder
    return found


def left_out(asked: Sequence[str], names: Iterable[str]) -> list[str]:
    """Names of sets as given by a person, in any case.

    UsageError for one that is not there, and when none would remain.
    """
    known, found = list(names), [set_name(Path(name)) for name in asked]
    for name in found:
        if name not in known:
            raise UsageError(f"no set {name} to leave out: --data names {', '.join(known)}")
    if not set(known) - set(found):
        raise UsageError("every set of --data is left out: name one more to train on")
    return found


def listing(root: Path, split: str) -> list[Any]:
    """What a split of a set holds now, as plain values: names, labels and contents of files.

    Two listings are equal when nothing that a corpus is made of was changed, added or removed;
    a copy of the set on another machine lists the same.
    """
    found: list[Any] = [set_name(Path(root))]
    for s in load_dataset(root).of(split):
        files = [s.image, *([s.mask] if s.mask else []), s.image.with_suffix(".json")]
        label = (s.category, s.normal, s.split, s.text, s.above, s.polygons)
        found.append([[_stamp(Path(root), file) for file in files], label])
    return found


def _stamp(root: Path, file: Path) -> tuple[str, str]:
    """Path below the set and blake2b of the content, "" where there is no file."""
    name = os.path.relpath(file, root)
    try:
        with file.open("rb") as content:
            return name, hashlib.file_digest(content, "blake2b").hexdigest()
    except OSError:
        return name, ""


def _read_index(index: Path) -> list[Sample]:
    """Samples of an index.jsonl, sorted by path. SourceError names the line that is wrong."""
    samples = []
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{index} cannot be read ({error}): correct or remove it") from error
    for number, line in enumerate(lines, 1):
        where = f"{index}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{where}: {error!r}: correct that line") from error
        samples.append(_index_row(row, index.parent, where))
    return sorted(samples, key=lambda s: s.image)


def _index_row(row: Any, folder: Path, where: str) -> Sample:
    """One row of an index; a word in the place of a truth value would load as true."""
    if not isinstance(row, dict):
        raise SourceError(f"{where}: not an object: correct that line")
    for key, wanted in INDEX_KEYS.items():
        if key not in row and key != "text":
            raise SourceError(f"{where}: {key!r} is missing: correct that line")
        if not isinstance(row.get(key), wanted):
            names = " or ".join("null" if t is NoneType else t.__name__ for t in wanted)
            said = json.dumps(row[key])
            raise SourceError(f"{where}: {key!r} must be {names}, not {said}: correct that line")
    if row["split"] not in SPLITS:
        said = json.dumps(row["split"])
        raise SourceError(
            f"{where}: 'split' must be one of {', '.join(SPLITS)}, not {said}: correct that line"
        )
    return Sample(
        image=folder / row["image"],
        mask=folder / row["mask"] if row["mask"] else None,
        category=row["category"],
        normal=row["normal"],
        split=row["split"],
        text=row.get("text"),
    )


def split_samples(samples: Iterable[Sample], seed: int = SEED) -> list[Sample]:
    """70/15/15 per category: sorted paths, permuted with `seed`.

    A defect category of fewer than 50 images gives at least 10 to test (or all it has).
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.category].append(sample)
    done: list[Sample] = []
    for category in sorted(groups):
        group = sorted(groups[category], key=lambda s: s.image)
        test, val = round(0.15 * len(group)), round(0.15 * len(group))
        if len(group) < 50 and not group[0].normal:
            test = min(len(group), max(10, test))
            val = min(val, len(group) - test)
        order = np.random.default_rng(seed).permutation(len(group))
        for place, index in enumerate(order):
            name = "test" if place < test else "val" if place < test + val else "train"
            done.append(replace(group[index], split=name))
    return sorted(done, key=lambda s: s.image)


def choose_shots(normals: Sequence[Sample], count: int, run: int) -> tuple[Sample, ...]:
    """`default_rng([42, run]).permutation(n)[:count]` over sorted paths: nested in `count`."""
    ordered = sorted(normals, key=lambda s: s.image)
    if count > len(ordered):
        raise SourceError(f"{count} shots asked for, {len(ordered)} good parts in the train split")
    order = np.random.default_rng([SEED, run]).permutation(len(ordered))[:count]
    return tuple(ordered[i] for i in order)


def read_image(sample: Sample) -> NDArray[np.uint8]:
    """BGR u8 (H,W,3); SourceError names a file that is no image."""
    image = cv2.imread(str(sample.image), cv2.IMREAD_COLOR)
    if image is None:
        raise SourceError(f"{sample.image} is not a readable image: remove or replace it")
    return np.asarray(image, np.uint8)


def read_mask(sample: Sample, shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Defect pixels, bool (H,W): grey values over `sample.above`. ValueError if not located."""
    if not sample.located:
        raise ValueError(f"{sample.image} is defective but its defect is not located")
    if sample.mask is not None:
        grey = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE)
        if grey is None:
            raise SourceError(f"{sample.mask} is not a readable mask: remove or replace it")
        if grey.shape != shape_hw:
            grey = cv2.resize(grey, shape_hw[::-1], interpolation=cv2.INTER_NEAREST)
        return np.asarray(grey > sample.above)
    canvas = np.zeros(shape_hw, np.uint8)
    for polygon in sample.polygons:
        cv2.fillPoly(canvas, [np.round(polygon).astype(np.int32)], (255,))
    return canvas > 127


def small_mask(mask: NDArray[np.bool_], size: int = 240) -> NDArray[np.bool_]:
    """Nearest-neighbour mask (size,size) for metrics at the model's size."""
    return (
        cv2.resize(mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST_EXACT) > 0
    )


def area_mask(mask: NDArray[np.bool_], size: int = 240) -> NDArray[np.float32]:
    """Covered fraction per pixel, f32 (size,size): training labels that lose no thin defect."""
    grown = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(grown, np.float32)


@cache
def elpv_dataset() -> Dataset:
    """Solar cells of the PyPI package `elpv-dataset` (extra `demo`), labels but no masks.

    Cells of defect probability 0 are good, of 1 defective; the doubtful rest is left out.
    SourceError where the package is not installed.
    """
    try:
        import elpv_dataset as package
    except ImportError as error:
        raise SourceError("the set elpv is not installed: pip install elpv-dataset") from error

    root = Path(package.__file__).parent / "data"
    labels = next(root.rglob("labels.csv"))
    samples = []
    for line in labels.read_text(encoding="utf-8").splitlines():
        name, probability, kind = line.split()
        if float(probability) in {0.0, 1.0}:
            good = float(probability) == 0.0
            samples.append(
                Sample(labels.parent / name, None, f"{kind}-{'good' if good else 'bad'}", good)
            )
    return Dataset("elpv", NOUNS["elpv"], tuple(split_samples(samples)))
