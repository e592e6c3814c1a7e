"""A frozen Llama in torch, from the very GGUF that will speak: what the prefix is trained through.

Weights are de-quantised once; nothing of it is trained, gradients only pass to the input
embeddings. Layout is GGUF's own: rotary pairs stand side by side, so no rows are permuted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engines.gguf_file import check_gguf


@dataclass(frozen=True)
class Context:
    """What rows have read so far: keys and values of every layer, no gradients.

    `layers`: (keys, values) each (B, kv heads, T, d). `seen`: bool (B,T), False on padding.
    `start`: long (B,), the position of what follows. B = 1 serves every row.
    """

    layers: list[tuple[Tensor, Tensor]]
    seen: Tensor
    start: Tensor

    def expand(self, rows: int) -> "Context":
        """The same context for each of `rows` rows (views, nothing is copied)."""
        layers = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers]
        return Context(layers, self.seen.expand(rows, -1), self.start.expand(rows))


class FrozenLlama:
    """Forward pass of a Llama-architecture GGUF in float32. Raises EngineError for another file."""

    def __init__(self, path: Path) -> None:
        self.header = check_gguf(path)
        meta = self.header.metadata
        self.heads = int(meta["llama.attention.head_count"])
        self.kv_heads = int(meta["llama.attention.head_count_kv"])
        self.eps = float(meta["llama.attention.layer_norm_rms_epsilon"])
        self.base = float(meta.get("llama.rope.freq_base", 10000.0))
        self.head_dim = self.header.hidden // self.heads
        self._w = {
            t.name: torch.from_numpy(
                gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
            )
            for t in gguf.GGUFReader(path).tensors
        }
        self.embedding = self._w["token_embd.weight"]  # (V,H)
        self._output = self._w.get("output.weight", self.embedding)

    def embed(self, ids: list[int]) -> Tensor:
        """Token embeddings (n,H) of ids."""
        return self.embedding[torch.tensor(ids, dtype=torch.long)]

    @torch.no_grad()
    def keep(self, rows: Sequence[Sequence[int]], context: Context | None = None) -> Context:
        """Context of token rows of any lengths, to begin every sequence with, after `context`."""
        lengths = torch.tensor([len(row) for row in rows])
        wide = int(lengths.max())
        padded = torch.stack([self.embed([*row, *[0] * (wide - len(row))]) for row in rows])
        own: list[tuple[Tensor, Tensor]] = []
        self._run(padded, context, own)
        seen = torch.arange(wide) < lengths[:, None]
        if context is None:
            return Context(own, seen, lengths)
        before = context.expand(len(rows))
        layers = [
            (torch.cat([k0, k1], 2), torch.cat([v0, v1], 2))
            for (k0, v0), (k1, v1) in zip(before.layers, own, strict=True)
        ]
        return Context(layers, torch.cat([before.seen, seen], 1), before.start + lengths)

    def hidden(self, embeddings: Tensor, context: Context | None) -> Tensor:
        """Last hidden states (B,T,H) after the final norm, for embeddings (B,T,H) after `context`.

        Shorter rows may be padded at their end: the causal mask keeps padding from what precedes.
        """
        return self._norm(self._run(embeddings, context, None), "output_norm.weight")

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (...,V) of hidden states (...,H)."""
        return hidden @ self._output.T

    def _run(
        self, x: Tensor, context: Context | None, out: list[tuple[Tensor, Tensor]] | None
    ) -> Tensor:
        steps = x.shape[1]
        start = context.start if context else torch.zeros(1, dtype=torch.long)
        angles = self._angles(start, steps)
        mask = torch.ones(1, 1, steps, steps, dtype=torch.bool).tril()
        if context:
            seen = context.seen[:, None, None, :].expand(-1, 1, steps, -1)
            mask = torch.cat([seen, mask.expand(len(seen), -1, -1, -1)], 3)
        for layer in range(self.header.layers):
            before = context.layers[layer] if context else None
            x = x + self._attention(x, layer, angles, mask, before, out)
            x = x + self._mlp(x, layer)
        return x

    def _attention(
        self,
        x: Tensor,
        layer: int,
        angles: Tensor,
        mask: Tensor,
        before: tuple[Tensor, Tensor] | None,
        out: list[tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        h = self._norm(x, f"blk.{layer}.attn_norm.weight")
        q = self._heads(h, f"blk.{layer}.attn_q.weight", self.heads)
        k = self._heads(h, f"blk.{layer}.attn_k.weight", self.kv_heads)
        v = self._heads(h, f"blk.{layer}.attn_v.weight", self.kv_heads)
        q, k = rotate(q, angles), rotate(k, angles)
        if out is not None:
            out.append((k, v))
        if before is not None:
            k = torch.cat([before[0].expand(len(x), -1, -1, -1), k], 2)
            v = torch.cat([before[1].expand(len(x), -1, -1, -1), v], 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        merged = y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
        return merged @ self._w[f"blk.{layer}.attn_output.weight"].T

    def _heads(self, h: Tensor, name: str, heads: int) -> Tensor:
        projected = h @ self._w[name].T
        return projected.view(h.shape[0], h.shape[1], heads, self.head_dim).transpose(1, 2)

    def _mlp(self, x: Tensor, layer: int) -> Tensor:
        h = self._norm(x, f"blk.{layer}.ffn_norm.weight")
        gate = F.silu(h @ self._w[f"blk.{layer}.ffn_gate.weight"].T)
        up = h @ self._w[f"blk.{layer}.ffn_up.weight"].T
        return (gate * up) @ self._w[f"blk.{layer}.ffn_down.weight"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self._w[name]

    def _angles(self, start: Tensor, steps: int) -> Tensor:
        """Rotary angles (B,1,T,d/2) of positions from `start` (B,) on."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        positions = (start[:, None] + torch.arange(steps)).double()
        return (positions[:, None, :, None] * self.base**-exponents).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions on x (B,heads,T,d) with angles (B or 1,1,T,d/2), pairs side by side."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
