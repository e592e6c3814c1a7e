"""Enhanced VV-CLIP (Section III-A, Eq. 3) and the text tower, under OpenCLIP's names."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from export.model.config import GRID, PATCHES, ModelConfig, TextConfig, VisionConfig
from export.model.stem import STEM_CHANNELS, EfficientNetLite0Stem
from export.model.transformer import EPS, Block, Transformer

EOT = 49407


class Encoded(NamedTuple):
    """What the image tower gives; nothing is normalised to unit length yet.

    cls (B,E); taps: F_a (B,225,W), F_b (B,225,W), T_c (B,225,E). The taps are new tensors.
    """

    cls: Tensor
    taps: tuple[Tensor, Tensor, Tensor]


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

    def embed(self, pixels: Tensor) -> Tensor:
        """Patch embedding, CLS first, positions, ln_pre: (B,226,W)."""
        x = self.conv1(self.stem(pixels)).flatten(2).transpose(1, 2)
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
        stream = local = self.embed(pixels)
        taps: list[Tensor] = []
        for index, block in enumerate(self.transformer.resblocks):
            stream, v = block(stream)
            tapped = index + 1 in self.config.taps
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
