"""What the prefix is trained on: the station's own features and findings of labelled parts.

Every part goes through the engine as at the station: zero-shot and with a few references (the map
is alternated in training). Findings come from the map, the kind from the label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.datasets import Dataset, Sample, choose_shots, load_dataset, read_image
from engines.bundle import Bundle
from engines.describer import DescribeRequest
from engines.detector import Answer, Detector, Memory
from engines.facts import Area, half_peak_level
from engines.gguf_prompt import NONE, Findings, findings
from engines.preprocess import Box, to_tiles
from engines.template import category_word
from engines.text import TextEncoder

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


def examples_of(root: Path, bundle: Bundle, limit: int | None = None) -> list[Example]:
    """Examples (zero-shot, then few-shot) of train and validation of one set."""
    dataset = load_dataset(root)
    kinds = sorted({s.category for s in dataset.samples if not s.normal})
    kinds = list(dict.fromkeys((*kinds, *DISTRACTORS.get(dataset.name, ()))))
    anchors = TextEncoder.open(bundle).anchors(dataset.noun, [f"{{}} with a {k}" for k in kinds])
    samples = _balanced(dataset, limit)
    found = []
    for few_shot in (False, True):
        detector = Detector.open(bundle, "nearest", threads=1)
        memory = _memory(dataset, detector, anchors) if few_shot else None
        detector.bind(memory, anchors[None])
        found += [_example(s, dataset, kinds, detector, anchors, few_shot) for s in samples]
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


def _memory(dataset: Dataset, detector: Detector, anchors: NDArray[np.float32]) -> Memory:
    detector.bind(None, anchors[None])
    shots = choose_shots(dataset.of("train", normal=True), SHOTS, 0)
    tokens = [_run(detector, read_image(s)).tokens for s in shots]
    taps = tuple(np.concatenate([t[i] for t in tokens])[None] for i in range(3))
    return Memory(taps)  # type: ignore[arg-type]


def _run(detector: Detector, image: NDArray[np.uint8]) -> Answer:
    whole = (Box(0, 0, image.shape[1], image.shape[0]),)
    return detector.run(to_tiles(image, whole))


def _example(
    sample: Sample,
    dataset: Dataset,
    kinds: Sequence[str],
    detector: Detector,
    anchors: NDArray[np.float32],
    few_shot: bool,
) -> Example:
    image = read_image(sample)
    answer = _run(detector, image)
    request = request_of(sample, dataset.noun, kinds, image, answer, anchors, few_shot)
    facts = request.facts()
    guess = category_word(request.kinds, facts) if not sample.normal else NONE
    return Example(
        cls=np.asarray(answer.cls[0], np.float32),
        anchors=anchors,
        f_out=np.asarray(answer.f_out[0], np.float32),
        found=findings(request, facts, model_chooses=True),
        category=NONE if sample.normal else sample.category,
        guess=guess,
        split=sample.split,
        image=f"{dataset.name}/{sample.image.name}",
    )


def request_of(
    sample: Sample,
    noun: str,
    kinds: Sequence[str],
    image: NDArray[np.uint8],
    answer: Answer,
    anchors: NDArray[np.float32],
    few_shot: bool,
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
        cls=np.asarray(answer.cls[0]),
        anchors=anchors,
        f_out=np.asarray(answer.f_out[0]),
        few_shot=few_shot,
        categories=tuple(kinds),
    )
