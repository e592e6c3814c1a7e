"""Tap a for kinds never seen: the `LocalTap` of the stem, trained on made kinds alone.

It starts as PatchCore's features (principal axes of the deep stem channels, half blurred 3x3, unit
length) and moves little: its few numbers learn on procedural kinds what a defect does to a
distance. Real sets stay out of it, so that it treats every real part as unseen (with `bsdata`
among the batches it learned that set and lost `mt` and `elpv`: figures in docs/evaluation.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.corpus import GRID, Corpus
from calibration.stage_vision import (
    COVERED,
    Batch,
    Sampler,
    VisionSettings,
    bank_distances,
    map_terms,
)
from export.model import SpgddGpt
from export.model.clip import LocalTap
from export.model.tddf import chord, unit

DEEP = 112
# The oddness of a patch becomes P through the cosine with the "normal" anchor: a bias this long.
NORMAL_PULL = 0.03


@dataclass(frozen=True)
class LocalSettings:
    """Hyperparameters of this stage."""

    steps: int = 250
    lr: float = 2e-4
    few_shot: float = 0.5
    seed: int = 42


def start_local(local: LocalTap, features: NDArray[np.float16]) -> None:
    """Principal axes of unit deep features (N,272,15,15); blur between identity and 3x3 mean."""
    half = local.mix.out_channels
    flat = np.asarray(features[:, :DEEP], np.float32).transpose(0, 2, 3, 1).reshape(-1, DEEP)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    _, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    with torch.no_grad():
        local.mix.weight.zero_()
        local.mix.weight[:, :DEEP, 0, 0] = torch.from_numpy(axes[:, ::-1][:, :half].T.copy())
        local.blur.weight.fill_(0.55 / 9)
        local.blur.weight[:, 0, 1, 1] += 0.45


class _Probe(nn.Module):
    """The tap with a text-like cue and three fusion weights: thrown away after training."""

    def __init__(self, local: LocalTap, seed: int) -> None:
        super().__init__()
        self.local = local
        width = 2 * local.mix.out_channels
        torch.manual_seed(seed)
        self.register_buffer("anchors", unit(torch.randn(2, width)))
        self.linear = nn.Linear(width, width)
        read_oddness(self.linear, self.get_buffer("anchors"), 0.5)
        self.tau = nn.Parameter(torch.tensor(10.0))
        self.weights = nn.Parameter(torch.tensor([3.0, 8.0, 2.0, -5.0]))

    def terms(self, batch: Batch, shots: int) -> dict[str, Tensor]:
        """Losses of one batch whose first `shots` pictures are memory."""
        tap = self.local(batch.features)
        keep = slice(shots, None)
        d = chord(unit(self.linear(tap[keep])) @ self.get_buffer("anchors").T)
        cue = self.tau * (d[..., 0] - d[..., 1])
        z = self.weights[0] * torch.tanh(cue / 2) + self.weights[3]
        if shots:
            am = bank_distances((tap[keep],), [tap[:shots].detach()])[..., 0] * 2
            z = self.weights[2] * torch.tanh(cue / 2) + self.weights[1] * am + self.weights[3]
        grid = z.view(-1, GRID, GRID)
        labels, located = batch.labels[keep], batch.located[keep]
        found = map_terms(
            torch.stack([-grid / 2, grid / 2], 1), labels, located, ~batch.normal[keep]
        )
        if located.any():
            cells = F.adaptive_avg_pool2d(labels[:, None], GRID).flatten(1)[located] > COVERED
            found["p"] = F.binary_cross_entropy_with_logits(
                cue[located], cells.float(), pos_weight=torch.tensor(4.0)
            )
        return found


def read_oddness(linear: nn.Linear, anchors: Tensor, pull: float) -> None:
    """P from the tap's second half: its length, as the cosine with the normal anchor.

    z = [rest, pull * e_n]: rest lies across both anchors, so cos(z, e_n) falls as rest grows.
    """
    width = linear.in_features
    seeded = torch.Generator().manual_seed(0)
    fill = torch.randn(width, width - 2, generator=seeded)
    across = torch.linalg.qr(torch.cat([anchors.T, fill], 1))[0][:, 2:]
    half = width // 2
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[:, half:] = across[:, :half]
        linear.bias.copy_(pull * anchors[0])


def train_local(
    local: LocalTap, corpus: Corpus, settings: LocalSettings, log: Callable[..., None]
) -> None:
    """Train in place on the procedural kinds of a corpus."""
    plan = VisionSettings(real_share=0.0, few_shot=settings.few_shot, seed=settings.seed)
    sampler, probe = Sampler(corpus, plan), _Probe(local, settings.seed)
    slow = [*local.mix.parameters(), *local.blur.parameters(), *probe.linear.parameters()]
    quick = [local.sharpness, local.share, probe.tau, probe.weights]
    groups = [{"params": slow, "lr": settings.lr}, {"params": quick, "lr": 0.02}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [settings.lr, 0.02], settings.steps, pct_start=0.1
    )
    total = 0.0
    for step in range(settings.steps):
        batch, shots = sampler.draw()
        loss = torch.stack(list(probe.terms(batch, shots).values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*slow, *quick], 1.0)
        optimiser.step()
        schedule.step()
        total += float(loss.detach()) / 50
        if (step + 1) % 50 == 0:
            log(f"local step {step + 1}/{settings.steps}", loss=total)
            total = 0.0


def attach(model: SpgddGpt, local: LocalTap, anchors: Tensor) -> SpgddGpt:
    """A copy of a trained model whose tap a is `local`, its P the oddness; anchors (2,E)."""
    from dataclasses import replace

    width = 2 * local.mix.out_channels
    vision = replace(model.config.vision, local=width // 2)
    made = SpgddGpt(replace(model.config, vision=vision))
    state = model.state_dict() | {
        f"clip.visual.local.{k}": v for k, v in local.state_dict().items()
    }
    made.load_state_dict(state)
    read_oddness(made.tddf.linear_a, anchors, NORMAL_PULL)
    return made.eval()
