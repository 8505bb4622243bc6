"""Sampling with a measurement known: of the data only `measure(data)` is, such as a smaller, slower copy of a clip.

Reconstruction guidance once more (Ho et al. 2022, "Video Diffusion Models", eq. 8): the estimate is moved down the
gradient of the error with which its own measurement misses the known one. `conditioning.guide_known` is the case where
the measurement is some of the values themselves; the two compose, known values outside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from carrara.diffusion.conditioning import Weight
from carrara.diffusion.grids import Denoise, GridPoint

Measure = Callable[[Tensor], Tensor]
"""Data to what is measured of it; differentiable."""


def guide_measured(denoise: Denoise, measured: Tensor, measure: Measure, weight: Weight) -> Denoise:
    """The estimate, moved by -(weight alpha / 2) grad |measured - measure(estimate)|^2, the gradient being by x.

    It goes through the network, so an evaluation costs about three times as much, and `denoise` must not run in
    inference mode. weight: a number, or a function of the grid point. For Gaussian data and the right weight the
    result is the posterior mean, which is a test. Where x has a gradient already, the estimate keeps it.
    """

    def guided(x: Tensor, point: GridPoint) -> Tensor:
        scale = weight(point) if callable(weight) else weight
        outer = x.requires_grad
        with torch.enable_grad():
            seen = x if outer else x.detach().requires_grad_()
            estimate = denoise(seen, point)
            error = (measured - measure(estimate)).square().sum()
            (gradient,) = torch.autograd.grad(error, seen, retain_graph=outer)
            moved = estimate - 0.5 * scale * point.alpha * gradient
        return moved if outer else moved.detach()

    return guided
