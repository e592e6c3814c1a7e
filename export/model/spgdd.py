"""SPGDD-GPT (all but the language model): pieces for training, one call for reference answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from export.model.adapter import DetectionHead, Prefix, Score
from export.model.clip import Encoded, EnhancedVvClip
from export.model.config import CLIP_MEAN, CLIP_STD, GRID, ModelConfig, preset
from export.model.memory import Mode, match
from export.model.stem import pretrained_stem
from export.model.tddf import Tddf, unit


@dataclass(frozen=True)
class Reference:
    """Reference answer of the whole detector; shapes as engines.detector.Answer."""

    score: Tensor
    map: Tensor
    p: Tensor
    distances: Tensor
    tokens: tuple[Tensor, Tensor, Tensor]
    cls: Tensor
    f_out: Tensor


class SpgddGpt(nn.Module):
    """The model in one object.

    Training uses the pieces: `normalise`, `encode_image`, `encode_text`, `anchors`, `tddf`,
    `memory`, `head`, `score`, `prefix`. `detect` is what an exported detector computes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = EnhancedVvClip(config)
        self.tddf = Tddf(config)
        self.head = DetectionHead(config)
        self.score = Score()
        self.prefix = Prefix(config)
        count = 2 * config.text.learned_contexts
        self.contexts = nn.Parameter(0.02 * torch.randn(count, config.text.width))
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def create(
        cls, name: str = "nano", *, seed: int = 42, stem_path: Path | None = None, **over: object
    ) -> "SpgddGpt":
        """A preset with seeded random weights and, for nano, the pretrained stem.

        `over` replaces fields of the ModelConfig.
        """
        torch.manual_seed(seed)
        model = cls(replace(preset(name), **over))  # type: ignore[arg-type]
        if model.config.vision.stem == "efficientnet_lite0":
            model.clip.visual.stem.load_state_dict(pretrained_stem(stem_path).state_dict())
        return model

    def normalise(self, tiles: Tensor) -> Tensor:
        """u8 RGB (B,240,240,3) -> f32 (B,3,240,240) with CLIP's mean and std."""
        pixels = tiles.permute(0, 3, 1, 2).float() / 255
        return (pixels - self.mean) / self.std

    def encode_image(self, pixels: Tensor) -> Encoded:
        """Normalised pixels (B,3,240,240) -> cls (B,E), taps; not unit length."""
        return self.clip.visual(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        """(P,T) ids -> (P,E), not unit length; ids >= vocab are learned context vectors."""
        return self.clip.encode_text(ids, self.contexts)

    def anchors(self, normal_ids: Tensor, abnormal_ids: Tensor) -> Tensor:
        """Prompt ensembles -> (2,E) [normal, abnormal]: unit each, mean, unit."""
        both = [unit(unit(self.encode_text(ids)).mean(0)) for ids in (normal_ids, abnormal_ids)]
        return torch.stack(both)

    def memory(
        self, taps: Sequence[Tensor], references: Sequence[Tensor] | None, mode: Mode
    ) -> Tensor:
        """AM (B,225,3) in [0,1] = distances/2; references None or (B,N,225,D_s) per tap."""
        if references is None:
            return torch.ones(*taps[0].shape[:2], 3, device=taps[0].device)
        return match(tuple(taps), tuple(references), mode)[0] / 2

    def compose(
        self, encoded: Encoded, anchors: Tensor, am: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(score (B,), map (B,240,240), P (B,225,3), F_out (B,225,3)).

        anchors (B,2,E): their directions are the text, the length of the abnormal one is the trust.
        """
        trust = anchors[:, 1].norm(dim=-1).clamp(max=1.0)
        anchors = unit(anchors)
        p = self.tddf(encoded.taps, anchors)
        f_out = am * p
        maps = self.head(f_out, p, am, trust)
        s_cls = self.score.cls_score(unit(encoded.cls), anchors)
        return self.score(s_cls, maps.amax((1, 2))), maps, p, f_out

    @torch.no_grad()
    def detect(
        self,
        tiles: Tensor,
        anchors: Tensor,
        references: Sequence[Tensor] | None = None,
        mode: Mode = "nearest",
        group: Tensor | None = None,
    ) -> Reference:
        """The fused detector: tiles u8 (B,240,240,3), anchors (G,2,E), memory 3 x (G,N,225,D)."""
        return self.answer(
            self.encode_image(self.normalise(tiles)), anchors, references, mode, group
        )

    @torch.no_grad()
    def answer(
        self,
        encoded: Encoded,
        anchors: Tensor,
        references: Sequence[Tensor] | None = None,
        mode: Mode = "nearest",
        group: Tensor | None = None,
    ) -> Reference:
        """`detect` from the tower's output on."""
        count = len(encoded.cls)
        group = torch.zeros(count, dtype=torch.long) if group is None else group
        chosen = None if references is None else [m[group] for m in references]
        am = self.memory(encoded.taps, chosen, mode)
        score, maps, p, f_out = self.compose(encoded, anchors[group], am)
        grid = (count, GRID, GRID, 3)
        return Reference(
            score, maps, p.view(grid), (2 * am).view(grid),
            tuple(unit(t) for t in encoded.taps),  # type: ignore[arg-type]
            unit(encoded.cls), f_out.view(grid),
        )  # fmt: skip
