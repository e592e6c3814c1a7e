"""Enhanced VV-CLIP (Section III-A, Eq. 3) and the text tower, under OpenCLIP's names."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from export.model.config import GRID, PATCHES, ModelConfig, TextConfig, VisionConfig
from export.model.stem import STEM_CHANNELS, EfficientNetLite0Stem
from export.model.tddf import unit
from export.model.transformer import EPS, Block, Transformer

EOT = 49407


class Encoded(NamedTuple):
    """What the image tower gives; nothing is normalised to unit length yet.

    cls (B,E); taps: F_a (B,225,W), F_b (B,225,W), T_c (B,225,E). The taps are new tensors.
    """

    cls: Tensor
    taps: tuple[Tensor, Tensor, Tensor]


class LocalTap(nn.Module):
    """Tap a from the stem itself (beyond the paper): (B,272,15,15) -> (B,225,2*half).

    The first half: pretrained features, mixed, blurred 3x3, unit length. The second half: what the
    similar patches of the same picture, more than NEAR patches away, leave unexplained of them. A
    trained block forgets what it did not need for the kinds it saw; this tap does not.
    """

    away: Tensor
    NEAR = 2

    def __init__(self, half: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(STEM_CHANNELS, half, 1, bias=False)
        self.blur = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.sharpness = nn.Parameter(torch.tensor(20.0))
        self.share = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("away", neighbours(self.NEAR), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """See the class; rows are not unit length: their norm says how odd the patch is."""
        u = unit(self.blur(self.mix(features)).flatten(2).transpose(1, 2))
        like = (self.sharpness * (u @ u.transpose(1, 2)) + self.away).softmax(-1)
        return torch.cat([u, self.share * (u - like @ u)], -1)


def neighbours(near: int) -> Tensor:
    """(225,225): -1e4 where two patches lie at most `near` rows and columns apart, else 0."""
    y, x = torch.arange(PATCHES) // GRID, torch.arange(PATCHES) % GRID
    apart = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    return torch.where(apart <= near, -1e4, 0.0)


class VisionTower(nn.Module):
    """(B,3,240,240) CLIP-normalised pixels -> `Encoded`."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, scale = config.width, config.width**-0.5
        if config.stem == "patch":
            self.stem: nn.Module = nn.Identity()
            self.conv1 = nn.Conv2d(3, width, 16, 16, bias=False)
        else:
            self.stem = EfficientNetLite0Stem()
            self.conv1 = nn.Conv2d(STEM_CHANNELS, width, 1, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(PATCHES + 1, width))
        self.ln_pre = nn.LayerNorm(width, eps=EPS)
        self.transformer = Transformer(width, config.heads, config.layers, config.mlp_ratio)
        self.ln_post = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))
        self.local = LocalTap(config.local) if config.local else None

    def embed(self, features: Tensor) -> Tensor:
        """Patch embedding of the stem's output, CLS first, positions, ln_pre: (B,226,W)."""
        x = self.conv1(features).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(x.shape[0], 1, -1)
        return self.ln_pre(torch.cat([cls, x], 1) + self.positional_embedding)

    def _local(self, index: int, v: Tensor, stream: Tensor, local: Tensor) -> Tensor:
        """The local features of block `index` (0-based) by branch (Table VII)."""
        attn = cast(Block, self.transformer.resblocks[index]).attn
        if self.config.branch == "enhanced":
            return attn.vv(v)
        if self.config.branch == "accumulated":  # Eq. 2: every block adds to the local stream
            return local + attn.vv(v)
        return attn.project(v) if self.config.branch == "maskclip" else stream

    def forward(self, pixels: Tensor) -> Encoded:
        """See the class. Only tapped blocks compute the local branch (all, if accumulated)."""
        features = self.stem(pixels)
        stream = local = self.embed(features)
        taps = [] if self.local is None else [self.local(features)]
        from_blocks = self.config.taps[len(taps) :]
        for index, block in enumerate(self.transformer.resblocks):
            stream, v = block(stream)
            tapped = index + 1 in from_blocks
            if tapped or self.config.branch == "accumulated":
                local = self._local(index, v, stream, local)
            if tapped:
                taps.append(local[:, 1:].clone())
        aligned = self.ln_post(taps[2]) @ self.proj
        return Encoded(self.ln_post(stream[:, 0]) @ self.proj, (taps[0], taps[1], aligned))


class EnhancedVvClip(nn.Module):
    """Both towers. `load_state_dict(strict=True)` takes an OpenCLIP checkpoint unchanged."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        self.visual = VisionTower(config.vision, config.embed_dim)
        self.transformer = Transformer(text.width, text.heads, text.layers)
        self.token_embedding = nn.Embedding(text.vocab, text.rank or text.width)
        if text.rank:
            self.token_projection = nn.Linear(text.rank, text.width, bias=False)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(text.context, text.width))
        self.ln_final = nn.LayerNorm(text.width, eps=EPS)
        self.text_projection = nn.Parameter(
            text.width**-0.5 * torch.randn(text.width, config.embed_dim)
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        nn.init.normal_(self.token_embedding.weight, std=0.02 if text.rank is None else 0.1)

    def embed_tokens(self, ids: Tensor, contexts: Tensor | None = None) -> Tensor:
        """(P,T) ids -> (P,T,width). Ids from `vocab` on index rows of `contexts` (learned)."""
        vocab = self.config.text.vocab
        x = self.token_embedding(ids.clamp(max=vocab - 1))
        if self.config.text.rank:
            x = self.token_projection(x)
        if contexts is None or not len(contexts):
            return x
        learned = contexts[(ids - vocab).clamp(min=0)]
        return torch.where((ids >= vocab)[..., None], learned, x)

    def encode_text(self, ids: Tensor, contexts: Tensor | None = None) -> Tensor:
        """(P,T<=77) int64 ids, zero padded -> (P,E), pooled at the first EOT, not unit length."""
        x = self.embed_tokens(ids, contexts) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer.resblocks:
            x, _ = block(x, causal=True)
        end = (ids == EOT).int().argmax(1)
        return self.ln_final(x[torch.arange(len(x), device=x.device), end]) @ self.text_projection


__all__ = ["GRID", "PATCHES", "Encoded", "EnhancedVvClip", "TextConfig", "VisionTower"]
