"""Regions to paint on: from pixels to latents, and what lies under them while the clip is encoded.

A latent position covers a block of pixels and a causal latent frame four frames, so the hole in latents is larger than
the one that was drawn: it takes every position that the mask touches, in any of the frames that the latent frame stands
for. What is painted outside the mask is put back afterwards, pixel by pixel.

The encoder looks beyond a position's own pixels, so what was in the hole would still be seen from its edge. It is
therefore filled from its surroundings first: nothing that is made depends on what was there.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from carrara.core.types import Stride


def latent_hole(hole: Tensor, stride: Stride) -> Tensor:
    """A hole in pixels, bool `t h w` of 1 + 4k frames, as the latents that are made anew: bool `f h/s w/s`.

    A latent position is in it if any pixel of any frame that it stands for is.
    """
    blocks = reduce(hole.float(), "t (h p) (w q) -> t h w", "max", p=stride.space, q=stride.space)
    first, rest = blocks[:1], reduce(blocks[1:], "(f s) h w -> f h w", "max", s=stride.time)
    return torch.cat([first, rest]) > 0


def filled(frames: Tensor, hole: Tensor) -> Tensor:
    """Frames uint8 `t h w 3` with the hole `t h w` filled smoothly from around it; what was there plays no part.

    Push and pull: means of what is known over ever larger squares, and each hole takes the finest that has any. A frame
    that is all hole becomes grey.
    """
    x = rearrange(frames, "t h w c -> t c h w").float()
    known = rearrange(~hole, "t h w -> t 1 h w").float()
    smooth = _filled(x * known, known)
    return torch.where(hole[..., None], rearrange(smooth, "t c h w -> t h w c").round().to(torch.uint8), frames)


def _filled(total: Tensor, weight: Tensor) -> Tensor:
    """total: values times weight; weight in [0, 1]: how much of each place is known."""
    here = total / weight.clamp_min(1e-6)
    height, width = total.shape[2:]
    if bool((weight > 0).all()):
        return here
    if height == width == 1:
        return torch.where(weight > 0, here, 127.5)
    padded = (0, width % 2, 0, height % 2)
    coarse = _filled(F.avg_pool2d(F.pad(total, padded), 2), F.avg_pool2d(F.pad(weight, padded), 2))
    around = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)[:, :, :height, :width]
    return torch.where(weight > 0, here, around)
