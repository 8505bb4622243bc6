"""Inflated Inception (I3D, Carreira & Zisserman, arXiv 1705.07750), RGB stream: FVD's network, without its weights.

The layer layout is that of the published network; convolutions and pools pad as TensorFlow's SAME does, because that is
how the weights were trained. The weights are the user's: a state dict as the widespread PyTorch port names it
(`Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b1a.bn.running_mean`, ..., `logits.conv3d.bias`). Without them nothing here
can be compared with the original; what the tests show is that names, shapes and arithmetic of the layout fit.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, max_pool3d, pad, relu

from carrara.core.weights import NameTable

CLASSES = 400  # Kinetics-400; FVD's features are these logits
SIDE = 224
LEAST_FRAMES = 9  # fewer leave less than two frames for the last pool

Three = tuple[int, int, int]

# Channels of each mixture: 1x1 | 1x1 then 3x3 | 1x1 then 3x3 | pool then 1x1; and the pools between them.
MIXTURES: dict[str, tuple[int, int, int, int, int, int]] = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE: dict[str, tuple[Three, Three]] = {  # size and stride
    "3b": ((1, 3, 3), (1, 2, 2)),
    "4b": ((3, 3, 3), (2, 2, 2)),
    "5b": ((2, 2, 2), (2, 2, 2)),
}

TABLE = NameTable(
    [
        ("stem.convolution", "Conv3d_1a_7x7.conv3d"),
        ("stem.norm", "Conv3d_1a_7x7.bn"),
        ("point.convolution", "Conv3d_2b_1x1.conv3d"),
        ("point.norm", "Conv3d_2b_1x1.bn"),
        ("wide.convolution", "Conv3d_2c_3x3.conv3d"),
        ("wide.norm", "Conv3d_2c_3x3.bn"),
        *(
            (f"mixtures.{name}.{ours}.{part}", f"Mixed_{name}.{theirs}.{their_part}")
            for name in MIXTURES
            for ours, theirs in (
                ("point", "b0"),
                ("narrow_in", "b1a"),
                ("narrow_out", "b1b"),
                ("wide_in", "b2a"),
                ("wide_out", "b2b"),
                ("pooled", "b3b"),
            )
            for part, their_part in (("convolution", "conv3d"), ("norm", "bn"))
        ),
        ("logits", "logits.conv3d"),
    ]
)


class Unit(nn.Module):
    """Convolution without bias, batch norm by the trained statistics, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.size, self.stride = (size,) * 3, (stride,) * 3
        self.convolution = nn.Conv3d(inputs, outputs, size, stride, bias=False)
        self.norm = FrozenNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.norm(self.convolution(pad_same(x, self.size, self.stride))))


class FrozenNorm(nn.Module):
    """Batch norm that never trains: (x - mean) / sqrt(var + 1e-3) * weight + bias per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(self.running_var + 1e-3)
        shift = self.bias - self.running_mean * scale
        return x * rearrange(scale, "c -> c 1 1 1") + rearrange(shift, "c -> c 1 1 1")


class Mixture(nn.Module):
    """Four ways side by side: a point, two sizes of neighbourhood (both 3 x 3 x 3 here, as published), and a pool."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        point, narrow_in, narrow_out, wide_in, wide_out, pooled = widths
        self.point = Unit(inputs, point)
        self.narrow_in, self.narrow_out = Unit(inputs, narrow_in), Unit(narrow_in, narrow_out, 3)
        self.wide_in, self.wide_out = Unit(inputs, wide_in), Unit(wide_in, wide_out, 3)
        self.pooled = Unit(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(pool_same(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat(
            [self.point(x), self.narrow_out(self.narrow_in(x)), self.wide_out(self.wide_in(x)), pooled], dim=1
        )


class I3D(nn.Module):
    """Video `b 3 t 224 224` in [-1, 1], t at least 9, to the mean logits over time `b 400`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Unit(3, 64, 7, 2)
        self.point = Unit(64, 64)
        self.wide = Unit(64, 192, 3)
        self.mixtures = nn.ModuleDict()
        inputs = 192
        for name, widths in MIXTURES.items():
            self.mixtures[name] = Mixture(inputs, widths)
            inputs = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = nn.Conv3d(inputs, CLASSES, 1)

    def forward(self, video: Tensor) -> Tensor:
        x = pool_same(self.stem(video), (1, 3, 3), (1, 2, 2))
        x = self.wide(self.point(x))
        for name, mixture in self.mixtures.items():
            if name in POOL_BEFORE:
                x = pool_same(x, *POOL_BEFORE[name])
            x = mixture(x)
        x = self.logits(avg_pool3d(x, (2, 7, 7), stride=1))
        return reduce(x, "b c t h w -> b c", "mean")


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: ceil(length / stride) positions, the odd zero behind."""
    total = max(0, (-(-length // stride) - 1) * stride + size - length)
    return total // 2, total - total // 2


def pad_same(x: Tensor, size: Three, stride: Three) -> Tensor:
    """Zeros around time, rows and columns of `b c t h w`."""
    front, top, left = (same_padding(n, k, s) for n, k, s in zip(x.shape[2:], size, stride))
    return pad(x, (*left, *top, *front))


def pool_same(x: Tensor, size: Three, stride: Three) -> Tensor:
    """The maximum; what it reads is never negative (a ReLU's), so zeros around it change nothing."""
    return max_pool3d(pad_same(x, size, stride), size, stride)
