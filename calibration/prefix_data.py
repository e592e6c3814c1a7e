"""What the prefix is trained on: the station's own features and findings of labelled parts.

Every part goes through the engine as at the station: zero-shot and with a few references (the map
is alternated in training). Findings come from the map, the kind from the label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.datasets import Dataset, Sample, choose_shots, load_dataset, read_image
from engines.bundle import load_bundle
from engines.describer import DescribeRequest
from engines.facts import Area, half_peak_level
from engines.gguf_prompt import NONE, Findings, findings
from engines.preprocess import Box, to_tiles
from engines.template import category_word
from engines.text import TextEncoder, tokenise
from export.model.clip import Encoded
from export.model.spgdd import Reference, SpgddGpt
from export.model.tddf import unit

SHOTS = 4
# One kind alone is no question: where a set has one, others of its trade stand beside it.
DISTRACTORS = {"bsdata": ("scratch", "dent")}


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


def examples_of(root: Path, model: SpgddGpt, limit: int | None = None) -> list[Example]:
    """Examples (zero-shot and few-shot of each part) of train and validation of one set."""
    dataset = load_dataset(root)
    kinds = sorted({s.category for s in dataset.samples if not s.normal})
    kinds = list(dict.fromkeys((*kinds, *DISTRACTORS.get(dataset.name, ()))))
    anchors = _anchors(model, dataset.noun, [f"{{}} with a {k}" for k in kinds])
    shots = choose_shots(dataset.of("train", normal=True), SHOTS, 0)
    taps = [unit_taps(_encode(model, read_image(s))) for s in shots]
    memory = [torch.cat([t[i] for t in taps])[None] for i in range(3)]
    found = []
    for sample in _balanced(dataset, limit):
        image = read_image(sample)
        encoded = _encode(model, image)
        for references in (None, memory):
            answer = model.answer(encoded, anchors[None], references, "nearest")
            asked = request_of(sample, dataset.noun, kinds, image, answer, anchors.numpy())
            found.append(_example(sample, asked, dataset.name))
    return found


def _balanced(dataset: Dataset, limit: int | None) -> list[Sample]:
    """All of train and val, or at most `limit` a category and split (sorted, evenly spaced)."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in dataset.samples:
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


def _example(sample: Sample, request: DescribeRequest, name: str) -> Example:
    facts = request.facts()
    assert request.cls is not None and request.anchors is not None and request.f_out is not None
    return Example(
        cls=request.cls,
        anchors=request.anchors,
        f_out=request.f_out,
        found=findings(request, facts, model_chooses=True),
        category=NONE if sample.normal else sample.category,
        guess=NONE if sample.normal else category_word(request.kinds, facts),
        split=sample.split,
        image=f"{name}/{sample.image.name}",
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
        verdict="OK" if sample.normal else "NG",
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
