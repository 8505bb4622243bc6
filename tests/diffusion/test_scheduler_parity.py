"""Grids and whole trajectories agree with the schedulers of diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from carrara.diffusion.grids import diffusers_euler_grid, diffusers_unipc_grid, wan_dpmpp_grid, wan_grid
from carrara.diffusion.predictions import to_denoised
from carrara.diffusion.samplers import dpmpp_2m, euler, sample_noise, unipc

SHIFTS = [1.0, 3.0, 5.0]
STEPS = [1, 2, 3, 4, 5, 10, 20, 30, 50]


def network(x: Tensor, timestep: float) -> Tensor:
    """An arbitrary nonlinear stand-in, which depends on the time it is told and mixes positions."""
    wave = torch.sin(2 * x + 0.005 * timestep) + 0.3 * x.roll(1, -1)
    return wave * (0.5 + timestep / 1000) + 0.2 * torch.tanh(x.mean(dim=1, keepdim=True))


def theirs(scheduler, x: Tensor, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep.item()), timestep, x, return_dict=False)[0]
    return x


def ours(sampler, x: Tensor, grid) -> Tensor:
    def denoise(x: Tensor, point) -> Tensor:
        return to_denoised("flow", network(x, point.told * 1000), x, point.alpha, point.sigma)

    return sampler(denoise, x, grid)


def unipc_scheduler(shift: float) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("shift", SHIFTS)
def test_grids_are_equal_to_the_bit_for_every_number_of_steps(shift):
    scheduler, straight = unipc_scheduler(shift), FlowMatchEulerDiscreteScheduler(shift=shift)
    for steps in range(1, 101):
        grid = diffusers_unipc_grid(steps, shift)
        scheduler.set_timesteps(steps)
        assert grid.sigmas.float().equal(scheduler.sigmas)
        assert grid.sigmas.equal(scheduler.sigmas.double())
        assert (grid.told * 1000).equal(scheduler.timesteps.double())

        grid = diffusers_euler_grid(steps, shift)
        straight.set_timesteps(steps)
        assert grid.sigmas.equal(straight.sigmas.double())
        assert (grid.told * 1000).float().equal(straight.timesteps)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_unipc_trajectories_agree(steps, shift):
    noise = sample_noise((4, 3, 6, 6), [1, 2])
    wanted = theirs(unipc_scheduler(shift), noise, steps)
    assert relative(ours(unipc, noise, diffusers_unipc_grid(steps, shift)), wanted) < 1e-5


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_euler_trajectories_agree(steps, shift):
    noise = sample_noise((4, 3, 6, 6), [1, 2])
    wanted = theirs(FlowMatchEulerDiscreteScheduler(shift=shift), noise, steps)
    assert relative(ours(euler, noise, diffusers_euler_grid(steps, shift)), wanted) < 1e-5


def test_the_original_grid_of_wan_at_50_steps_and_shift_5():
    grid = wan_grid(50, 5.0)
    told = (grid.told * 1000).round().long().tolist()
    assert told[:3] == [999, 995, 991]
    assert told[-1] == 92
    assert grid.sigmas[0].item() == pytest.approx(5 * 0.999 / (1 + 4 * 0.999), abs=1e-7)
    assert grid.sigmas[-1] == 0
    assert not grid.sigmas.equal(diffusers_unipc_grid(50, 5.0).sigmas)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [2, 3, 10, 20, 50])
def test_the_original_dpm_solver_agrees_on_its_own_grid(steps):
    """The solver of diffusers, of which Wan's is a copy, on the levels that Wan gives it: the first is exactly 1."""
    grid = wan_dpmpp_grid(steps, 5.0)
    assert grid.sigmas[0] == 1
    assert grid.told[0] == 1
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = grid.sigmas.float()
    scheduler.timesteps = (grid.told * 1000).round().long()
    scheduler.num_inference_steps = steps
    noise = wanted = sample_noise((4, 3, 6, 6), [1, 2])
    for timestep in scheduler.timesteps:
        wanted = scheduler.step(network(wanted, timestep.item()), timestep, wanted, return_dict=False)[0]
    assert relative(ours(dpmpp_2m, noise, grid), wanted) < 1e-5


def test_the_grids_of_the_public_weights_differ():
    grids = [make(50, 5.0) for make in (diffusers_unipc_grid, wan_grid, wan_dpmpp_grid)]
    last = [grid.sigmas[-2].item() for grid in grids]
    assert last == pytest.approx([0.0968, 0.0925, 0.0926], abs=5e-5)
    assert [grid.sigmas[0].item() for grid in grids] == pytest.approx([1 - 1e-6, 0.9998, 1.0], abs=5e-7)
