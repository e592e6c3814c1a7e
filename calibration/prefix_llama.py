"""A frozen Llama in torch, from the very GGUF that will speak: what the prefix is trained through.

Weights are de-quantised once; nothing of it is trained, gradients only pass to the input
embeddings. Layout is GGUF's own: rotary pairs stand side by side, so no rows are permuted.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engines.gguf_file import check_gguf

Kept = list[tuple[Tensor, Tensor]]  # per layer: keys, values (1, kv heads, T, d)


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
    def keep(self, ids: list[int]) -> Kept:
        """Keys and values of a fixed prompt, to begin every sequence with."""
        kept: Kept = []
        self._run(self.embed(ids)[None], None, kept)
        return kept

    def hidden(self, embeddings: Tensor, kept: Kept | None) -> Tensor:
        """Last hidden states (B,T,H) after the final norm, for embeddings (B,T,H) after `kept`.

        Shorter rows may be padded at their end: the causal mask keeps padding from what precedes.
        """
        return self._norm(self._run(embeddings, kept, None), "output_norm.weight")

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (...,V) of hidden states (...,H)."""
        return hidden @ self._output.T

    def _run(self, x: Tensor, kept: Kept | None, out: Kept | None) -> Tensor:
        past = kept[0][0].shape[2] if kept else 0
        steps = x.shape[1]
        angles = self._angles(past, steps)
        causal = torch.ones(steps, past + steps, dtype=torch.bool).tril(past)
        for layer in range(self.header.layers):
            before = kept[layer] if kept else None
            x = x + self._attention(x, layer, angles, causal, before, out)
            x = x + self._mlp(x, layer)
        return x

    def _attention(
        self,
        x: Tensor,
        layer: int,
        angles: Tensor,
        causal: Tensor,
        before: tuple[Tensor, Tensor] | None,
        out: Kept | None,
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
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=causal, enable_gqa=True)
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

    def _angles(self, start: int, steps: int) -> Tensor:
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        positions = torch.arange(start, start + steps, dtype=torch.float64)
        return (positions[:, None] * self.base**-exponents).float()  # (T, d/2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions on x (B,heads,T,d) with angles (T,d/2), pairs side by side."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
