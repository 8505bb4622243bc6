"""The picture between two pictures, along the optical flow."""

from __future__ import annotations

import torch
from torch import Tensor

from carrara.evaluation.consistency.flow import grid_like, optical_flow, smooth, warp

MATCHED = 4.0  # levels of difference that divide a pixel's say by e
FASTEST = 4.0  # pixels of flow, each of which multiplies it by e; what moves is mostly in front of what does not
HOLE = 1e-3  # of weight


def halfway(first: Tensor, second: Tensor) -> Tensor:
    """The picture half-way in time between two, float `n c h w` in 0..255: every pixel moves along half of its flow,
    from both sides; where none arrives it is the mean of the two.

    Where several arrive, the better matched and then the faster count more: softmax splatting (Niklaus and Liu 2020,
    arXiv 2003.05534) with weights that are fixed here and learnt there.
    """
    total = first.new_zeros(first.shape[0], first.shape[1] + 1, *first.shape[2:])
    for here, there in ((first, second), (second, first)):
        flow = optical_flow(here, there)
        badness = smooth((here - warp(there, flow)).abs().mean(1, keepdim=True), 3)
        weight = torch.exp(flow.square().sum(1, keepdim=True).sqrt().clamp(max=FASTEST) - badness / MATCHED)
        total += splat(torch.cat((here * weight, weight), 1), flow / 2)
    weight = total[:, -1:]
    return torch.where(weight > HOLE, total[:, :-1] / weight.clamp(min=HOLE), (first + second) / 2)


def splat(values: Tensor, flow: Tensor) -> Tensor:
    """Add every pixel of `n c h w` to the four around where `n 2 h w` takes it; what leaves the picture is lost."""
    height, width = values.shape[-2:]
    x, y = (grid_like(flow) + flow).unbind(1)
    result = torch.zeros_like(values).flatten(2)
    for left, top in (
        (x.floor(), y.floor()),
        (x.floor() + 1, y.floor()),
        (x.floor(), y.floor() + 1),
        (x.floor() + 1, y.floor() + 1),
    ):
        share = (1 - (x - left).abs()) * (1 - (y - top).abs())
        inside = (left >= 0) & (left < width) & (top >= 0) & (top < height)
        place = (top.clamp(0, height - 1) * width + left.clamp(0, width - 1)).long()
        part = values * (share * inside)[:, None]
        result.scatter_add_(2, place.flatten(1)[:, None].expand(-1, values.shape[1], -1), part.flatten(2))
    return result.reshape(values.shape)
