"""Laws of samplers, tested where the exact denoiser is known: Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from carrara.diffusion.grids import Grid, diffusers_euler_grid, diffusers_unipc_grid, flow_grid, vp_grid, wan_grid
from carrara.diffusion.samplers import (
    SAMPLERS,
    ancestral,
    ddim,
    draw_noise,
    euler,
    evaluations,
    langevin,
    sample_generators,
    sample_noise,
)
from carrara.diffusion.schedules import CosineVP, Flow, LinearVP

MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
DETERMINISTIC = ["ddim", "euler", "heun", "dpmpp_2m", "unipc"]

GRIDS = {
    "flow": lambda n: flow_grid(n),
    "flow shifted": lambda n: flow_grid(n, 3.0),
    "cosine": lambda n: vp_grid(CosineVP(), n),
    "linear": lambda n: vp_grid(LinearVP(), n),
    "log-snr cosine": lambda n: vp_grid(CosineVP(), n, "log_snr"),
    "log-snr linear": lambda n: vp_grid(LinearVP(), n, "log_snr"),
    "log-snr flow": lambda n: vp_grid(Flow(3.0), n, "log_snr"),
}


def gaussian(x: Tensor, point) -> Tensor:
    """The exact estimate of the data, E[data | x], for data ~ N(MEAN, COVARIANCE)."""
    total = point.alpha**2 * COVARIANCE + point.sigma**2 * torch.eye(2, dtype=torch.float64)
    gain = point.alpha * COVARIANCE @ torch.linalg.inv(total)
    return MEAN + (x - point.alpha * MEAN) @ gain.T


def mixture(x: Tensor, point) -> Tensor:
    """The exact estimate for two equally likely normal bumps at -1 and 1 of deviation 0.3, in each coordinate."""
    variance = point.alpha**2 * 0.09 + point.sigma**2
    side = torch.tanh(point.alpha * x / variance)
    return side + point.alpha * 0.09 / variance * (x - point.alpha * side)


def start(n: int) -> Tensor:
    return sample_noise((2,), range(n)).double()


def exact(noise: Tensor, grid: Grid) -> Tensor:
    """The end of the flow for Gaussian data: along each principal axis, x keeps its rank."""
    point = grid.points[0]
    scales, axes = torch.linalg.eigh(COVARIANCE)
    gains = torch.sqrt(scales / (point.alpha**2 * scales + point.sigma**2))
    return MEAN + ((noise - point.alpha * MEAN) @ axes * gains) @ axes.T


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_follow_the_flow(name, grid):
    noise, fine = start(64), GRIDS[grid](400)
    torch.testing.assert_close(SAMPLERS[name](gaussian, noise, fine), exact(noise, fine), rtol=0, atol=0.02)


def slope(name: str, grid: str) -> float:
    """The power of the step at which errors fall between 80 and 320 steps."""
    noise = start(64)
    errors = [SAMPLERS[name](gaussian, noise, GRIDS[grid](n)) - exact(noise, GRIDS[grid](n)) for n in (80, 320)]
    return math.log2(errors[0].abs().mean() / errors[1].abs().mean()) / 2


@pytest.mark.parametrize("grid", ["log-snr cosine", "log-snr linear", "log-snr flow"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
def test_errors_fall_at_the_order_of_the_method(name, order, grid):
    """UniPC's corrector adds one order to its predictor's two (Zhao et al. 2023, theorem 3.1)."""
    assert slope(name, grid) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("unipc", 2)])
def test_orders_on_evenly_spaced_flow(name, order):
    """Here log-SNR is infinite at both ends, which the third order of UniPC does not survive."""
    assert slope(name, "flow") == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc"])
def test_second_order_beats_first_on_data_that_are_not_gaussian(name):
    noise = start(256)
    truth = SAMPLERS["heun"](mixture, noise, flow_grid(1000))
    error = {n: (SAMPLERS[n](mixture, noise, flow_grid(30)) - truth).abs().mean() for n in (name, "euler")}
    assert error[name] < 0.4 * error["euler"], error


@pytest.mark.parametrize("grid", ["flow", "cosine", "linear"])
@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        (ancestral, {}),
        (ancestral, {"gamma": 0.3}),
        (ddim, {"eta": 1.0}),
        (ddim, {"eta": 0.5}),
        (langevin, {}),
        (langevin, {"delta": 0.3}),
    ],
)
def test_stochastic_samplers_match_mean_and_covariance(sampler, settings, grid):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(20000, 2, generator=generator).double()
    found = sampler(gaussian, noise, GRIDS[grid](200), generator, **settings)
    torch.testing.assert_close(found.mean(0), MEAN, rtol=0, atol=0.03)
    torch.testing.assert_close(found.T.cov(), COVARIANCE, rtol=0, atol=0.03)


def test_ancestral_variance_bounds_are_exact_where_the_theory_says():
    """The upper bound for standard normal data, whatever the steps; the lower for data that are one point."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(40000, 1, generator=generator).double()
    grid = vp_grid(CosineVP(), 4)
    seen: list[Tensor] = []

    def standard(x: Tensor, point) -> Tensor:
        seen.append(x)
        return point.alpha * x

    ancestral(standard, noise, grid, generator, gamma=1.0)
    for x in seen:
        assert x.var().item() == pytest.approx(1, abs=0.03)

    seen.clear()

    def single(x: Tensor, point) -> Tensor:
        seen.append(x)
        return torch.full_like(x, 0.5)

    assert (ancestral(single, noise, grid, generator, gamma=0.0) == 0.5).all()
    for x, point in zip(seen, grid.points):
        assert x.mean().item() == pytest.approx(0.5 * point.alpha, abs=0.02)
        assert x.var().item() == pytest.approx(point.sigma**2, rel=0.03)


