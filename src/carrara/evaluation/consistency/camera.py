"""Camera motion, and what moves otherwise: a robust affine fit to the flow, and what is left of it."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from scipy import ndimage
from torch import Tensor

from carrara.evaluation.consistency.flow import LEAST_GAIN, block_difference, closed, grid_like, smooth

ROUNDS = 8  # of reweighting
TOLERANCE = 0.5  # pixels from the fit at which a pixel's say is halved
LEAST_MOTION = 0.5  # pixels against the camera, to be moving by itself
LEAST_AREA = 0.003  # of the picture, for one connected thing
STRUCTURE = 2.0  # levels of contrast from which a place says how it moves


def camera_flow(flow: Tensor, frames: Tensor) -> Tensor:
    """The affine motion that most of the picture shares, `n 2 h w` -> `n 2 h w`: iteratively reweighted least squares
    with Cauchy's weights 1 / (1 + (r / tolerance)^2). Places without structure in `frames`, `n c h w`, say little."""
    height, width = flow.shape[-2:]
    x, y = grid_like(flow)[0]
    basis = torch.stack((torch.ones_like(x), 2 * x / width - 1, 2 * y / height - 1), -1).flatten(0, 1).double()
    goal = rearrange(flow, "n xy h w -> n (h w) xy").double()
    texture = (frames - smooth(frames)).abs().mean(1).flatten(1).double()
    trust = 0.05 + texture / (texture + STRUCTURE)
    fit = torch.median(goal, 1, keepdim=True).values.expand_as(goal)
    for _ in range(ROUNDS):
        weight = trust / (1 + (goal - fit).square().sum(-1) / TOLERANCE**2)
        weighted = weight[..., None] * basis
        normal = weighted.mT @ basis + 1e-6 * torch.eye(3, dtype=torch.float64)
        fit = basis @ torch.linalg.solve(normal, weighted.mT @ goal)
    return rearrange(fit, "n (h w) xy -> n xy h w", h=height).to(flow)


def moving_pixels(first: Tensor, second: Tensor, flow: Tensor, camera: Tensor) -> Tensor:
    """Where connected areas move otherwise than the camera, and it does not explain what they show: bool `n h w`.

    first, second: float `n c h w` in 0..255; flow, camera: from the one to the other, `n 2 h w`.
    """
    lengths = (flow - camera).square().sum(1, keepdim=True).sqrt()
    gain = block_difference(first, second, camera) - block_difference(first, second, flow)
    candidates = closed((lengths > LEAST_MOTION) & (gain > LEAST_GAIN))[:, 0]
    least = LEAST_AREA * candidates[0].numel()
    masks = []
    for candidate in candidates.numpy():
        areas, _ = ndimage.label(ndimage.binary_opening(candidate, np.ones((3, 3))))
        sizes = np.bincount(areas.ravel())
        sizes[0] = 0
        masks.append((sizes >= least)[areas])
    return torch.from_numpy(np.stack(masks))
