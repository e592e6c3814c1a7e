"""An independent CLIP in NumPy float64, by OpenCLIP's names; shares no code with export.model."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])


def random_checkpoint(rng, *, width, layers, embed, text_width, text_layers, vocab=49408):
    """A state dict as open_clip writes it for a ViT with 16x16 patches at 240 px (float32)."""

    def block(prefix, w):
        return {
            f"{prefix}.ln_1.weight": 1 + 0.1 * rng.normal(size=w),
            f"{prefix}.ln_1.bias": 0.1 * rng.normal(size=w),
            f"{prefix}.attn.in_proj_weight": rng.normal(size=(3 * w, w)) * w**-0.5,
            f"{prefix}.attn.in_proj_bias": 0.1 * rng.normal(size=3 * w),
            f"{prefix}.attn.out_proj.weight": rng.normal(size=(w, w)) * w**-0.5,
            f"{prefix}.attn.out_proj.bias": 0.1 * rng.normal(size=w),
            f"{prefix}.ln_2.weight": 1 + 0.1 * rng.normal(size=w),
            f"{prefix}.ln_2.bias": 0.1 * rng.normal(size=w),
            f"{prefix}.mlp.c_fc.weight": rng.normal(size=(4 * w, w)) * w**-0.5,
            f"{prefix}.mlp.c_fc.bias": 0.1 * rng.normal(size=4 * w),
            f"{prefix}.mlp.c_proj.weight": rng.normal(size=(w, 4 * w)) * (4 * w) ** -0.5,
            f"{prefix}.mlp.c_proj.bias": 0.1 * rng.normal(size=w),
        }

    state = {
        "positional_embedding": 0.1 * rng.normal(size=(77, text_width)),
        "text_projection": rng.normal(size=(text_width, embed)) * text_width**-0.5,
        "logit_scale": np.array(4.6052),
        "visual.class_embedding": rng.normal(size=width),
        "visual.positional_embedding": rng.normal(size=(226, width)),
        "visual.proj": rng.normal(size=(width, embed)) * width**-0.5,
        "visual.conv1.weight": rng.normal(size=(width, 3, 16, 16)) * 768**-0.5,
        "token_embedding.weight": rng.normal(size=(vocab, text_width)),
    }
    for name, w in (
        ("visual.ln_pre", width),
        ("visual.ln_post", width),
        ("ln_final", text_width),
    ):
        state[f"{name}.weight"] = 1 + 0.1 * rng.normal(size=w)
        state[f"{name}.bias"] = 0.1 * rng.normal(size=w)
    for i in range(layers):
        state |= block(f"visual.transformer.resblocks.{i}", width)
    for i in range(text_layers):
        state |= block(f"transformer.resblocks.{i}", text_width)
    return {k: np.asarray(v, np.float32) for k, v in state.items()}


class NumpyClip:
    """Forward passes in float64 over such a state dict."""

    def __init__(self, state, heads, text_heads):
        self.s = {k: v.astype(np.float64) for k, v in state.items()}
        self.heads, self.text_heads = heads, text_heads

    def norm(self, x, name):
        mean = x.mean(-1, keepdims=True)
        var = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5) * self.s[f"{name}.weight"] + self.s[f"{name}.bias"]

    def attention(self, q, k, v, heads, p, mask=None):
        d = q.shape[-1] // heads
        merged = np.empty_like(q)
        for h in range(heads):
            cut = slice(h * d, (h + 1) * d)
            logits = q[:, cut] @ k[:, cut].T / math.sqrt(d)
            logits = logits if mask is None else logits + mask
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            merged[:, cut] = weights / weights.sum(-1, keepdims=True) @ v[:, cut]
        return merged @ self.s[f"{p}.attn.out_proj.weight"].T + self.s[f"{p}.attn.out_proj.bias"]

    def block(self, x, p, heads, mask=None):
        """Next stream and the V-V output of this block."""
        w = x.shape[-1]
        y = self.norm(x, f"{p}.ln_1")
        weight, bias = self.s[f"{p}.attn.in_proj_weight"], self.s[f"{p}.attn.in_proj_bias"]
        q, k, v = (y @ weight[i * w : (i + 1) * w].T + bias[i * w : (i + 1) * w] for i in range(3))
        local = self.attention(v, v, v, heads, p)
        x = x + self.attention(q, k, v, heads, p, mask)
        h = self.norm(x, f"{p}.ln_2") @ self.s[f"{p}.mlp.c_fc.weight"].T
        h = h + self.s[f"{p}.mlp.c_fc.bias"]
        h = 0.5 * h * (1 + _erf(h / math.sqrt(2)))
        return x + h @ self.s[f"{p}.mlp.c_proj.weight"].T + self.s[f"{p}.mlp.c_proj.bias"], local

    def image(self, pixels, layers, taps):
        """(3,240,240) normalised pixels -> cls (E,), taps [(225,W), (225,W), (225,E)]."""
        width = self.s["visual.class_embedding"].shape[0]
        patches = pixels.reshape(3, 15, 16, 15, 16).transpose(1, 3, 0, 2, 4).reshape(225, -1)
        x = patches @ self.s["visual.conv1.weight"].reshape(width, -1).T
        x = np.concatenate([self.s["visual.class_embedding"][None], x])
        x = self.norm(x + self.s["visual.positional_embedding"], "visual.ln_pre")
        kept = []
        for i in range(layers):
            x, local = self.block(x, f"visual.transformer.resblocks.{i}", self.heads)
            if i + 1 in taps:
                kept.append(local[1:])
        kept[2] = self.norm(kept[2], "visual.ln_post") @ self.s["visual.proj"]
        return self.norm(x[0], "visual.ln_post") @ self.s["visual.proj"], kept

    def text(self, ids, layers):
        """(T,) ids -> (E,)."""
        x = self.s["token_embedding.weight"][ids] + self.s["positional_embedding"][: len(ids)]
        mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
        for i in range(layers):
            x, _ = self.block(x, f"transformer.resblocks.{i}", self.text_heads, mask)
        return self.norm(x[ids.argmax()], "ln_final") @ self.s["text_projection"]
