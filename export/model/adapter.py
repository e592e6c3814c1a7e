"""Adapter module (Section III-D): detection head, image score, and the prefix for the LLM."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.model.config import GRID, ModelConfig

SIZE = 240
CELLS = 3
LEARNED = 9


def upsample(grid: Tensor) -> Tensor:
    """(B,C,15,15) -> (B,C,240,240), bilinear, align_corners=False."""
    return F.interpolate(grid, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def doubted(p: Tensor, trust: Tensor) -> Tensor:
    """P (B,225,3), the odds of taps b and c times `trust` (B,); tap a says how odd, not how bad.

    Beyond the paper: `calibration.trust` sets it by what P says of the good parts themselves.
    """
    doubt = (1 - trust)[:, None, None] * torch.tensor([0.0, 1.0, 1.0], device=p.device)
    return p * (1 - doubt) / (1 - p * doubt)


class DetectionHead(nn.Module):
    """Anomaly map (B,240,240) in [0,1] from F_out, P and AM (each (B,225,3))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.head
        if self.kind == "paper_literal":
            self.out = nn.Linear(3, 2)
        elif self.kind == "linear":
            self.out = nn.Linear(9, 2)
        elif self.kind == "mlp":
            self.hidden = nn.Linear(9, config.head_hidden)
            self.out = nn.Linear(config.head_hidden, 2)

    def logits(self, f_out: Tensor, p: Tensor, am: Tensor, trust: Tensor | None = None) -> Tensor:
        """Per-patch logits (B,2,15,15), [normal, anomalous]; for the training loss L_I.

        trust (B,) in (0,1]: the factor on the odds of P of taps b and c (`doubted`). None: 1.
        Upsample with `upsample` before the cross entropy. The untrained head `mean` has none and
        gives log(1-m), log(m) of the channel mean instead, which softmax turns back into m.
        """
        if self.kind == "mean":
            m = f_out.mean(-1).clamp(1e-7, 1 - 1e-7)
            z = torch.stack([torch.log1p(-m), torch.log(m)], -1)
        elif self.kind == "paper_literal":
            z = self.out(f_out)
        else:
            z = torch.cat([f_out, p if trust is None else doubted(p, trust), am], -1)
            z = self.out(F.relu(self.hidden(z)) if self.kind == "mlp" else z)
        return z.transpose(1, 2).reshape(len(z), 2, GRID, GRID)

    def forward(self, f_out: Tensor, p: Tensor, am: Tensor, trust: Tensor | None = None) -> Tensor:
        """Channel 1 of the softmax of the upsampled logits; untrained: the upsampled mean."""
        if self.kind == "mean":
            return upsample(f_out.mean(-1).view(-1, 1, GRID, GRID))[:, 0]
        return upsample(self.logits(f_out, p, am, trust)).softmax(1)[:, 1]


class Score(nn.Module):
    """Image score: weighted harmonic mean of the CLS score and the map's maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(100.0), requires_grad=False)

    def cls_score(self, cls: Tensor, anchors: Tensor) -> Tensor:
        """softmax(scale * [cos_n, cos_a])[1]; unit cls (B,E), unit anchors (B,2,E) -> (B,)."""
        cos = (anchors @ cls[..., None])[..., 0]
        return torch.sigmoid(self.scale * (cos[:, 1] - cos[:, 0]))

    def forward(self, s_cls: Tensor, peak: Tensor) -> Tensor:
        """s = 1/(w/s_cls + (1-w)/max map); 0 if either is 0. All (B,)."""
        safe = 1 / (self.weight / s_cls + (1 - self.weight) / peak)
        return torch.where((s_cls > 0) & (peak > 0), safe, torch.zeros_like(safe))


class Prefix(nn.Module):
    """21 embeddings for the LLM: image 1, texts 2, map 9, learned 9."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, config.llm_hidden
        self.image = nn.Linear(dim, hidden)
        self.text = nn.Linear(dim, hidden)
        self.map = nn.Linear(3, hidden)
        self.learned = nn.Parameter(0.02 * torch.randn(LEARNED, hidden))

    def forward(self, cls: Tensor, anchors: Tensor, f_out: Tensor) -> Tensor:
        """Unit cls (B,E), unit anchors (B,2,E), f_out (B,225,3) -> (B,21,H)."""
        grid = f_out.transpose(1, 2).reshape(-1, 3, GRID, GRID)
        cells = F.max_pool2d(grid, GRID // CELLS).flatten(2).transpose(1, 2)
        learned = self.learned.expand(len(cls), -1, -1)
        return torch.cat(
            [self.image(cls)[:, None], self.text(anchors), self.map(cells), learned], 1
        )
