"""What the prefix is trained on: the station's own features and findings of defective parts.

Every part goes through the engine as at the station: zero-shot and with a few references (the map
is alternated in training). Findings come from the map, the kind from the label. Beside the real
sets stand made defects on procedural parts, so that kinds are more than those of two products.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.datasets import (
    SPLITS,
    Dataset,
    Sample,
    choose_shots,
    listing,
    load_dataset,
    read_image,
    set_name,
)
from calibration.procedural import Kind
from calibration.resume import digest
from calibration.synthetic import make_defect
from engines.bundle import load_bundle
from engines.describer import DescribeRequest
from engines.facts import Area, half_peak_level
from engines.gguf_prompt import Findings, findings
from engines.preprocess import Box, to_tiles
from engines.template import category_word
from engines.text import TextEncoder, tokenise
from export.model.clip import Encoded
from export.model.spgdd import Reference, SpgddGpt
from export.model.tddf import unit
from export.model.weights import load_weights

SHOTS = 4
# One kind alone is no question: where a set has one, others of its trade stand beside it.
DISTRACTORS = {"bsdata": ("scratch", "dent")}
# Defects made on procedural parts: what they are called (calibration.synthetic).
MADE = {
    "scratch": "scratch", "crack": "crack", "dent": "dent", "stain": "stain", "hole": "hole",
    "foreign": "foreign body", "missing": "missing part", "bent": "bent edge",
}  # fmt: skip
FIRST_KIND = 5000  # seeds of procedural kinds that the vision never trained on
VAL_EVERY = 5  # each fifth procedural kind is kept for validation


@dataclass(frozen=True)
class Shelf:
    """Defective parts of one product with good ones to compare them to; pictures BGR u8."""

    name: str
    noun: str
    kinds: tuple[str, ...]
    good: tuple[NDArray[np.uint8], ...]
    parts: tuple[Sample, ...]
    picture: Callable[[Sample], NDArray[np.uint8]]


@dataclass(frozen=True)
class Example:
    """One part as the describer meets it: prefix inputs, findings without kind, and the truth."""

    cls: NDArray[np.float32]
    anchors: NDArray[np.float32]
    f_out: NDArray[np.float32]
    found: Findings
    category: str
    guess: str  # what the template would say
    split: str
    image: str
    shots: bool  # whether references were at hand (the map is alternated in training)

    @property
    def group(self) -> tuple[str, str]:
        """Set and kind: what is balanced in training and validation."""
        return self.image.split("/", 1)[0], self.category


def cached_examples(source: Path | int, weights: Path, limit: int | None) -> list[Example]:
    """Examples of a set, or of so many procedural kinds, as these weights see them.

    Kept under build/prefix by weights, source, what it holds and limit: pictures are read once.
    """
    name = f"made{source}" if isinstance(source, int) else set_name(source)
    holds = None if isinstance(source, int) else listed(source)
    cache = Path("build/prefix") / f"{name}-{digest([digest(weights), name, holds, limit, 4])}.pkl"
    if not cache.exists():
        model = load_weights(weights)
        shelves = made_shelves(source) if isinstance(source, int) else [shelf_of(source, limit)]
        found = [example for shelf in shelves for example in examples_of(shelf, model)]
        cache.parent.mkdir(parents=True, exist_ok=True)
        half = cache.with_suffix(".part")
        half.write_bytes(pickle.dumps(found))
        half.rename(cache)
    examples: list[Example] = pickle.loads(cache.read_bytes())
    return examples


def listed(root: Path) -> list[Any]:
    """What a set holds now (`calibration.datasets.listing`), all splits."""
    return [listing(root, split) for split in SPLITS]


def shelf_of(root: Path, limit: int | None = None) -> Shelf:
    """The defective train and validation parts of one labelled set."""
    dataset = load_dataset(root)
    kinds = sorted({s.category for s in dataset.samples if not s.normal})
    kinds = list(dict.fromkeys((*kinds, *DISTRACTORS.get(dataset.name, ()))))
    shots = choose_shots(dataset.of("train", normal=True), SHOTS, 0)
    good = tuple(read_image(s) for s in shots)
    parts = tuple(_balanced(dataset, limit))
    return Shelf(dataset.name, dataset.noun, tuple(kinds), good, parts, read_image)


def made_shelves(kinds: int) -> Iterator[Shelf]:
    """Procedural products, each with one made defect of every kind."""
    for number in range(kinds):
        kind = Kind.of(FIRST_KIND + number)
        rng = np.random.default_rng([FIRST_KIND, number])
        good = tuple(kind.part(rng) for _ in range(SHOTS))
        split = "val" if number % VAL_EVERY == 0 else "train"
        pictures = {
            Path(f"{number}-{name}"): make_defect(rng, kind.part(rng), good[0], made).image
            for made, name in MADE.items()
        }
        parts = tuple(Sample(p, None, p.name.split("-")[1], False, split) for p in pictures)
        names = tuple(MADE.values())
        noun = f"{kind.material} part"
        yield Shelf("made", noun, names, good, parts, _drawn(pictures))


def _drawn(pictures: dict[Path, NDArray[np.uint8]]) -> Callable[[Sample], NDArray[np.uint8]]:
    return lambda sample: pictures[sample.image]


def examples_of(shelf: Shelf, model: SpgddGpt) -> list[Example]:
    """Examples of a shelf's parts, each zero-shot and with references."""
    anchors = _anchors(model, shelf.noun, [f"{{}} with a {k}" for k in shelf.kinds])
    taps = [unit_taps(_encode(model, image)) for image in shelf.good]
    memory = [torch.cat([t[i] for t in taps])[None] for i in range(3)]
    found = []
    for sample in shelf.parts:
        image = shelf.picture(sample)
        encoded = _encode(model, image)
        for references in (None, memory):
            answer = model.answer(encoded, anchors[None], references, "nearest")
            asked = request_of(sample, shelf.noun, shelf.kinds, image, answer, anchors.numpy())
            found.append(_example(sample, asked, shelf.name, references is not None))
    return found


