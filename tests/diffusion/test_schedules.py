"""Laws of noise schedules and of prediction types."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrara.diffusion.predictions import KINDS, add_noise, expand_levels, from_denoised, target, to_denoised
from carrara.diffusion.schedules import CosineVP, Flow, LinearVP

SCHEDULES = [LinearVP(), CosineVP(), Flow(), Flow(3.0), Flow(0.5)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
INSIDE = torch.linspace(0.001, 0.999, 501, dtype=torch.float64)


@every_schedule
def test_alpha_falls_and_sigma_rises(schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (schedule.alpha(t).diff() < 0).all()
    assert (schedule.sigma(t).diff() > 0).all()
    assert schedule.alpha(t).isfinite().all()
    assert schedule.sigma(t).isfinite().all()


@every_schedule
def test_derivatives_are_finite_differences(schedule):
    step = 1e-6
    for value, derivative in (
        (schedule.alpha, schedule.alpha_derivative),
        (schedule.sigma, schedule.sigma_derivative),
    ):
        difference = (value(INSIDE + step) - value(INSIDE - step)) / (2 * step)
        torch.testing.assert_close(derivative(INSIDE), difference, rtol=1e-5, atol=1e-7)


@every_schedule
def test_log_snr_is_that_of_alpha_and_sigma_and_inverts(schedule):
    log_snr = schedule.log_snr(INSIDE)
    torch.testing.assert_close(log_snr, 2 * torch.log(schedule.alpha(INSIDE) / schedule.sigma(INSIDE)))
    torch.testing.assert_close(schedule.time(log_snr), INSIDE, rtol=1e-9, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_finite_and_limited(schedule, dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    high, low = schedule.log_snr(ends).tolist()
    assert high == pytest.approx(20, abs=2e-3)
    assert -20 <= low < -10
    assert (
        schedule.log_snr(ends).dtype
        == schedule.alpha(ends).dtype
        == schedule.time(schedule.log_snr(ends)).dtype
        == dtype
    )
    torch.testing.assert_close(schedule.time(schedule.log_snr(ends)), ends, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP()], ids=repr)
def test_variance_is_preserved(schedule):
    torch.testing.assert_close(schedule.alpha(INSIDE) ** 2 + schedule.sigma(INSIDE) ** 2, torch.ones_like(INSIDE))


def test_linear_is_ddpm_in_the_limit():
    steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
    ddpm = torch.sqrt(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))
    assert (LinearVP().alpha(steps) - ddpm).abs().max() < 1e-3


def test_shift_moves_log_snr_by_twice_its_logarithm():
    moved = Flow(3.0).log_snr(INSIDE) - Flow().log_snr(INSIDE)
    torch.testing.assert_close(moved, torch.full_like(INSIDE, -2 * torch.tensor(3.0, dtype=torch.float64).log().item()))


@pytest.mark.parametrize("shift", [0, -1, float("nan"), float("inf")])
def test_shift_must_be_positive(shift):
    with pytest.raises(ValueError, match="shift"):
        Flow(shift)


@settings(max_examples=50, deadline=None)
@given(
    t=st.floats(0.02, 0.98),
    schedule=st.sampled_from(SCHEDULES),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
def test_predictions_go_there_and_back(t, schedule, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    data, noise = torch.randn(2, 2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    x = add_noise(data, noise, alpha, sigma)
    right = target(kind, data, noise, alpha, sigma)
    torch.testing.assert_close(to_denoised(kind, right, x, alpha, sigma), data)
    torch.testing.assert_close(from_denoised(kind, data, x, alpha, sigma), right)


def test_flow_at_the_ends_says_data():
    data, noise = torch.randn(2, 1, 2, 1, 2, 2)
    flow = target("flow", data, noise, 0.0, 1.0)
    torch.testing.assert_close(to_denoised("flow", flow, noise, 0.0, 1.0), data)
    assert to_denoised("flow", flow, data, 1.0, 0.0).equal(data)


def test_levels_per_sample_frame_and_token_agree():
    x = torch.randn(2, 3, 4, 6, 8)
    scalar = add_noise(x, x.flip(0), 0.7, 0.3)
    for shape in [(), (2,), (2, 4), (2, 4, 6, 8), (2, 4, 3, 4), (2, 1, 4, 1, 1)]:
        alpha, sigma = torch.full(shape, 0.7), torch.full(shape, 0.3)
        torch.testing.assert_close(add_noise(x, x.flip(0), alpha, sigma), scalar)
    frames = torch.rand(2, 4)
    torch.testing.assert_close(expand_levels(frames, x)[1, 0, 2], frames[1, 2].reshape(1, 1))
    tokens = torch.rand(2, 4, 3, 4)
    assert expand_levels(tokens, x)[1, 0, 2, 5, 3] == tokens[1, 2, 2, 1]
    with pytest.raises(ValueError, match=r"\(2, 5\).*expected"):
        expand_levels(torch.ones(2, 5), x)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="did you mean flow"):
        to_denoised("flwo", torch.ones(1), torch.ones(1), 1.0, 0.0)
