"""The head's fusion, fitted on kinds the encoder never trained on, beside the ones it did.

On a kind the encoder knows P is right; on one it does not know P is noise, and only distances
tell. A head fitted on known kinds alone gives the distances no weight. Here half of its examples
are procedural kinds kept from the encoder. Few numbers: the MLP's hidden units pass its nine
inputs through and the output is their weighted sum (a ReLU MLP writes that exactly, inputs being
never negative).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.corpus import GRID, Corpus
from calibration.stage_vision import encode_features, gather, map_terms
from export.model import SpgddGpt
from export.model.memory import match
from export.model.tddf import unit

INPUTS = 9


@dataclass(frozen=True)
class HeadSettings:
    """Hyperparameters of the fit; `unseen` is the share of examples of kept-back kinds."""

    steps: int = 600
    batch: int = 64
    lr: float = 0.03
    unseen: float = 0.5
    shots: tuple[int, ...] = (0, 1, 2)
    seed: int = 42


@dataclass(frozen=True)
class Examples:
    """Head inputs [F_out, P, AM] (N,225,9), labels (N,60,60), flags (N,)."""

    inputs: Tensor
    labels: Tensor
    normal: Tensor
    located: Tensor


@torch.inference_mode()
def examples(
    model: SpgddGpt, anchors: Tensor, corpus: Corpus, kinds: Sequence[str], settings: HeadSettings,
    most: int = 10_000,
) -> Examples:  # fmt: skip
    """What the head would see: every kind at every number of shots, its first good parts as memory.

    Pictures used as memory are not judged. At most `most` pictures per kind, drawn by seed.
    """
    rng = np.random.default_rng([settings.seed, 11])
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for kind in kinds:
        rows = corpus.by_kind[kind]
        good = rows[corpus.normal[rows]]
        shots = max(settings.shots)
        judged = np.setdiff1d(rows, good[:shots])
        judged = np.sort(rng.permutation(judged)[:most])
        memory = encode_features(model, gather(corpus, good[:shots]).features).taps
        for start in range(0, len(judged), 32):
            batch = gather(corpus, judged[start : start + 32])
            taps = encode_features(model, batch.features).taps
            p = model.tddf(taps, anchors)
            for count in settings.shots:
                am = torch.ones_like(p)
                if count:
                    banks = tuple(unit(m[:count])[None].expand(len(p), -1, -1, -1) for m in memory)
                    am = match(taps, banks, "bank")[0] / 2
                inputs = torch.cat([am * p, p, am], -1)
                found.append((inputs, batch.labels, batch.normal, batch.located))
    inputs, labels, normal, located = (torch.cat(column) for column in zip(*found, strict=True))
    return Examples(inputs, labels, normal, located)


def fit_head(
    model: SpgddGpt,
    known: Examples,
    unseen: Examples,
    settings: HeadSettings,
    log: Callable[..., None],
) -> None:
    """Fit the weighted sum and write it into the model's head."""
    rng = np.random.default_rng([settings.seed, 12])
    weights = torch.full((INPUTS,), 1.0).requires_grad_()
    bias = torch.tensor(-4.0, requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], settings.lr)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    few = round(settings.unseen * settings.batch)
    total = 0.0
    for step in range(settings.steps):
        chosen = [
            (e, torch.from_numpy(rng.integers(0, len(e.inputs), n)))
            for e, n in ((unseen, few), (known, settings.batch - few))
        ]
        inputs, labels, normal, located = (
            torch.cat([getattr(e, name)[rows] for e, rows in chosen])
            for name in ("inputs", "labels", "normal", "located")
        )
        # Never negative: nothing may make a patch look better by being odd.
        z = (inputs @ F.softplus(weights) + bias).view(-1, GRID, GRID)
        terms = map_terms(torch.stack([-z / 2, z / 2], 1), labels, located, ~normal)
        loss = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        plan.step()
        total += float(loss.detach()) / 100
        if (step + 1) % 100 == 0:
            log(f"head step {step + 1}/{settings.steps}", loss=total)
            total = 0.0
    fused = F.softplus(weights.detach())
    log("head weights", **{n: float(w) for n, w in zip(NAMES, fused, strict=True)})
    write_head(model, fused, bias.detach())


NAMES = tuple(f"{part}_{tap}" for part in ("f", "p", "am") for tap in "abc")


def write_head(model: SpgddGpt, weights: Tensor, bias: Tensor) -> None:
    """The MLP that computes sum(weights * inputs) + bias; weights (9,), all >= 0."""
    head = model.head
    with torch.no_grad():
        head.hidden.weight.zero_()
        head.hidden.bias.zero_()
        head.hidden.weight[:INPUTS] = torch.eye(INPUTS)
        head.out.weight.zero_()
        head.out.weight[0, :INPUTS], head.out.weight[1, :INPUTS] = -weights / 2, weights / 2
        head.out.bias.copy_(torch.stack([-bias / 2, bias / 2]))
