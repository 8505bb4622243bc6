"""The parts of a space-time U-Net that look at one frame at a time: convolutions, attention, residual blocks.

Not standard: pixels are `n h w c` inside, channels last in memory and in the shape, so that convolutions and matrix
products read the same tensors without copying (n counts the frames of all clips of a batch). Norms take their
statistics from one frame, so that no frame learns of another where nothing is said to look along time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from carrara.denoisers.unet_fused import attend_space, norm_silu
from carrara.nn.attention import attend
from carrara.nn.layers import Linear, linear32


@dataclass(frozen=True)
class Frames:
    """How the n = batch (clip + alone) frames belong together: `clip` frames in order, then `alone` each for itself."""

    batch: int
    clip: int
    alone: int = 0

    def spread(self, rows: Tensor) -> Tensor:
        """Give every frame its row of `(b (1 + alone)) ...`, ordered as the clip, then its lone frames: `n ...`."""
        rows = rearrange(rows, "(b r) ... -> b r ...", b=self.batch)
        clip = repeat(rows[:, :1], "b 1 ... -> b f ...", f=self.clip)
        return torch.cat((clip, rows[:, 1:]), dim=1).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Told:
    """What every layer is told: how frames belong together, an embedding `n d` of each frame's noise level and
    conditions, and the states `n m d` of its prompt, the bias `n 1 1 m` of whose keys is -inf past the end."""

    frames: Frames
    embedding: Tensor
    text: Tensor | None = None
    text_bias: Tensor | None = None


class Norm(nn.GroupNorm):
    """Group norm of each frame `n h w c`, in groups of at least 8 channels where there are so many."""

    def __init__(self, dim: int) -> None:
        groups = next(count for count in range(max(1, min(32, dim // 8)), 0, -1) if dim % count == 0)
        super().__init__(groups, dim, eps=1e-5)

    def silu(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """SiLU of the normalised frames, to each of which a row of `added`, `n c`, is added first."""
        return norm_silu(x, self.weight, self.bias, self.num_groups, self.eps, added)


class Conv(nn.Conv2d):
    """A convolution of each frame `n h w c`."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(in_dim, out_dim, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def doubled(self, x: Tensor) -> Tensor:
        """The convolution, 3 x 3, of frames in which every position is first repeated, twice each way.

        It is one transposed convolution, whose kernel is the mirrored one summed over 2 x 2 windows: less than half of
        the multiplications, and no large tensor in between.
        """
        kernel = F.avg_pool2d(self.weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1).transpose(0, 1)
        made = F.conv_transpose2d(x.permute(0, 3, 1, 2), kernel, self.bias, stride=2, padding=1)
        return made.permute(0, 2, 3, 1).contiguous()  # some kernels write another layout


class ResidualBlock(nn.Module):
    """Two convolutions, what is told of the frame added between them (Ho et al. 2020, DDPM, appendix B).

    convolve: makes the 3 x 3 convolutions, which may look along time too; the last begins at zero (`zeros`).
    """

    def __init__(
        self, in_dim: int, out_dim: int, told_dim: int, convolve: Callable[..., nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.norm_in, self.norm_out = Norm(in_dim), Norm(out_dim)
        self.conv_in, self.conv_out = convolve(in_dim, out_dim), convolve(out_dim, out_dim)
        self.told = nn.Linear(told_dim, out_dim)
        self.dropout = nn.Dropout(dropout)
        self.skip = Linear(in_dim, out_dim) if in_dim != out_dim else nn.Identity()

    @property
    def zeros(self) -> list[nn.Module]:
        return [self.conv_out]

    def forward(self, x: Tensor, told: Told) -> Tensor:
        h = self.conv_in(self.norm_in.silu(x), told)
        h = self.norm_out.silu(h, linear32(self.told, told.embedding))
        h = self.conv_out(self.dropout(h), told)
        return self.skip(x) + h


class SpaceAttention(nn.Module):
    """The positions of a frame attend to each other; frames are a batch. Its last layer begins at zero."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads_of(dim, head_dim)
        self.norm = nn.LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)

    @property
    def zeros(self) -> list[nn.Module]:
        return [self.out]

    def forward(self, x: Tensor, told: Told) -> Tensor:
        found = attend_space(self.qkv(self.norm(x)).flatten(1, 2), self.heads)
        return x + self.out(found.view(x.shape))


class TextAttention(nn.Module):
    """The positions of a frame attend to the tokens of its prompt. Its last layer begins at zero."""

    def __init__(self, dim: int, text_dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads_of(dim, head_dim)
        self.norm = nn.LayerNorm(dim)
        self.text_norm = nn.LayerNorm(text_dim)
        self.q, self.kv, self.out = Linear(dim, dim), Linear(text_dim, 2 * dim), Linear(dim, dim)

    @property
    def zeros(self) -> list[nn.Module]:
        return [self.out]

    def forward(self, x: Tensor, told: Told) -> Tensor:
        assert told.text is not None
        _, rows, _, dim = x.shape
        q = rearrange(self.q(self.norm(x)), "n h w (k c) -> n k (h w) c", k=self.heads)
        keys = self.kv(self.text_norm(told.text))
        k, v = rearrange(keys, "n m (two k c) -> two n k m c", two=2, k=self.heads).unbind(0)
        found = attend(q * (dim // self.heads) ** -0.5, k, v, told.text_bias)
        return x + self.out(rearrange(found, "n k (h w) c -> n h w (k c)", h=rows))


class TextPool(nn.Module):
    """One vector of a prompt: a learned query attends to its tokens (as Ho et al. 2022, VDM, pool BERT's states)."""

    def __init__(self, text_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_dim)
        self.query = nn.Linear(text_dim, 1)
        self.out = nn.Linear(text_dim, out_dim)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """States `r m d` with a bias `r m` (-inf past the end) to `r out`, float32."""
        states = self.norm(states.float())
        weights = (linear32(self.query, states)[..., 0] + bias).softmax(-1)
        return linear32(self.out, (weights[..., None] * states).sum(1))


def heads_of(dim: int, head_dim: int) -> int:
    """How many heads of about this width divide a layer of this width."""
    return next(count for count in range(max(1, dim // head_dim), 0, -1) if dim % count == 0)
