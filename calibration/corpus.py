"""The training corpus as cached stem features: real parts, made defects, procedural kinds.

The stem is frozen, so every picture passes it once; features lie as FP16 in one memory-mapped file
under `build/`, and an epoch touches only the small transformer. A corpus is named by the hash of
its recipe and of what lies in its folders: the same request is never computed twice, a broken-off
one is begun again, and a picture or label that changed makes another corpus.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from calibration.datasets import (
    Dataset,
    Sample,
    area_mask,
    listing,
    load_dataset,
    read_image,
    read_mask,
)
from calibration.descriptions import LabelledPart, describe_part, own_text
from calibration.procedural import Kind
from calibration.synthetic import make_defect
from engines.errors import SourceError
from engines.preprocess import resize
from export.model import SpgddGpt

CHANNELS, GRID, LABEL = 272, 15, 60
BATCH = 16
VERSION = 4  # of what a corpus holds
COLUMNS = ("labels", "kind", "normal", "located", "real", "category", "text", "written")
LONGEST_TEXT = 400  # characters kept of a text; the text tower reads 77 tokens


@dataclass(frozen=True)
class CorpusSpec:
    """What goes in: folders of sets, augmented copies per real part, procedural kinds."""

    sets: tuple[str, ...]
    split: str = "train"
    variants: int = 4
    made_per_normal: int = 1
    kinds: int = 96
    parts_per_kind: int = 20
    first_kind: int = 1000
    seed: int = 42

    def key(self) -> str:
        """Name of the cache folder; reads what the sets hold. SourceError where one is no set."""
        sets = [listing(Path(root), self.split) for root in self.sets]
        text = json.dumps([asdict(replace(self, sets=())), sets, VERSION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """One picture: RGB u8 (240,240,3), covered fraction f32 (60,60), which kind, what it shows.

    `text` says it in words; `written` True when a person wrote them, False when they are derived.
    """

    tile: NDArray[np.uint8]
    label: NDArray[np.float32]
    kind: str
    normal: bool
    located: bool
    real: bool
    category: str
    text: str
    written: bool


@dataclass
class Corpus:
    """Features f16 (N,272,15,15) memory-mapped; labels f16 (N,60,60); one entry of each list.

    `key` is that of its spec: what it was made of.
    """

    features: NDArray[np.float16]
    labels: NDArray[np.float16]
    kind: NDArray[np.str_]
    normal: NDArray[np.bool_]
    located: NDArray[np.bool_]
    real: NDArray[np.bool_]
    category: NDArray[np.str_]
    text: NDArray[np.str_]
    written: NDArray[np.bool_]
    key: str = ""
    by_kind: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_kind = {str(k): np.flatnonzero(self.kind == k) for k in np.unique(self.kind)}

    def leave_out(self, kinds: Sequence[str]) -> None:
        """Forget kinds: no later draw, probe or text sees them."""
        for kind in kinds:
            self.by_kind.pop(kind)

    def rows(self) -> NDArray[np.int64]:
        """Rows of the kinds that are left, sorted."""
        return np.sort(np.concatenate(list(self.by_kind.values())))


def records(spec: CorpusSpec) -> Iterator[Record]:
    """Every picture of a corpus, in a fixed order."""
    rng = np.random.default_rng([spec.seed, 1])
    donors = _donors(spec)
    for root in spec.sets:
        dataset = load_dataset(Path(root))
        for sample in dataset.of(spec.split):
            yield from _real(spec, dataset, sample, rng, donors)
    for seed in range(spec.first_kind, spec.first_kind + spec.kinds):
        yield from _procedural(spec, Kind.of(seed), rng, donors)


def _donors(spec: CorpusSpec) -> list[NDArray[np.uint8]]:
    """Pictures patches are taken from: procedural ones only, so that no set leaks into another."""
    rng = np.random.default_rng([spec.seed, 2])
    return [Kind.of(5000 + k).part(rng) for k in range(64)]


def _real(
    spec: CorpusSpec,
    dataset: Dataset,
    sample: Sample,
    rng: np.random.Generator,
    donors: Sequence[NDArray[np.uint8]],
) -> Iterator[Record]:
    image = read_image(sample)
    mask = read_mask(sample, image.shape[:2]) if sample.located else None
    for variant in range(1 + spec.variants):
        seen, area = (image, mask) if variant == 0 else augment(rng, image, mask)
        label = _label(area)
        gone = mask is not None and not sample.normal and label.sum() < 0.2
        if gone and variant > 0:
            continue
        tile = np.ascontiguousarray(resize(seen)[..., ::-1])
        # What a person wrote of the part is true of the whole picture; flips move its places.
        words = own_text(sample) if variant == 0 else None
        told = words or _derived(dataset.noun, sample.category, sample.normal, seen, area)
        yield Record(
            tile, label, dataset.name, sample.normal, sample.located, True, sample.category,
            told[:LONGEST_TEXT], words is not None,
        )  # fmt: skip
    for _ in range(spec.made_per_normal if sample.normal else 0):
        good = resize(augment(rng, image, None)[0])
        donor = good[::-1, ::-1].copy() if rng.uniform() < 0.5 else _pick(rng, donors)
        made = make_defect(rng, good, donor)
        tile = np.ascontiguousarray(made.image[..., ::-1])
        told = _derived(dataset.noun, made.category, False, made.image, made.mask)
        yield Record(
            tile, _label(made.mask), dataset.name, False, True, False, made.category, told, False
        )


def _procedural(
    spec: CorpusSpec, kind: Kind, rng: np.random.Generator, donors: Sequence[NDArray[np.uint8]]
) -> Iterator[Record]:
    name = f"kind-{kind.seed}-{kind.material}"
    for index in range(spec.parts_per_kind):
        good, mask = kind.part(rng), None
        normal, category = index % 5 < 2, "normal"
        if not normal:
            donor = kind.part(rng) if rng.uniform() < 0.4 else _pick(rng, donors)
            made = make_defect(rng, good, donor)
            good, mask, category = made.image, made.mask, made.category
        told = _derived(f"{kind.material} surface", category, normal, good, mask)
        tile = np.ascontiguousarray(good[..., ::-1])
        yield Record(tile, _label(mask), name, normal, True, False, category, told, False)


def _derived(
    noun: str,
    category: str,
    normal: bool,
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
) -> str:
    """The derived text of a picture (H,W,3) with its mask (H,W), None where none is known."""
    known = np.zeros(image.shape[:2], np.bool_) if mask is None else mask
    part = LabelledPart(noun, category, normal, np.ascontiguousarray(known))
    return str(describe_part(np.ascontiguousarray(image), part))[:LONGEST_TEXT]


def augment(
    rng: np.random.Generator, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Random crop (70 to 100 % of each side), flips, gain and offset; mask moves along."""
    high, wide = image.shape[:2]
    h, w = (np.array([high, wide]) * rng.uniform(0.7, 1.0, 2)).astype(int)
    y, x = int(rng.integers(0, high - h + 1)), int(rng.integers(0, wide - w + 1))
    flip_y, flip_x = (1 if bit else -1 for bit in rng.integers(0, 2, 2))
    image = image[y : y + h, x : x + w][::flip_y, ::flip_x]
    lit = image * np.float32(rng.uniform(0.8, 1.2)) + np.float32(rng.uniform(-12, 12))
    moved = None if mask is None else mask[y : y + h, x : x + w][::flip_y, ::flip_x]
    return np.clip(lit, 0, 255).astype(np.uint8), moved


