"""Laws of what is known while sampling, where they can be computed: Gaussian data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carrara.diffusion.conditioning import KNOWN_BY, Start, cut, guide_known, keep_known, replace_known
from carrara.diffusion.grids import GridPoint, diffusers_unipc_grid, flow_grid, wan_grid
from carrara.diffusion.samplers import SAMPLERS, euler, sample_generators, sample_noise

MEAN = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.4, 0.1], [0.4, 0.6, 0.2], [0.1, 0.2, 0.3]], dtype=torch.float64)
MASK = torch.tensor([[True, False, False]])  # the first number is known, two follow from it
KNOWN = torch.tensor([[1.9, 0, 0]], dtype=torch.float64)


def estimate(x: Tensor, point: GridPoint, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> Tensor:
    """The exact E[data | x] for data ~ N(mean, covariance): what a perfect network answers."""
    total = point.alpha**2 * covariance + point.sigma**2 * torch.eye(len(mean), dtype=torch.float64)
    gain = point.alpha * covariance @ torch.linalg.inv(total)
    return mean + (x - point.alpha * mean) @ gain.T


def conditional(value: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the last two numbers when the first has this value."""
    slope = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return MEAN[1:] + slope * (value - MEAN[0]), COVARIANCE[1:, 1:] - torch.outer(slope, COVARIANCE[0, 1:])


def truth(x: Tensor, point: GridPoint) -> Tensor:
    """E[data | x, the first number], exactly."""
    rest = estimate(x[:, 1:], point, *conditional(float(KNOWN[0, 0])))
    return torch.cat([KNOWN[:, :1].expand(len(x), -1), rest], dim=1)


def held_network(x: Tensor, point: GridPoint) -> Tensor:
    """A perfect network that learned levels per position and is told that the first one is clean."""
    mean, covariance = conditional(0.0)
    slope = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    shifted = x[:, 1:] - point.alpha * slope * x[:, :1]
    return torch.cat([x[:, :1], estimate(shifted, point, mean, covariance) + slope * x[:, :1]], dim=1)


def right_weight(point: GridPoint) -> float:
    """The variance of the first number given all of x is what the guidance should assume."""
    if point.alpha == 0:
        return 0.0  # x says nothing yet, and nothing can be said through it
    precision = torch.linalg.inv(COVARIANCE) + point.alpha**2 / point.sigma**2 * torch.eye(3, dtype=torch.float64)
    return point.sigma**2 / (point.alpha**2 * float(torch.linalg.inv(precision)[0, 0]))


def points() -> list[GridPoint]:
    return flow_grid(8).points[1:-1]


def test_guidance_is_exact_for_gaussians():
    """With the true variance of the known part given x, the guided estimate is E[data | x, known]."""
    noise = sample_noise((3,), range(20)).double()
    mask, known = MASK.expand(20, -1), KNOWN.expand(20, -1)
    guided = guide_known(estimate, known, mask, noise, right_weight)
    for point in points():
        x = torch.where(mask, point.alpha * known + point.sigma * noise, 2 * noise.flip(0))
        torch.testing.assert_close(guided(x, point), truth(x, point), rtol=1e-9, atol=1e-9)
    early = points()[0]
    x = torch.where(mask, early.alpha * known + early.sigma * noise, noise.flip(0))
    assert (replace_known(estimate, known, mask, noise)(x, early) - truth(x, early))[:, 1].abs().min() > 0.3


def test_with_a_weight_of_zero_guidance_is_replacement():
    noise, x = sample_noise((3,), range(4)).double(), sample_noise((3,), range(9, 13)).double()
    arguments = (estimate, KNOWN.expand(4, -1), MASK.expand(4, -1), noise)
    for point in points():
        torch.testing.assert_close(guide_known(*arguments, 0.0)(x, point), replace_known(*arguments)(x, point))


def drawn(by: str, count: int = 3000) -> Tensor:
    noise = sample_noise((3,), range(count)).double()
    known, mask = KNOWN.expand(count, -1), MASK.expand(count, -1)
    if by == "guide":
        denoise = guide_known(estimate, known, mask, noise, right_weight)
    else:
        denoise = keep_known(by, held_network if by == "hold" else estimate, known, mask, noise)
    return euler(denoise, noise, flow_grid(150))