def variances_visited(delta: float) -> list[float]:
    """Of standard normal data at every call: what a step came to, and what its correction made of that."""
    seen: list[float] = []

    def standard(x: Tensor, point) -> Tensor:
        seen.append(x.var().item())
        return point.alpha * x

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200000, 1, generator=generator).double()
    langevin(standard, noise, vp_grid(CosineVP(), 6), generator, delta=delta)
    return seen


def test_a_langevin_correction_brings_a_variance_back_by_the_step_that_theory_says():
    """A coordinate of variance v becomes (1 - delta sigma^2 / 2)^2 v + delta sigma^2 where 1 is right: what ancestral
    steps lose grows back, and what is right stays so to within delta^2 / 4."""
    seen, points = variances_visited(0.1), vp_grid(CosineVP(), 6).points
    assert min(seen) < 0.95  # six ancestral steps do lose some
    for before, after, point in zip(seen[1::2], seen[2::2], points[1:]):
        part = 0.1 * point.sigma**2
        assert after == pytest.approx((1 - part / 2) ** 2 * before + part, abs=0.01)
        assert abs(after - 1) < abs(before - 1) + 0.1**2 / 4


def test_without_a_step_the_langevin_sampler_is_the_ancestral_one_but_for_the_noise_it_draws():
    noise, grid = start(4), vp_grid(CosineVP(), 2)
    plain = ancestral(mixture, noise, grid, sample_generators(range(4)))
    torch.testing.assert_close(langevin(mixture, noise, grid, sample_generators(range(4)), delta=0.0), plain)
    assert not torch.allclose(langevin(mixture, noise, grid, sample_generators(range(4))), plain)


@pytest.mark.parametrize("grid", GRIDS)
def test_ddim_is_euler_without_noise_and_ancestral_with_all_of_it(grid):
    noise, visited = start(8), GRIDS[grid](12)
    torch.testing.assert_close(ddim(mixture, noise, visited), euler(mixture, noise, visited))
    full = ddim(mixture, noise, visited, sample_generators(range(8)), eta=1.0)
    torch.testing.assert_close(full, ancestral(mixture, noise, visited, sample_generators(range(8))))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("make", [flow_grid, wan_grid, diffusers_unipc_grid, diffusers_euler_grid])
@pytest.mark.parametrize("name", SAMPLERS)
def test_few_steps_are_finite_counted_and_end_on_the_last_estimate(name, make, steps):
    answers: list[Tensor] = []

    def denoise(x: Tensor, point) -> Tensor:
        assert x.dtype == torch.float32
        assert 0 <= point.told <= 1
        answers.append(torch.tanh(x) + point.told)
        return answers[-1]

    grid = make(steps, 5.0)
    found = SAMPLERS[name](denoise, sample_noise((3,), [1, 2]), grid, sample_generators([1, 2]))
    assert len(answers) == evaluations(name, steps)
    assert found.equal(answers[-1])
    assert found.isfinite().all()


def test_noise_of_a_seed_does_not_depend_on_the_batch():
    together = sample_noise((4, 3), [5, 6, 7])
    assert together[1].equal(sample_noise((4, 3), [6])[0])
    assert not together[0].equal(together[1])

    def run(seeds: list[int]) -> Tensor:
        generators = sample_generators(seeds)
        return ancestral(mixture, draw_noise((4,), generators).double(), flow_grid(6), generators)

    assert run([5, 6, 7])[2].equal(run([7])[0])
    assert run([5]).equal(run([5]))


def test_bad_calls_are_refused_with_a_remedy():
    noise = start(2)
    with pytest.raises(ValueError, match="sample_generators"):
        ancestral(mixture, noise, flow_grid(3))
    with pytest.raises(ValueError, match="one per sample"):
        ancestral(mixture, noise, flow_grid(3), sample_generators([1]))
    with pytest.raises(ValueError, match="did you mean unipc"):
        evaluations("unpic", 3)
    for steps in (0, -1, 2.5, True, 1001):
        with pytest.raises(ValueError, match="steps"):
            flow_grid(steps)
    with pytest.raises(ValueError, match="spacing"):
        vp_grid(Flow(), 3, "cubic")
    with pytest.raises(ValueError, match="gamma"):
        ancestral(mixture, noise, flow_grid(3), gamma=2)
    with pytest.raises(ValueError, match="eta"):
        ddim(mixture, noise, flow_grid(3), eta=-1)
    with pytest.raises(ValueError, match="delta"):
        langevin(mixture, noise, flow_grid(3), sample_generators([1, 2]), delta=2)
    with pytest.raises(ValueError, match="fall"):
        Grid(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.5]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="one more"):
        Grid(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.5]))