def _label(mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    if mask is None:
        return np.zeros((LABEL, LABEL), np.float32)
    return area_mask(np.ascontiguousarray(mask), LABEL)


def _pick(rng: np.random.Generator, donors: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return donors[int(rng.integers(0, len(donors)))]


def build_corpus(
    spec: CorpusSpec, folder: Path, model: SpgddGpt, say: Callable[[str], None] = print
) -> Corpus:
    """Read the cached corpus of `spec` under `folder`, or compute it (minutes) and keep it.

    SourceError when a folder is no set, or there is no picture at all in the split.
    """
    key = spec.key()
    home = folder / key
    if not (home / "done").is_file():
        _compute(spec, home, model, say)
    table = np.load(home / "table.npz")
    features = np.load(home / "features.npy", mmap_mode="r")
    return Corpus(features=features, key=key, **{name: table[name] for name in COLUMNS})


def _compute(spec: CorpusSpec, home: Path, model: SpgddGpt, say: Callable[[str], None]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    start, count, kept = time.monotonic(), 0, []
    with (home / "features.raw").open("wb") as out:
        for group in _batches(records(spec)):
            out.write(stem_features(model, np.stack([r.tile for r in group])).tobytes())
            kept += [(r.label.astype(np.float16), *_row(r)) for r in group]
            count += len(group)
            if count % (BATCH * 32) == 0:
                rate = count / (time.monotonic() - start)
                say(f"corpus: {count} pictures through the stem, {rate:.0f}/s")
    if not count:
        raise SourceError(
            f"{', '.join(spec.sets)}: no picture in the split {spec.split}: "
            "add some, or leave the set out"
        )
    raw = np.memmap(home / "features.raw", np.float16, "r", shape=(count, CHANNELS, GRID, GRID))
    np.save(home / "features.npy", raw)
    (home / "features.raw").unlink()
    columns = list(zip(*kept, strict=True))
    table: dict[str, Any] = {n: np.array(c) for n, c in zip(COLUMNS, columns, strict=True)}
    np.savez(home / "table.npz", **table)
    (home / "done").write_text(json.dumps(asdict(spec)))
    cv2.imwrite(str(home / "sample.png"), contact_sheet(records(spec)))


def _row(record: Record) -> tuple[str | bool, ...]:
    """All columns but the label, in the order of COLUMNS."""
    return tuple(getattr(record, name) for name in COLUMNS[1:])


def _batches(source: Iterator[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    for record in source:
        group.append(record)
        if len(group) == BATCH:
            yield group
            group = []
    if group:
        yield group


@torch.inference_mode()
def stem_features(model: SpgddGpt, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Frozen stem: RGB u8 (B,240,240,3) -> f16 (B,272,15,15)."""
    pixels = model.normalise(torch.from_numpy(tiles))
    stem = model.clip.visual.stem
    found = stem(pixels.to(memory_format=torch.channels_last))
    return np.asarray(found.contiguous().half().numpy())


def frozen_stem() -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Tiles u8 (N,240,240,3) -> frozen EfficientNet-Lite0 features f32 (N,272,15,15)."""
    model = SpgddGpt.create("nano").eval()

    def features(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [stem_features(model, tiles[i : i + BATCH]) for i in range(0, len(tiles), BATCH)]
        return np.concatenate(parts).astype(np.float32)

    return features


def contact_sheet(source: Iterator[Record], count: int = 48, side: int = 120) -> NDArray[np.uint8]:
    """BGR sheet of the first `count` pictures with their labels in red, to look at."""
    cells = []
    for record, _ in zip(source, range(count), strict=False):
        tile = cv2.resize(record.tile[..., ::-1], (side, side), interpolation=cv2.INTER_AREA)
        label = cv2.resize(record.label, (side, side), interpolation=cv2.INTER_NEAREST) > 0.1
        tile[label, 2] = 255
        cells.append(tile)
    rows = [np.hstack(cells[i : i + 12]) for i in range(0, len(cells) - 11, 12)]
    return np.vstack(rows) if rows else np.zeros((side, side, 3), np.uint8)
