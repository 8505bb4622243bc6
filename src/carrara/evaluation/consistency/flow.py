"""Optical flow without a network: block matching from coarse to fine, then Lucas-Kanade below the pixel.

Not the usual pyramid of Lucas and Kanade alone: a small thing that moves further than its own width vanishes from the
coarse levels' gradients, but not from their sums of differences. So whole displacements are found by comparing blocks
(every one at the coarsest level, then the neighbours of what the level above found), and gradients only refine them.
Pictures are float `n c h w` in levels from 0 to 255; a flow is float `n 2 h w`, (x, y) in pixels: what `first` shows at
p, `second` shows at p + flow(p).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

COARSEST = 14  # levels are halved while the shorter side stays at least this long
SEARCH = 3  # pixels in each direction at the coarsest level
WINDOW = 5  # side of the compared blocks, at every level
PULL = 0.25  # levels of difference that one pixel away from the level above (at the coarsest: from rest) must gain
LEAST_GAIN = 0.5  # levels of difference by which moving must be better than resting, or it is noise
GAP = 9  # pixels: what cannot be told within an area that moves moves with it, where it is no wider
STEPS = 2  # of Lucas-Kanade
FLAT = 1.0  # squared levels per pixel: below this gradient a place does not know how it moves
MOST_PAIRS = 32  # at a time, to bound the memory


@torch.no_grad()
def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """The flow from `first` to `second`, float `n c h w` in 0..255 -> `n 2 h w` in pixels.

    Block matching (sum of absolute differences over 5 x 5 pixels) over a pyramid, refined by Lucas and Kanade (1981).
    Finds displacements up to about a fifth of the shorter side. Where nothing has structure it gives rest or what its
    surroundings do; at what is newly hidden it is a guess.
    """
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(f"pictures of {tuple(first.shape)} and {tuple(second.shape)}: expected two equal n c h w")
    if not len(first):
        return first.new_zeros(0, 2, *first.shape[2:])
    return torch.cat([_flow(a, b) for a, b in zip(first.split(MOST_PAIRS), second.split(MOST_PAIRS))])


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """What `picture` shows at p + flow(p): float `n c h w`, `n 2 h w` -> `n c h w`; beyond the border its edge."""
    return sample(picture, grid_like(flow) + flow)


def pick(picture: Tensor, flow: Tensor) -> Tensor:
    """`warp` by whole pixels, many times faster."""
    height, width = picture.shape[-2:]
    x, y = (grid_like(flow) + flow).unbind(1)
    places = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long().flatten(1)
    return picture.flatten(2).gather(2, places[:, None].expand(-1, picture.shape[1], -1)).reshape(picture.shape)


def sample(picture: Tensor, points: Tensor) -> Tensor:
    """Values of `n c h w` at points `n 2 ...` (x, y in pixels) by bilinear interpolation: `n c ...`."""
    height, width = picture.shape[-2:]
    scale = points.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
    flat = rearrange(points.flatten(2), "n xy p -> n 1 p xy") * scale - 1
    found = F.grid_sample(picture, flat, mode="bilinear", padding_mode="border", align_corners=True)
    return found.reshape(*picture.shape[:2], *points.shape[2:])


def grid_like(flow: Tensor) -> Tensor:
    """Every pixel's own place (x, y) in pixels, `1 2 h w`, for a picture or flow `... h w`."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y))[None].to(flow)


def smooth(picture: Tensor, side: int = WINDOW) -> Tensor:
    """The mean over a square around every pixel; at the border over the part that exists."""
    return _row_means(_row_means(picture, side).mT, side).mT.contiguous()


