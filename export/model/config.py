"""One configuration class for both presets; it travels as JSON inside every weights file."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Branch = Literal["enhanced", "accumulated", "maskclip", "clip"]
Stem = Literal["patch", "efficientnet_lite0"]
Head = Literal["mean", "linear", "mlp", "paper_literal"]

GRID = 15
"""Patches per side: 240 px / 16 px."""
PATCHES = GRID * GRID
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """The image tower. `taps` count blocks from 1: block l is `resblocks.{l-1}`."""

    width: int
    heads: int
    layers: int
    taps: tuple[int, int, int]
    stem: Stem = "patch"
    mlp_ratio: float = 4.0
    branch: Branch = "enhanced"
    local: int = 0
    """Beyond the paper: half the width makes tap a a `LocalTap`; 0: it is a block's V-V tap."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.local and (2 * self.local != self.width or self.stem == "patch"):
            raise ValueError(f"local {self.local} needs a convolutional stem and half the width")
        if list(self.taps) != sorted(set(self.taps)) or not 1 <= self.taps[0] <= self.taps[2]:
            raise ValueError(f"taps must be three rising block numbers from 1, not {self.taps}")
        if self.taps[2] > self.layers:
            raise ValueError(f"tap {self.taps[2]} of a tower with {self.layers} blocks")


@dataclass(frozen=True)
class TextConfig:
    """The text tower. `rank` factorises the token embedding (V x rank, then rank -> width)."""

    width: int
    heads: int
    layers: int
    context: int = 77
    vocab: int = 49408
    rank: int | None = None
    learned_contexts: int = 0
    """Learned context vectors per state (PromptAD form); 0 = the written templates are used.

    Trained by no stage (see the package): `engines.text` writes words, never ids above `vocab`.
    """


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a shape or a branch; numbers that are learned live in the weights."""

    name: str
    vision: VisionConfig
    text: TextConfig
    embed_dim: int
    llm_hidden: int
    head: Head = "mean"
    head_hidden: int = 0
    tddf_trained: bool = False
    """False: the last tap's map is broadcast to three channels (training-free CLIP)."""
    tau: float = 100.0
    """Start value of `tddf.tau`."""
    trained: str = "random initialisation"
    """What the weights are, in plain words; copied into the manifest."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def tap_dims(self) -> tuple[int, int, int]:
        """Feature size of the three memory taps: W, W, E."""
        return (self.vision.width, self.vision.width, self.embed_dim)

    def to_json(self) -> str:
        """Canonical JSON (sorted keys)."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "ModelConfig":
        """Inverse of `to_json`; unknown keys raise TypeError."""
        raw = json.loads(text)
        vision = dict(raw.pop("vision"))
        vision["taps"] = tuple(vision["taps"])
        text_part = raw.pop("text")
        return ModelConfig(vision=VisionConfig(**vision), text=TextConfig(**text_part), **raw)


def preset(name: str) -> ModelConfig:
    """`paper` (ViT-B-16-plus-240 + Vicuna-7B) or `nano` (hybrid ViT + SmolLM2-135M)."""
    if name == "paper":
        return ModelConfig(
            name="paper",
            vision=VisionConfig(width=896, heads=14, layers=12, taps=(3, 8, 12)),
            text=TextConfig(width=640, heads=10, layers=12),
            embed_dim=640,
            llm_hidden=4096,
        )
    if name == "nano":
        return ModelConfig(
            name="nano",
            vision=VisionConfig(
                width=192, heads=3, layers=4, taps=(2, 3, 4), stem="efficientnet_lite0"
            ),
            text=TextConfig(width=192, heads=3, layers=3, rank=64),
            embed_dim=192,
            llm_hidden=576,
            head="mlp",
            head_hidden=16,
            tddf_trained=True,
            tau=10.0,
            trained="pretrained stem (ImageNet), transformer randomly initialised: not trained",
        )
    raise ValueError(f"unknown preset {name!r}: use 'paper' or 'nano'")
