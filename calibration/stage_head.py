"""The head's fusion: how far the text cue is trusted beside the distances.

On a kind the encoder knows P is right; on one it does not know P is half noise, and distances of
untrained features tell. A head trained on known kinds alone gives those no weight, and procedural
kinds kept from the encoder do not mend it: they are of the generator it knows, so P stays right on
them (figures in docs/evaluation.md). So the fusion has one number, the trust in P, and the rule
needs no unseen data: the least trust that costs the known kinds no more than `LOSS`.

    lean = gain * (AM_a + trust * (P_b + P_c)/2 + ODDNESS * P_a) + bias

The MLP's hidden units pass its inputs through (a ReLU changes nothing that is never negative).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from calibration.corpus import GRID, LABEL, Corpus
from calibration.metrics import auroc
from calibration.stage_vision import answers, map_terms
from export.model import SpgddGpt

INPUTS = 9
TRUSTS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
ODDNESS = 0.1
LOSS = 0.3
"""Points of mean Pixel- and Image-AUC that known kinds may lose against their best trust."""


@dataclass(frozen=True)
class Example:
    """One known set as the head sees it at one shot: P and AM (N,225,3), and its truth."""

    p: Tensor
    am: Tensor
    labels: Tensor
    normal: NDArray[np.bool_]
    located: NDArray[np.bool_]


def see(model: SpgddGpt, anchors: Tensor, corpus: Corpus, memory: list[Tensor]) -> Example:
    """P and AM of a corpus with one memory; anchors (2,E)."""
    found = answers(model, anchors, corpus, memory)
    labels = torch.from_numpy(corpus.labels.astype(np.float32))
    p, am = torch.from_numpy(found["p"]), torch.from_numpy(found["am"])
    return Example(p, am, labels, corpus.normal, corpus.located)


def weights_of(trust: float) -> Tensor:
    """Weights (9,) of [F_out abc, P abc, AM abc] before the gain."""
    return torch.tensor([0, 0, 0, ODDNESS, trust / 2, trust / 2, 1.0, 0, 0])


def fuse(example: Example, trust: float) -> Tensor:
    """(N,15,15), before gain and bias."""
    inputs = torch.cat([example.am * example.p, example.p, example.am], -1)
    return (inputs @ weights_of(trust)).view(-1, GRID, GRID)


def figure(example: Example, trust: float) -> float:
    """Mean of Pixel-AUC (at 60 px) and Image-AUC by peak, percent."""
    grid = fuse(example, trust)
    size = (LABEL, LABEL)
    full = F.interpolate(grid[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    known = example.located
    truth = example.labels.numpy()[known] > 0.3
    pixel = auroc(truth, full.numpy()[known]) or 0.0
    image = auroc(~example.normal, full.amax((1, 2)).numpy()) or 0.0
    return 50 * (pixel + image)


def choose_trust(examples: Sequence[Example], log: Callable[..., None]) -> float:
    """The least trust whose mean figure lies within LOSS of the best one's."""
    figures = {t: float(np.mean([figure(e, t) for e in examples])) for t in TRUSTS}
    log("trust", **{f"{t}": v for t, v in figures.items()})
    return min(t for t, v in figures.items() if v >= max(figures.values()) - LOSS)


def fit_head(
    model: SpgddGpt, examples: Sequence[Example], log: Callable[..., None], steps: int = 150
) -> float:
    """Choose the trust, fit gain and bias to the known sets, write the head; the trust."""
    trust = choose_trust(examples, log)
    grids = [fuse(e, trust) for e in examples]
    numbers = torch.tensor([10.0, -5.0], requires_grad=True)
    optimiser = torch.optim.Adam([numbers], 0.1)
    loss = torch.zeros(())
    for _ in range(steps):
        total = []
        for e, grid in zip(examples, grids, strict=True):
            z = numbers[0] * grid + numbers[1]
            halves = torch.stack([-z / 2, z / 2], 1)
            located, ill = torch.from_numpy(e.located), torch.from_numpy(~e.normal)
            total += list(map_terms(halves, e.labels, located, ill).values())
        loss = torch.stack(total).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    gain, bias = (float(v) for v in numbers.detach())
    log("head", trust=trust, gain=gain, bias=bias, loss=float(loss.detach()))
    write_head(model, gain * weights_of(trust), bias)
    return trust


def write_head(model: SpgddGpt, weights: Tensor, bias: float) -> None:
    """The MLP that computes sum(weights * inputs) + bias; weights (9,)."""
    head = model.head
    with torch.no_grad():
        head.hidden.weight.zero_()
        head.hidden.bias.zero_()
        head.hidden.weight[:INPUTS] = torch.eye(INPUTS)
        head.out.weight.zero_()
        head.out.weight[0, :INPUTS], head.out.weight[1, :INPUTS] = -weights / 2, weights / 2
        head.out.bias.copy_(torch.tensor([-bias / 2, bias / 2]))
