"""The layers of a space-time U-Net that look along time, and how they join a network of single frames.

    TimeAttention      every place attends along the clip, with a bias for each distance (VDM, Ho et al. 2022)
    SpaceTimeConv      a spatial convolution, then one along time that begins as the identity (Make-A-Video, Singer et
                       al. 2022, section 3.2.1)
    TimeBlock          a residual block of (3, 1, 1) convolutions (Imagen Video, Ho et al. 2022; Video LDM, Blattmann et
                       al. 2023)
    Mixed              any of them, faded in by a learned weight (Video LDM, section 3.1)

Every one begins as the identity, so a network that gains them makes at first what it made before, frame by frame.
Not standard: a frame that is alone passes all of them untouched (VDM leaves the value and output layers of a time
attention in the path of images), so on single frames the network is, to the bit, the network without these layers; and
images appended to a clip need no mask, for nothing that looks along time ever sees them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from carrara.denoisers.unet_blocks import Conv, Frames, Norm, Told, heads_of
from carrara.denoisers.unet_fused import attend_time
from carrara.nn.layers import Linear


class AlongTime(nn.Module):
    """A layer that sees clips `b f h w c` of at least two frames; frames that are alone pass it untouched."""

    def forward(self, x: Tensor, told: Told) -> Tensor:
        frames = told.frames
        if frames.clip < 2:
            return x
        clip, alone = split(x, frames)
        made = self.along(clip)
        return rearrange(made if alone is None else torch.cat((made, alone), dim=1), "b f h w c -> (b f) h w c")

    def along(self, clip: Tensor) -> Tensor:
        raise NotImplementedError


class TimeAttention(AlongTime):
    """Every place of a clip attends to itself at all times: no place sees another here.

    The score of frame i with frame j has a learned bias for j - i, all distances of `FAR` or more sharing one.
    """

    FAR = 32

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads_of(dim, head_dim)
        self.norm = nn.LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        self.distances = nn.Parameter(torch.zeros(2 * self.FAR + 1, self.heads))

    @property
    def zeros(self) -> list[nn.Module]:
        return [self.out]

    def bias(self, frames: int) -> Tensor:
        """What is added to the scores: `heads frames frames`, rows being the frames that ask."""
        at = torch.arange(frames, device=self.distances.device)
        distance = (at[None, :] - at[:, None]).clamp(-self.FAR, self.FAR) + self.FAR
        return rearrange(self.distances[distance], "i j k -> k i j")

    def along(self, clip: Tensor) -> Tensor:
        found = attend_time(self.qkv(self.norm(clip)).flatten(2, 3), self.bias(clip.shape[1]))
        return clip + self.out(found).view(clip.shape)


class TimeConv(AlongTime):
    """A convolution along time with a kernel of 3 frames; beyond the ends there is nothing (zeros).

    `along` is one call of a two-dimensional convolution, over frames and the places of a frame in a row.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dim, 3, 1))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.become_identity()

    @torch.no_grad()
    def become_identity(self) -> None:
        """The weights that change nothing (a Dirac kernel)."""
        nn.init.dirac_(self.weight)
        nn.init.zeros_(self.bias)

    def along(self, clip: Tensor) -> Tensor:
        strip = rearrange(clip, "b f h w c -> b c f (h w)")
        made = F.conv2d(strip, self.weight, self.bias, padding=(1, 0))
        return rearrange(made, "b c f (h w) -> b f h w c", h=clip.shape[2])


class SpaceConv(Conv):
    """A spatial convolution where layers are told about frames."""

    def forward(self, x: Tensor, told: Told | None = None) -> Tensor:
        return super().forward(x)

    def doubled(self, x: Tensor, told: Told | None = None) -> Tensor:
        return super().doubled(x)


class SpaceTimeConv(nn.Module):
    """Make-A-Video's pseudo-3D convolution: first in space, then in time, where it begins as the identity."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.space = SpaceConv(in_dim, out_dim, kernel, stride)
        self.time = TimeConv(out_dim)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        return self.time(self.space(x), told)

    def doubled(self, x: Tensor, told: Told) -> Tensor:
        return self.time(self.space.doubled(x), told)


class TimeBlock(AlongTime):
    """A residual block along time: norm, convolution, norm, convolution, the last of which begins at zero."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = Norm(dim), Norm(dim)
        self.conv_in, self.conv_out = TimeConv(dim), TimeConv(dim)

    @property
    def zeros(self) -> list[nn.Module]:
        return [self.conv_out]

    def along(self, clip: Tensor) -> Tensor:
        h = clip
        for norm, conv in ((self.norm_in, self.conv_in), (self.norm_out, self.conv_out)):
            h = conv.along(norm.silu(h.flatten(0, 1)).unflatten(0, clip.shape[:2]))
        return clip + h


class Mixed(nn.Module):
    """`alpha x + (1 - alpha) layer(x)` with alpha learned in [0, 1]: at 1 the layer is not there, to the bit."""

    def __init__(self, layer: AlongTime) -> None:
        super().__init__()
        self.layer = layer
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, told: Told) -> Tensor:
        if told.frames.clip < 2:
            return x
        made = self.layer(x, told)
        return torch.lerp(made, x, self.logit.sigmoid().to(x.dtype))


def split(x: Tensor, frames: Frames) -> tuple[Tensor, Tensor | None]:
    """`n h w c` as clips `b f h w c` and their lone frames `b alone h w c`, where there are such."""
    whole = rearrange(x, "(b f) h w c -> b f h w c", b=frames.batch)
    return (whole[:, : frames.clip], whole[:, frames.clip :]) if frames.alone else (whole, None)