def test_who_draws_from_the_conditional_distribution():
    """Held levels and exact guidance do; replacement alone keeps the known part and draws a rest that misfits it."""
    mean, covariance = conditional(float(KNOWN[0, 0]))
    for by in ("hold", "guide"):
        samples = drawn(by)
        assert torch.equal(samples[:, 0], KNOWN[0, 0].expand(len(samples)))
        assert (samples[:, 1:].mean(0) - mean).abs().max() < 0.04
        assert (samples[:, 1:].T.cov() - covariance).abs().max() < 0.03
    replaced = drawn("replace")
    assert torch.equal(replaced[:, 0], KNOWN[0, 0].expand(len(replaced)))
    missed = (replaced[:, 1:].mean(0) - mean)[0]
    assert missed < -0.1  # between the unconditional mean, where it began, and the right one
    assert replaced[:, 1].mean() > MEAN[1] + 0.1


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("by", KNOWN_BY)
def test_every_sampler_ends_on_what_is_known_to_the_bit(name, by):
    noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    known, mask = torch.full_like(noise, 0.3), torch.zeros(2, 4, dtype=torch.bool)
    mask[:, :2] = True

    def shrink(x: Tensor, point: GridPoint) -> Tensor:
        return point.alpha * x / (point.alpha**2 + point.sigma**2)

    made = SAMPLERS[name](keep_known(by, shrink, known, mask, noise), noise, flow_grid(5), sample_generators([1, 2]))
    assert torch.equal(made[:, :, :2], known[:, :, :2])
    assert made.isfinite().all()
    assert not made.requires_grad


def test_replacement_shows_the_network_the_known_part_at_its_level():
    noise = sample_noise((3,), range(5)).double()
    known, mask = KNOWN.expand(5, -1), MASK.expand(5, -1)
    seen: list[tuple[Tensor, GridPoint]] = []

    def watched(x: Tensor, point: GridPoint) -> Tensor:
        seen.append((x, point))
        return estimate(x, point)

    euler(replace_known(watched, known, mask, noise), noise, flow_grid(6))
    for x, point in seen:
        torch.testing.assert_close(x[:, 0], point.alpha * known[:, 0] + point.sigma * noise[:, 0])


def test_what_is_known_of_a_token_that_is_not_is_shown_at_its_level():
    noise = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    known, mask = torch.full_like(noise, 0.3), torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    mask[..., :3] = True  # of two tokens a row, the first and half of the second
    whole = torch.zeros_like(mask)
    whole[..., :2] = True
    seen: list[tuple[Tensor, GridPoint]] = []

    def watched(x: Tensor, point: GridPoint) -> Tensor:
        seen.append((x, point))
        return 0.5 * x

    made = euler(keep_known("hold", watched, known, mask, noise, whole), noise, flow_grid(4))
    assert torch.equal(made[..., :3], known[..., :3])
    for x, point in seen:
        assert torch.equal(x[..., :2], known[..., :2])
        torch.testing.assert_close(x[..., 2], point.alpha * known[..., 2] + point.sigma * noise[..., 2])
    plain = euler(keep_known("hold", watched, known, mask, noise, mask), noise, flow_grid(4))
    assert torch.equal(plain, euler(keep_known("hold", watched, known, mask, noise), noise, flow_grid(4)))


@pytest.mark.parametrize("make", [flow_grid, diffusers_unipc_grid, wan_grid])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_a_cut_grid_begins_at_the_level_and_keeps_the_rest(make, steps):
    grid = make(steps, 3.0)
    for level in (0.05, 0.5, 0.6, 0.93, 1.0):
        part = cut(grid, level)
        assert part.sigmas[0] == min(level, float(grid.sigmas[0]))
        torch.testing.assert_close(part.alphas + part.sigmas, torch.ones_like(part.sigmas))
        assert torch.equal(part.sigmas[1:], grid.sigmas[len(grid.sigmas) - part.steps :])
        assert (part.told - part.sigmas[:-1]).abs().max() <= 1.1e-3
        before, after = grid.sigmas.diff().abs(), part.sigmas.diff().abs()
        assert after[0] >= 0.49 * before[-part.steps] - 1e-9 or part.steps == 1
    assert cut(grid, 1.0).steps == steps


def test_an_even_grid_keeps_its_share_of_steps():
    for level, steps in ((0.2, 6), (0.6, 18), (0.9, 27)):
        assert cut(flow_grid(30), level).steps == steps


def test_beginning_from_data_at_a_level_draws_near_the_data():
    """Exact for Gaussians: from data x at level s the flow ends at a mixture of x and the distribution."""
    data = MEAN + 3 * COVARIANCE.diagonal().sqrt()
    noise = sample_noise((3,), range(2000)).double()
    distances = []
    for level in (0.1, 0.5, 0.9):
        grid = cut(flow_grid(60), level)
        first = grid.points[0]
        made = euler(estimate, first.alpha * data + first.sigma * noise, grid)
        distances.append(float((made.mean(0) - data).norm()))
    assert distances[0] < 0.15 < distances[1] < distances[2] < float((data - MEAN).norm())


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="unknown way 'holds'"):
        keep_known("holds", estimate, KNOWN, MASK, KNOWN)
    with pytest.raises(ValueError, match="expected bool"):
        replace_known(estimate, KNOWN, MASK.double(), KNOWN)
    for level in (0.0, 1.5):
        with pytest.raises(ValueError, match="level="):
            Start(KNOWN, level)
        with pytest.raises(ValueError, match="level="):
            cut(flow_grid(4), level)
