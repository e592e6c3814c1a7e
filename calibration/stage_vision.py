"""Stages (a, b, c) on cached stem features: encoder, TDDF and detection head, zero- and few-shot.

One batch is one kind. In half of the steps one to four of its good parts act as memory for the
others, so that taps, distances and head are trained as they will be used; the other half is
zero-shot with AM = 1. The anchors are free vectors here; stage (a, text) brings the text tower to
them. Frozen: the stem, its projection (principal axes of its features) and the value path of the
first block, so that tap a stays what it is for parts never seen: plain pretrained features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.corpus import GRID, LABEL, Corpus
from calibration.trust import reference_trust
from export.model import SpgddGpt
from export.model.clip import Encoded
from export.model.memory import match
from export.model.tddf import chord, separation_loss, tddf_loss, tddf_loss_literal, unit
from export.model.transformer import Block

PATCHES = GRID * GRID
MAX_SHOTS = 4
# A patch is abnormal when this share of it is; between 0 and this it says nothing either way.
COVERED = 0.06


@dataclass(frozen=True)
class VisionSettings:
    """Hyperparameters of the vision stage."""

    steps: int = 900
    batch: int = 24
    lr: float = 6e-4
    weight_decay: float = 0.03
    warmup: float = 0.06
    ema: float = 0.995
    few_shot: float = 0.5
    no_text_cue: float = 0.25
    margin: float = 0.2
    lambda_sep: float = 0.001
    paper_literal: bool = False
    real_share: float = 0.62
    focus: float = 0.5
    """Share of the first set (by name) among batches of two real sets is 1 - focus."""
    free_projection: bool = False
    """Also train conv1 and the value path of block 1 (tap a then drifts from plain features)."""
    seed: int = 42
    device: str = "cpu"
    bf16: bool = False
    """Autocast the forward pass to bfloat16 (losses stay FP32)."""


@dataclass(frozen=True)
class Batch:
    """Pictures of one kind: features (B,272,15,15), labels (B,60,60), flags (B,) bool."""

    features: Tensor
    labels: Tensor
    normal: Tensor
    located: Tensor

    def to(self, device: str) -> "Batch":
        """On another device."""
        parts = (self.features, self.labels, self.normal, self.located)
        return Batch(*(part.to(device) for part in parts))


def first_block(model: SpgddGpt) -> Block:
    """Block 1 of the image tower, whose value path makes tap a."""
    return cast(Block, model.clip.visual.transformer.resblocks[0])


def start_from_stem(model: SpgddGpt, features: NDArray[np.float16]) -> None:
    """conv1 = principal axes of stem features (N,272,15,15); block 1 passes values through."""
    visual, width = model.clip.visual, model.config.vision.width
    rows = np.asarray(features, np.float32).transpose(0, 2, 3, 1).reshape(-1, features.shape[1])
    values, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    axes = axes[:, ::-1][:, :width]
    gains = np.sqrt(np.maximum(values[::-1][:width], 1e-6))
    first = first_block(model)
    with torch.no_grad():
        visual.conv1.weight.copy_(torch.from_numpy(axes.T.copy())[..., None, None])
        visual.positional_embedding[1:].mul_(0.01)
        first.attn.in_proj_weight[2 * width :] = torch.eye(width)
        first.attn.out_proj.weight.copy_(torch.eye(width))
        lift = torch.from_numpy((gains.mean() / gains) ** 0.7).float().clamp(0.3, 8.0)
        first.ln_2.weight.copy_(lift)


def start_head(model: SpgddGpt) -> None:
    """An MLP head that starts as "more of anything is worse" with a low prior.

    From a random start the flood of good pixels kills its few ReLUs within a hundred steps.
    """
    head = model.head
    if head.kind != "mlp":
        return
    with torch.no_grad():
        head.hidden.weight.abs_()
        head.hidden.bias.zero_()
        strength = head.out.weight.abs().mean(0)
        head.out.weight.copy_(torch.stack([-strength, strength]))
        head.out.bias.copy_(torch.tensor([2.0, -2.0]))


class VisionTrainer(nn.Module):
    """Model and free anchors; `loss` of one batch."""

    def __init__(
        self, model: SpgddGpt, settings: VisionSettings, anchors: Tensor | None = None
    ) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        torch.manual_seed(settings.seed)
        free = unit(torch.randn(2, model.config.embed_dim))
        self.anchors = nn.Parameter(free if anchors is None else anchors.clone())
        self.fixed_anchors = anchors is not None
        for parameter in self.frozen():
            parameter.requires_grad_(False)
        self.to(settings.device)

    def frozen(self) -> Iterator[Tensor]:
        """What keeps its pretrained value."""
        visual = self.model.clip.visual
        first = first_block(self.model)
        if self.fixed_anchors:
            yield self.anchors
        yield from visual.stem.parameters()
        if self.settings.free_projection:
            return
        yield visual.conv1.weight
        yield from visual.ln_pre.parameters()
        yield from first.ln_1.parameters()
        yield from first.attn.out_proj.parameters()

    def trainable(self) -> list[nn.Parameter]:
        """Parameters of the image side (not text, prefix, score)."""
        parts = [self.model.clip.visual, self.model.tddf, self.model.head]
        every = (self.anchors, *(p for part in parts for p in part.parameters()))
        return [p for p in every if p.requires_grad]

    def groups(self) -> list[dict[str, object]]:
        """Optimiser groups: the few numbers of head and tau move faster than the encoder."""
        fast = {id(p) for p in (*self.model.head.parameters(), self.model.tddf.tau)}
        own = self.trainable()
        slow = [p for p in own if id(p) not in fast]
        quick = [p for p in own if id(p) in fast]
        found: list[dict[str, object]] = [
            {"params": slow},
            {"params": quick, "lr": 8 * self.settings.lr, "weight_decay": 0.0},
        ]
        if not self.settings.free_projection:
            # Weight decay would move the held values although their gradient is nought.
            attn = first_block(self.model).attn
            held = {id(attn.in_proj_weight), id(attn.in_proj_bias)}
            found[0]["params"] = [p for p in slow if id(p) not in held]
            found.append({"params": [p for p in slow if id(p) in held], "weight_decay": 0.0})
        return found

    def hold_values(self) -> None:
        """Drop the gradient of block 1's value path; call between backward and step."""
        if self.settings.free_projection:
            return
        first = first_block(self.model)
        width = self.model.config.vision.width
        for parameter in (first.attn.in_proj_weight, first.attn.in_proj_bias):
            if parameter.grad is not None:
                parameter.grad[2 * width :] = 0.0

    def loss(self, batch: Batch, shots: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Loss terms of one batch; the first `shots` pictures are good and act as memory."""
        batch = batch.to(self.settings.device)
        kind = self.settings.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=self.settings.bf16):
            found = encode_features(self.model, batch.features)
        memory = [tap[:shots].detach().float() for tap in found.taps]
        keep = slice(shots, None)
        taps = tuple(tap[keep].float() for tap in found.taps)
        anchors = unit(self.anchors)
        delta = self.model.tddf.deltas(taps, anchors)
        am = bank_distances(taps, memory) if shots else torch.ones_like(delta)
        p = torch.sigmoid(self.model.tddf.tau * delta)
        p_seen = self._mute(p, rng) if shots else p
        z = self.model.head.logits(am * p_seen, p_seen, am)
        labels, located = batch.labels[keep], batch.located[keep]
        abnormal = ~batch.normal[keep]
        cells = F.adaptive_avg_pool2d(labels[:, None], GRID).flatten(1)
        peak = F.adaptive_max_pool2d(labels[:, None], GRID).flatten(1)
        best = cells == cells.amax(1, keepdim=True)
        positive = (cells > COVERED) | (best & (cells > 0))
        known = (positive | (peak <= 0)) & located[:, None]
        terms = self._tddf_terms(delta, positive, known)
        terms |= map_terms(z, labels, located, abnormal)
        cls = unit(found.cls[keep].float())
        lean = cls @ anchors[1] - cls @ anchors[0]
        flags = abnormal.float()
        terms["cls"] = F.binary_cross_entropy_with_logits(8.0 * lean, flags)
        terms["sep"] = self.settings.lambda_sep * separation_loss(self.anchors)
        return terms

    def _tddf_terms(self, delta: Tensor, positive: Tensor, known: Tensor) -> dict[str, Tensor]:
        chosen, sign = delta[known], positive[known]
        if not len(chosen):
            return {}
        if self.settings.paper_literal:
            return {"tddf": tddf_loss_literal(chosen)}
        logits = self.model.tddf.tau * chosen
        weight = torch.where(sign, 6.0, 1.0)[:, None].expand_as(logits)
        target = sign[:, None].float().expand_as(logits)
        wide = sign[:, None].expand_as(chosen)
        return {
            "tddf": tddf_loss(chosen, wide, self.settings.margin),
            "p": F.binary_cross_entropy_with_logits(logits, target, weight),
        }

    def _mute(self, p: Tensor, rng: np.random.Generator) -> Tensor:
        """Sometimes the text cue says nothing: the head must then go by distances alone."""
        mute = torch.from_numpy(rng.uniform(size=len(p)) < self.settings.no_text_cue).to(p.device)
        return torch.where(mute[:, None, None], torch.full_like(p, 0.5), p)


def map_terms(z: Tensor, labels: Tensor, located: Tensor, abnormal: Tensor) -> dict[str, Tensor]:
    """L_I (soft two-class cross entropy, dice) on located pictures; peak against the image flag."""
    lean = F.interpolate(
        (z[:, 1] - z[:, 0])[:, None], size=(LABEL, LABEL), mode="bilinear", align_corners=False
    )[:, 0]
    # Peak through a soft maximum of the strongest pixels: one pixel would give noisy gradients.
    top = lean.flatten(1).topk(8).values.mean(1)
    terms = {"peak": 0.3 * F.binary_cross_entropy_with_logits(top, abnormal.float())}
    if located.any():
        lean, target = lean[located], labels[located]
        probability = torch.sigmoid(lean)
        weight = 1.0 + 4.0 * (target > 0)
        pixel = F.binary_cross_entropy_with_logits(lean, target, weight)
        overlap = (probability * target).sum((1, 2))
        dice = 1 - (2 * overlap + 4) / (probability.square().sum((1, 2)) + target.sum((1, 2)) + 4)
        terms |= {"pixel": 2.0 * pixel, "dice": 0.3 * dice.mean()}
    return terms


def encode_features(model: SpgddGpt, features: Tensor) -> Encoded:
    """The image tower from cached stem features (B,272,15,15)."""
    visual = model.clip.visual
    stem, visual.stem = visual.stem, nn.Identity()
    try:
        return visual(features)
    finally:
        visual.stem = stem


def bank_distances(taps: tuple[Tensor, ...], memory: list[Tensor]) -> Tensor:
    """AM (B,225,3) with gradients: nearest over all references, per tap."""
    near = []
    for tap, rows in zip(taps, memory, strict=True):
        bank, query = unit(rows).flatten(0, 1), unit(tap)
        # The search needs no gradient, only the pair it finds: a third of the multiplications.
        with torch.no_grad():
            index = torch.stack([(q @ bank.T).argmax(-1) for q in query])
        near.append(chord((query * bank[index]).sum(-1)) / 2)
    return torch.stack(near, -1)


@torch.inference_mode()
def trusted(model: SpgddGpt, anchors: Tensor, features: Tensor) -> Tensor:
    """Anchors (2,E) as long as they are trusted, seen the good parts' features (K,272,15,15)."""
    p = model.tddf(encode_features(model, features).taps, unit(anchors))
    return unit(anchors) * reference_trust(p.cpu().numpy())


class Sampler:
    """Batches of one kind each: good parts first (they may become memory), then a mixture."""

    def __init__(self, corpus: Corpus, settings: VisionSettings) -> None:
        self.corpus, self.settings = corpus, settings
        self.rng = np.random.default_rng([settings.seed, 3])
        self.real = [k for k in corpus.by_kind if not k.startswith("kind-")]
        self.made = [k for k in corpus.by_kind if k.startswith("kind-")]

    def draw(self) -> tuple[Batch, int]:
        """A batch and how many of its first pictures are memory (0: zero-shot)."""
        few = self.rng.uniform() < self.settings.few_shot
        shots = int(self.rng.integers(1, MAX_SHOTS + 1)) if few else 0
        use_real = self.real and (not self.made or self.rng.uniform() < self.settings.real_share)
        names = self.real if use_real else self.made
        rows = self.corpus.by_kind[self._kind(names)]
        good, ill = (rows[self.corpus.normal[rows] == flag] for flag in (True, False))
        half = min(len(ill), (self.settings.batch - shots) * 11 // 20)
        some_good = min(len(good), self.settings.batch - half)
        picked = np.concatenate(
            [
                self.rng.choice(good, some_good, replace=False),
                self.rng.choice(ill, half, replace=False),
            ]
        )
        return gather(self.corpus, picked), min(shots, max(1, some_good - 2))

    def _kind(self, names: list[str]) -> str:
        if names is self.real and len(names) == 2:
            return names[int(self.rng.uniform() < self.settings.focus)]
        return str(self.rng.choice(names))


def gather(corpus: Corpus, rows: NDArray[np.int64]) -> Batch:
    """Rows of a corpus as tensors."""
    return Batch(
        torch.from_numpy(np.asarray(corpus.features[rows], np.float32)),
        torch.from_numpy(corpus.labels[rows].astype(np.float32)),
        torch.from_numpy(corpus.normal[rows]),
        torch.from_numpy(corpus.located[rows]),
    )


@torch.inference_mode()
def answers(
    model: SpgddGpt,
    anchors: Tensor,
    corpus: Corpus,
    memory: list[Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Maps f32 (N,60,60), peak and CLS score f32 (N,), P and AM f32 (N,225,3) over a corpus.

    anchors (2,E); their length is the trust in P (`trusted`). memory: unit taps 3 x (K,225,D).
    """
    model.eval()
    trust = anchors[1].norm().clamp(max=1.0)[None]
    anchors = unit(anchors)
    kept: dict[str, list[NDArray[np.float32]]] = {n: [] for n in ("map", "peak", "cls", "p", "am")}
    for start in range(0, len(corpus.kind), 32):
        rows = np.arange(start, min(start + 32, len(corpus.kind)))
        found = encode_features(model, gather(corpus, rows).features.to(anchors.device))
        p = model.tddf(found.taps, anchors)
        am = torch.ones_like(p)
        if memory is not None:
            banks = tuple(m[None].expand(len(rows), -1, -1, -1) for m in memory)
            am = match(found.taps, banks, "bank")[0] / 2
        z = model.head.logits(am * p, p, am, trust)
        lean = (z[:, 1] - z[:, 0])[:, None]
        lean = F.interpolate(lean, size=(LABEL, LABEL), mode="bilinear", align_corners=False)[:, 0]
        full = torch.sigmoid(lean)
        cos = unit(found.cls) @ anchors.T
        values = (full, full.amax((1, 2)), cos[:, 1] - cos[:, 0], p, am)
        for name, value in zip(kept, values, strict=True):
            kept[name].append(value.cpu().numpy())
        if progress:
            progress(start)
    return {name: np.concatenate(value) for name, value in kept.items()}
