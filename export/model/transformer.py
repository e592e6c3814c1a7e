"""Pre-norm transformer blocks under OpenCLIP's state-dict names, with the V-V branch of Eq. 3."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5


class Attention(nn.Module):
    """Multi-head attention that can also answer with V in the place of Q and K."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.out_proj.weight, std=width**-0.5)
        nn.init.zeros_(self.out_proj.bias)

    def qkv(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,T,W) -> three of (B,heads,T,d)."""
        batch, tokens, width = y.shape
        z = F.linear(y, self.in_proj_weight, self.in_proj_bias)
        z = z.view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return z[0], z[1], z[2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        """softmax(q k' / sqrt(d)) v, heads merged, output projection: (B,T,W)."""
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            tokens = q.shape[-2]
            future = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
            logits = logits.masked_fill(future, float("-inf"))
        return self.project(logits.softmax(-1) @ v)

    def project(self, heads: Tensor) -> Tensor:
        """(B,heads,T,d) -> (B,T,W) through `out_proj`."""
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def vv(self, v: Tensor) -> Tensor:
        """The local branch: softmax(V V'/sqrt(d)) V Wout + bout. No residual, CLS is a key."""
        return self.attend(v, v, v)


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        nn.init.normal_(self.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.c_proj.weight, std=(2 * hidden) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,W) -> (B,T,W)."""
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Residual attention block; `forward` also returns V for the local branch."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
        """(B,T,W) -> next stream (B,T,W) and V (B,heads,T,d) of THIS block's global stream."""
        q, k, v = self.attn.qkv(self.ln_1(x))
        x = x + self.attn.attend(q, k, v, causal)
        return x + self.mlp(self.ln_2(x)), v


class Transformer(nn.Module):
    """A plain stack; only there so that the names read `transformer.resblocks.{i}`."""

    def __init__(self, width: int, heads: int, layers: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))