def _balanced(dataset: Dataset, limit: int | None) -> list[Sample]:
    """All defective parts, or at most `limit` a category and split (sorted, evenly spaced)."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in dataset.samples:
        if not sample.normal:
            groups.setdefault((sample.split, sample.category), []).append(sample)
    chosen = []
    for group in groups.values():
        step = max(1.0, len(group) / limit) if limit else 1.0
        chosen += [group[int(i * step)] for i in range(int(len(group) / step))]
    return chosen


def _anchors(model: SpgddGpt, noun: str, phrases: Sequence[str]) -> Tensor:
    """Anchors (2,E) as the station makes them: the bundle's prompts through this text tower."""
    prompts = TextEncoder.open(load_bundle("nano")).prompts(noun, phrases)
    normal, abnormal = (torch.from_numpy(tokenise(texts)) for texts in prompts)
    with torch.no_grad():
        return model.anchors(normal, abnormal)


@torch.no_grad()
def _encode(model: SpgddGpt, image: NDArray[np.uint8]) -> Encoded:
    whole = (Box(0, 0, image.shape[1], image.shape[0]),)
    return model.encode_image(model.normalise(torch.from_numpy(to_tiles(image, whole))))


def unit_taps(encoded: Encoded) -> list[Tensor]:
    """Unit tokens (1,225,D) per tap."""
    return [unit(t) for t in encoded.taps]


def _example(sample: Sample, request: DescribeRequest, name: str, shots: bool) -> Example:
    facts = request.facts()
    assert request.cls is not None and request.anchors is not None and request.f_out is not None
    return Example(
        cls=request.cls,
        anchors=request.anchors,
        f_out=request.f_out,
        found=findings(request, facts, model_chooses=True),
        category=sample.category,
        guess=category_word(request.kinds, facts),
        split=sample.split,
        image=f"{name}/{sample.image.name}",
        shots=shots,
    )


def request_of(
    sample: Sample,
    noun: str,
    kinds: Sequence[str],
    image: NDArray[np.uint8],
    answer: Reference,
    anchors: NDArray[np.float32],
) -> DescribeRequest:
    """The describer's request for a labelled part; the label stands for the verdict."""
    heat = np.asarray(answer.map[0], np.float32)
    high, wide = image.shape[:2]
    scale = min(1.0, 240 / max(high, wide))
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    return DescribeRequest(
        part_id=sample.image.stem,
        noun=noun,
        verdict="NG",
        score=float(answer.score[0]),
        threshold=0.5,
        map=heat,
        area=Area(0, 0, wide, high),
        level=half_peak_level(heat),
        crop=np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8),
        cls=np.asarray(answer.cls[0], np.float32),
        anchors=anchors,
        f_out=np.asarray(answer.f_out[0], np.float32),
        categories=tuple(kinds),
    )