def block_difference(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """How much blocks differ under a flow, mean levels, `n 1 h w`."""
    return smooth((first - warp(second, flow)).abs().mean(1, keepdim=True))


def closed(mask: Tensor) -> Tensor:
    """A mask, bool `n 1 h w`, with gaps and holes of less than `GAP` pixels closed: the inside of a plain thing shows
    no motion, and moves with its edge."""
    grown = F.pad(mask.float(), (GAP // 2 * 2,) * 4)
    for window in ((GAP, 1), (1, GAP)):
        grown = F.max_pool2d(grown, window, 1)
    shrunk = -grown
    for window in ((GAP, 1), (1, GAP)):
        shrunk = F.max_pool2d(shrunk, window, 1)
    return shrunk < 0


def _row_means(picture: Tensor, side: int) -> Tensor:
    """Sums of shifted copies: several times as fast as pooling on a CPU."""
    reach, width = side // 2, picture.shape[-1]
    padded = F.pad(picture, (reach, reach))
    total = padded[..., :width].clone()
    for shift in range(1, side):
        total += padded[..., shift : shift + width]
    at = torch.arange(width)
    return total / (at.clamp(max=reach) + at.flip(0).clamp(max=reach) + 1)


def _flow(first: Tensor, second: Tensor) -> Tensor:
    levels = [(first, second)]
    while min(levels[-1][0].shape[-2:]) >= 2 * COARSEST:
        levels.append((F.avg_pool2d(levels[-1][0], 2), F.avg_pool2d(levels[-1][1], 2)))
    flow = _search(*levels[-1], torch.zeros_like(levels[-1][0][:, :2]), SEARCH)
    for fine in levels[-2::-1]:
        height, width = fine[0].shape[-2:]
        larger = flow.repeat_interleave(2, -1).repeat_interleave(2, -2)
        flow = 2 * F.pad(larger, (0, width % 2, 0, height % 2), "replicate")
        flow = _search(*fine, flow, 1)
    flow = _refine(first, second, flow)
    gain = block_difference(first, second, torch.zeros_like(flow)) - block_difference(first, second, flow)
    return flow * closed(gain > LEAST_GAIN)


def _search(first: Tensor, second: Tensor, start: Tensor, reach: int) -> Tensor:
    """The best of the whole displacements around `start` and of what the neighbours start from."""
    steps = [(x, y) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
    candidates = [start + start.new_tensor(step)[:, None, None] for step in steps]
    if reach < SEARCH:
        padded = F.pad(start, (2, 2, 2, 2), "replicate")
        height, width = start.shape[-2:]
        candidates += [padded[..., y : y + height, x : x + width] for x, y in ((0, 2), (4, 2), (2, 0), (2, 4))]
    best, least = start, torch.full_like(start[:, :1], torch.inf)
    for candidate in candidates:
        cost = smooth((first - pick(second, candidate)).abs().mean(1, keepdim=True))
        cost = cost + PULL * (candidate - start).square().sum(1, keepdim=True).sqrt()
        better = cost < least
        best, least = torch.where(better, candidate, best), torch.where(better, cost, least)
    return best


def _refine(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """Gauss-Newton steps of at most a pixel on the squared difference of blocks, kept where they help.

    Neighbours may have been matched by different whole displacements, so each pixel of a block says what it knows of
    the flow itself, g . f = g . f(its own) - difference, and not of a step from the flow in the middle.
    """
    for _ in range(STEPS):
        warped = warp(second, flow)
        middle = F.pad((first + warped) / 2, (1, 1, 1, 1), "replicate")
        x = (middle[..., 1:-1, 2:] - middle[..., 1:-1, :-2]) / 2
        y = (middle[..., 2:, 1:-1] - middle[..., :-2, 1:-1]) / 2
        known = x * flow[:, :1] + y * flow[:, 1:] - (warped - first)
        xx, xy, yy, xk, yk = (
            smooth((a * b).mean(1, keepdim=True)) for a, b in ((x, x), (x, y), (y, y), (x, known), (y, known))
        )
        mean = smooth(flow)
        xx, yy = xx + FLAT, yy + FLAT
        xk, yk = xk + FLAT * mean[:, :1], yk + FLAT * mean[:, 1:]
        best = torch.cat((yy * xk - xy * yk, xx * yk - xy * xk), 1) / (xx * yy - xy * xy)
        moved = flow + (best - flow).clamp(-1, 1)
        better = block_difference(first, second, moved) < block_difference(first, second, flow)
        flow = torch.where(better, moved, flow)
    return flow
