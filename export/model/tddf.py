"""Text-Driven Defect Focuser (Section III-B, Eqs. 4-6)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.model.config import ModelConfig


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """v / ||v||_2; the paper prints the square, its text says unit hyper-sphere."""
    return x / x.norm(dim=dim, keepdim=True).clamp(min=1e-12)


def chord(cos: Tensor) -> Tensor:
    """Euclidean distance of unit vectors from their cosine: sqrt(max(0, 2-2cos)).

    The clamp is 1e-6, not 0, because sqrt has no gradient at 0.
    """
    return torch.sqrt((2 - 2 * cos).clamp(min=1e-6))


def delta_d(z: Tensor, anchors: Tensor) -> Tensor:
    """Eq. 6: d_n - d_a. z (...,E), anchors (...,2,E) or (2,E) as [normal, abnormal] -> (...)."""
    cos = unit(z) @ unit(anchors).transpose(-1, -2)
    d = chord(cos)
    return d[..., 0] - d[..., 1]


class Tddf(nn.Module):
    """Defect-focused maps P (B,15,15,3) in (0,1) from the three taps and the text anchors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trained = config.tddf_trained
        self.tau = nn.Parameter(torch.tensor(float(config.tau)))
        if self.trained:
            width, dim = config.vision.width, config.embed_dim
            self.linear_a = nn.Linear(width, dim)
            self.linear_b = nn.Linear(width, dim)

    def deltas(self, taps: tuple[Tensor, ...], anchors: Tensor) -> Tensor:
        """Raw Delta d, (B,225,3); anchors (B,2,E) or (2,E). For losses."""
        last = delta_d(taps[2], anchors)
        if not self.trained:
            return torch.stack([last] * 3, -1)
        first = delta_d(self.linear_a(taps[0]), anchors)
        second = delta_d(self.linear_b(taps[1]), anchors)
        return torch.stack([first, second, last], -1)

    def forward(self, taps: tuple[Tensor, ...], anchors: Tensor) -> Tensor:
        """P = sigmoid(tau * Delta d), (B,225,3)."""
        return torch.sigmoid(self.tau * self.deltas(taps, anchors))


def tddf_loss(delta: Tensor, abnormal: Tensor, margin: float = 0.0) -> Tensor:
    """Signed hinge, mean: abnormal max(0, m + d_a - d_n), normal max(0, m + d_n - d_a).

    delta = d_n - d_a (any shape); abnormal: bool of the same shape.
    """
    sign = torch.where(abnormal, -1.0, 1.0)
    return F.relu(margin + sign * delta).mean()


def tddf_loss_literal(delta: Tensor) -> Tensor:
    """Eq. 4 as printed: max(0, d_n - d_a) whatever the label."""
    return F.relu(delta).mean()


def separation_loss(anchors: Tensor) -> Tensor:
    """L_Sep as a hinge: max(0, 1 - ||e_n - e_a||^2); anchors (...,2,E). Without its lambda."""
    e = unit(anchors)
    return F.relu(1 - (e[..., 0, :] - e[..., 1, :]).square().sum(-1)).mean()
