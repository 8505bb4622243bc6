"""Laws of guidance, thresholding and held parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carrara.diffusion.fields import held_levels, hold
from carrara.diffusion.grids import GridPoint, flow_grid
from carrara.diffusion.guidance import Guidance, guide, threshold_dynamic, threshold_static
from carrara.diffusion.predictions import KINDS, from_denoised, to_denoised
from carrara.diffusion.samplers import SAMPLERS, sample_generators, sample_noise

POINT = GridPoint(alpha=0.4, sigma=0.6, told=0.6, index=0)


class Counted:
    """A denoiser that counts its evaluations."""

    def __init__(self, factor: float) -> None:
        self.factor, self.calls = factor, 0

    def __call__(self, x: Tensor, point: GridPoint) -> Tensor:
        self.calls += 1
        return torch.tanh(self.factor * x) + self.factor


def test_scale_one_is_the_identity_and_one_evaluation():
    cond, uncond, x = Counted(1.0), Counted(-0.5), torch.randn(2, 3, 4)
    guided = guide(cond, uncond, Guidance(1.0, rescale=0.7))
    assert guided(x, POINT).equal(Counted(1.0)(x, POINT))
    assert (cond.calls, uncond.calls) == (1, 0)


def test_scale_zero_is_the_unconditional_model():
    cond, uncond, x = Counted(1.0), Counted(-0.5), torch.randn(2, 3, 4)
    assert guide(cond, uncond, Guidance(0.0))(x, POINT).equal(Counted(-0.5)(x, POINT))
    assert (cond.calls, uncond.calls) == (0, 1)


def test_guidance_extrapolates_from_uncond_through_cond():
    cond, uncond, x = Counted(1.0), Counted(-0.5), torch.randn(2, 3, 4)
    a, b = cond(x, POINT), uncond(x, POINT)
    torch.testing.assert_close(guide(cond, uncond, Guidance(4.0))(x, POINT), b + 4 * (a - b))


@pytest.mark.parametrize("kind", KINDS)
def test_guiding_any_prediction_is_guiding_the_estimate(kind):
    x, a, b = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    first, second = (from_denoised(kind, d, x, POINT.alpha, POINT.sigma) for d in (a, b))
    mixed = to_denoised(kind, second + 5 * (first - second), x, POINT.alpha, POINT.sigma)
    torch.testing.assert_close(mixed, Guidance(5.0).combine(a, b))


def test_outside_the_interval_guidance_costs_nothing():
    cond, uncond = Counted(1.0), Counted(-0.5)
    guided = guide(cond, uncond, Guidance(4.0, interval=(0.3, 0.7)))
    grid = flow_grid(10)
    SAMPLERS["euler"](guided, torch.randn(2, 3), grid)
    inside = int(((grid.told >= 0.3) & (grid.told <= 0.7)).sum())
    assert (cond.calls, uncond.calls) == (10, inside)
    assert 0 < inside < 10


def test_rescale_keeps_the_standard_deviation():
    cond, uncond = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5)
    spread = [v.flatten(1).std(dim=1) for v in (cond, Guidance(7.0, rescale=1.0).combine(cond, uncond))]
    torch.testing.assert_close(*spread)
    plain, half, full = (Guidance(7.0, rescale=r).combine(cond, uncond) for r in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (plain + full) / 2)


@pytest.mark.parametrize(
    "settings",
    [{"scale": -1.0}, {"scale": float("nan")}, {"scale": 2.0, "interval": (0.7, 0.3)}, {"scale": 2.0, "rescale": 2.0}],
)
def test_bad_guidance_is_refused(settings):
    with pytest.raises(ValueError, match=r"guidance .*expected"):
        Guidance(**settings)


def test_thresholds():
    small, large = 0.5 * torch.rand(1, 3, 8, 8), 3 * torch.randn(1, 3, 8, 8)
    both = torch.cat([small, large])
    assert threshold_static(lambda x, _: x)(both, POINT).equal(both.clamp(-1, 1))
    found = threshold_dynamic(lambda x, _: x, percentile=0.9)(both, POINT)
    assert found[0].equal(small[0])
    assert found.abs().max() <= 1 + 1e-6
    inside = large[0].abs() < 1
    assert (found[1][inside].abs() < large[0][inside].abs()).all()
    assert (found[1].abs() > 1 - 1e-6).float().mean().item() == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ValueError, match="percentile"):
        threshold_dynamic(lambda x, _: x, percentile=95)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4), (1, 1, 3, 4, 4)])
def test_hold_ends_on_what_is_known_and_shows_it_to_the_network(name, shape):
    noise, known = sample_noise((2, 3, 4, 4), [1, 2]), torch.randn(2, 2, 3, 4, 4)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., 0] = True
    where = mask.reshape(shape if len(shape) == 5 else (*shape[:1], 1, *shape[1:], *[1] * (4 - len(shape))))
    where = where.expand_as(known)

    def denoise(x: Tensor, point: GridPoint) -> Tensor:
        assert x[where].equal(known[where])
        return torch.tanh(x.roll(1, dims=2)) * point.told

    found = SAMPLERS[name](hold(denoise, known, mask), noise, flow_grid(5), sample_generators([1, 2]))
    assert found[where].equal(known[where])
    assert not found[~where].isclose(known[~where]).any()


def test_held_positions_are_told_zero():
    mask = torch.tensor([[True, False, False]])
    assert held_levels(mask, 0.75).tolist() == [[0.0, 0.75, 0.75]]
    with pytest.raises(ValueError, match="bool"):
        hold(lambda x, _: x, torch.ones(1, 1, 3, 1, 1), mask.float())
