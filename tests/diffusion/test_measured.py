"""Guidance towards a measurement: for Gaussian data and the right weight it is the posterior mean."""

from __future__ import annotations

import pytest
import torch
from einops import reduce
from torch import Tensor

from carrara.diffusion.conditioning import guide_known
from carrara.diffusion.grids import GridPoint, vp_grid
from carrara.diffusion.measured import guide_measured
from carrara.diffusion.schedules import CosineVP

VARIANCE = 0.3  # of every pixel, around 0


def spread(point: GridPoint) -> float:
    """The variance of a pixel given what is seen at this point."""
    return 1 / (1 / VARIANCE + point.alpha**2 / point.sigma**2)


def gaussian(x: Tensor, point: GridPoint) -> Tensor:
    return spread(point) * point.alpha / point.sigma**2 * x


def small(x: Tensor) -> Tensor:
    return reduce(x, "b c f (h p) (w q) -> b c f h w", "mean", p=2, q=2)


def exact(point: GridPoint) -> float:
    return 4 * point.sigma**2 / (spread(point) * point.alpha**2)


@pytest.mark.parametrize("at", [3, 10, 18])
def test_for_gaussian_data_it_is_the_posterior_mean(at):
    point = vp_grid(CosineVP(), 20).points[at]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    measured = torch.randn(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    free = gaussian(x, point)
    found = guide_measured(gaussian, measured, small, exact)(x, point)
    wanted = free + (measured - small(free)).repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(small(found), measured)
    assert not found.requires_grad


def test_weight_zero_is_the_estimate_and_the_mean_is_moved_by_half_at_half_the_weight():
    point = vp_grid(CosineVP(), 20).points[12]
    x, measured = torch.randn(1, 3, 1, 4, 4, dtype=torch.float64), torch.zeros(1, 3, 1, 2, 2, dtype=torch.float64)
    none, half, whole = (
        guide_measured(gaussian, measured, small, share * exact(point))(x, point) for share in (0, 0.5, 1)
    )
    torch.testing.assert_close(none, gaussian(x, point))
    torch.testing.assert_close(half, (none + whole) / 2)


def test_it_composes_with_known_values():
    """Inside `guide_known` the estimate keeps its gradient, so that known values move the rest as well."""
    point = vp_grid(CosineVP(), 20).points[12]
    generator = torch.Generator().manual_seed(1)
    x, known, noise = torch.randn(3, 1, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    measured = torch.zeros(1, 3, 2, 2, 2, dtype=torch.float64)
    mixed = torch.randn(2, 2, generator=generator, dtype=torch.float64)

    def across(x: Tensor, point: GridPoint) -> Tensor:
        return torch.einsum("bcfhw,fg->bcghw", gaussian(x, point), mixed)

    steered = guide_measured(across, measured, small, 1.0)
    mask = torch.tensor([[True, False]])
    found = guide_known(steered, known, mask, noise, 0.7)(x, point)
    assert found[:, :, 0].equal(known[:, :, 0])
    seen = torch.cat([point.alpha * known[:, :, :1] + point.sigma * noise[:, :, :1], x[:, :, 1:]], dim=2)
    seen = seen.requires_grad_()
    (towards,) = torch.autograd.grad((known - steered(seen, point))[:, :, 0].square().sum(), seen)
    wanted = steered(seen.detach(), point) - 0.5 * 0.7 * point.alpha * towards
    torch.testing.assert_close(found[:, :, 1], wanted[:, :, 1])
    assert (found - steered(seen.detach(), point))[:, :, 1].abs().max() > 1e-3
