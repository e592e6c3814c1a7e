"""Last stage: the weight of the image score, chosen on validation."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.corpus import Corpus
from calibration.metrics import auroc
from calibration.stage_vision import answers
from export.model import SpgddGpt
from export.model.tddf import unit

# Points of mean Image-AUC that known kinds may lose to a smaller weight.
LOSS = 0.3
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ScoreChoice:
    """Chosen weight of s_cls and the mean Image-AUC (percent) of every weight tried."""

    weight: float
    figures: dict[str, float]


def harmonic(
    cls: NDArray[np.float32], peak: NDArray[np.float32], weight: float, scale: float
) -> NDArray[np.float64]:
    """s = 1/(w/s_cls + (1-w)/peak) with s_cls = sigmoid(scale * cosine difference)."""
    s_cls = 1 / (1 + np.exp(-scale * cls.astype(np.float64)))
    return np.asarray(1 / (weight / np.maximum(s_cls, 1e-30) + (1 - weight) / (peak + 1e-30)))


def choose_score(
    model: SpgddGpt,
    anchors: dict[str, Tensor],
    val: dict[str, tuple[Corpus, list[Tensor]]],
    scale: float,
) -> ScoreChoice:
    """The least weight within LOSS of the best mean Image-AUC over sets and 0, 1, 4 shots.

    The least, because the CLS cue knows the trained kinds alone. Set in `model`.
    """
    sums = dict.fromkeys(WEIGHTS, 0.0)
    count = 0
    for name, (corpus, memory) in val.items():
        for shots in (0, 1, 4):
            bank = [m[:shots] for m in memory] if shots else None
            text = anchors[name] if shots else unit(anchors[name])
            found = answers(model, text, corpus, bank)
            count += 1
            for weight in WEIGHTS:
                s = harmonic(found["cls"], found["peak"], weight, scale)
                sums[weight] += 100 * (auroc(~corpus.normal, s) or 0.0)
    limit = max(sums.values()) - LOSS * max(1, count)
    best = min(w for w in WEIGHTS if sums[w] >= limit)
    with torch.no_grad():
        model.score.weight.fill_(best)
        model.score.scale.fill_(scale)
    return ScoreChoice(best, {f"{w:.1f}": s / max(1, count) for w, s in sums.items()})
