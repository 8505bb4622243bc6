"""Laws of windowed distillation, where the flow and its paths are known: Gaussian data."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from carrara.diffusion.distillation import SOLVERS, guided_flow, mean_flow, visited, window_levels
from carrara.diffusion.grids import GridPoint, diffusers_unipc_grid, flow_grid
from carrara.diffusion.guidance import Guidance, guide
from carrara.diffusion.predictions import expand_levels, from_denoised, to_denoised
from carrara.diffusion.samplers import euler, sample_noise

MEAN, DEVIATION = 0.7, 0.4
OTHER_MEAN, OTHER_DEVIATION = -0.5, 0.9


def spread(level: Tensor, deviation: float) -> Tensor:
    """The deviation of noised data at a level."""
    return ((1 - level) ** 2 * deviation**2 + level**2).sqrt()


def flow_of(mean: float, deviation: float):
    """The exact flow, E[noise - data | x], for data ~ N(mean, deviation^2), at levels per sample or per frame."""

    def flow(x: Tensor, levels: Tensor) -> Tensor:
        level = expand_levels(levels, x)
        slope = (level - (1 - level) * deviation**2) / spread(level, deviation) ** 2
        return slope * (x - (1 - level) * mean) - mean

    return flow


def path(x: Tensor, start: Tensor, end: Tensor, mean: float = MEAN, deviation: float = DEVIATION) -> Tensor:
    """The exact end of the flow's path from level `start` to level `end`: x keeps its rank in the distribution."""
    start, end = expand_levels(start, x), expand_levels(end, x)
    rank = (x - (1 - start) * mean) / spread(start, deviation)
    return (1 - end) * mean + spread(end, deviation) * rank


def exact_student(grid):
    """The mean flow over the window that starts at the level told, in closed form: what training aims at."""
    levels = window_levels(grid)

    def flow(x: Tensor, told: Tensor) -> Tensor:
        window = (levels[None] == told[:, None]).double().argmax(dim=1)  # a level that is no window's start fails below
        assert levels[window].equal(told)
        end = levels[window + 1]
        return (path(x, told, end) - x) / (end - told)[:, None]

    return flow


def as_denoise(flow):
    """A flow as samplers ask for it, told what the grid says."""

    def denoise(x: Tensor, point: GridPoint) -> Tensor:
        told = torch.full((len(x),), point.told, dtype=torch.float64)
        return to_denoised("flow", flow(x, told), x, point.alpha, point.sigma)

    return denoise


def noise(n: int = 64) -> Tensor:
    return sample_noise((3,), range(n)).double()


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.7])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_an_exact_student_samples_the_ends_of_the_teachers_paths(steps, shift):
    grid = flow_grid(steps, shift)
    ends = path(noise(), torch.ones(64).double(), torch.zeros(64).double())
    torch.testing.assert_close(euler(as_denoise(exact_student(grid)), noise(), grid), ends, rtol=0, atol=1e-12)
    cut = euler(as_denoise(flow_of(MEAN, DEVIATION)), noise(), grid)
    assert (cut - ends).abs().max() > 0.01  # which as few steps of the teacher do not


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_mean_flow_converges_to_the_straight_line_to_the_windows_end_at_the_solvers_order(solver):
    grid = flow_grid(4, 2.0)
    levels = window_levels(grid)
    window = torch.arange(64) % 4
    start, end = levels[window], levels[window + 1]
    x = path(noise(), torch.ones(64).double(), start)
    wanted = (path(x, start, end) - x) / (end - start)[:, None]
    errors = [
        (mean_flow(flow_of(MEAN, DEVIATION), x, start, end, parts, solver) - wanted).abs().max() for parts in (8, 16)
    ]
    order = {"euler": 1, "midpoint": 2}[solver]
    assert errors[0] / errors[1] > 0.9 * 2**order  # midpoint is even better here
    assert errors[1] < {"euler": 0.1, "midpoint": 1e-3}[solver]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_regression_has_the_guided_paths_as_its_optimum(scale):
    """For Gaussian data the guided mean flow is affine in x, so least squares on noised data finds the student."""
    teacher = guided_flow(flow_of(MEAN, DEVIATION), flow_of(OTHER_MEAN, OTHER_DEVIATION), Guidance(scale))
    grid = flow_grid(4)
    levels = window_levels(grid)
    generator = torch.Generator().manual_seed(0)
    fits = []
    for start, end in pairwise(levels):
        data, fresh = torch.randn(2, 256, 1, generator=generator, dtype=torch.float64)
        x = torch.lerp(MEAN + DEVIATION * data, fresh, start)
        wanted = mean_flow(teacher, x, start.expand(256), end.expand(256), 32)
        known = torch.cat((x, torch.ones_like(x)), dim=1)
        fits.append(torch.linalg.lstsq(known, wanted).solution.flatten())
    table = torch.stack(fits)

    def student(x: Tensor, told: Tensor) -> Tensor:
        slope, offset = table[(levels[None] == told[:, None]).double().argmax(dim=1)].T
        return slope[:, None] * x + offset[:, None]

    fine = flow_grid(1000)
    ends = visited(teacher, noise(), [level.expand(64) for level in window_levels(fine)])[-1]
    torch.testing.assert_close(euler(as_denoise(student), noise(), grid), ends, rtol=0, atol=5e-3)
    if scale == 1:
        exact = path(noise(), torch.ones(64).double(), torch.zeros(64).double())
        torch.testing.assert_close(euler(as_denoise(student), noise(), grid), exact, rtol=0, atol=1e-3)


def test_a_students_path_is_what_the_sampler_visits_and_targets_on_it_lead_back_to_the_teachers():
    grid = flow_grid(8, 3.0)
    levels = [level.expand(64) for level in window_levels(grid)]
    student = exact_student(grid)
    states = visited(student, noise(), levels)
    met = []

    def recorded(x: Tensor, point: GridPoint) -> Tensor:
        met.append(x)
        return as_denoise(student)(x, point)

    met.append(euler(recorded, noise(), grid))
    for state, seen, level in zip(states, met, levels, strict=True):
        torch.testing.assert_close(state, seen, rtol=0, atol=1e-12)
        torch.testing.assert_close(state, path(noise(), levels[0], level), rtol=0, atol=1e-12)
    off = states[4] + 0.3  # wherever a student has strayed, the target ends on the teacher's path from there
    answer = mean_flow(flow_of(MEAN, DEVIATION), off, levels[4], levels[5], 64)
    reached = visited(lambda x, level: answer, off, levels[4:6])[-1]
    torch.testing.assert_close(reached, path(off, levels[4], levels[5]), rtol=0, atol=1e-5)


def test_windows_start_to_the_bit_at_what_the_sampler_tells_the_network():
    for steps, shift in ((1, 1.0), (4, 3.0), (7, 1.7), (8, 5.0)):
        grid = flow_grid(steps, shift)
        told = []
        euler(lambda x, point, told=told: told.append(point.told) or x, torch.ones(1, 1), grid)
        assert window_levels(grid)[:-1].tolist() == told
        assert window_levels(grid)[[0, -1]].tolist() == [1, 0]
    with pytest.raises(ValueError, match="grid 'flow'"):
        window_levels(diffusers_unipc_grid(4))


def test_known_frames_stay_and_others_go_as_if_alone():
    x = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, end = torch.full((2, 4), 0.75).double(), torch.full((2, 4), 0.5).double()
    start[:, 0] = end[:, 0] = 0.02
    start[:, 1] = end[:, 1] = 0.0
    flow = flow_of(MEAN, DEVIATION)
    answer = mean_flow(flow, x, start, end, 3)
    assert answer.isfinite().all()
    moved = visited(lambda x, level: answer, x, [start, end])[-1]
    assert moved[:, :, :2].equal(x[:, :, :2])
    alone = mean_flow(flow, x[:, :, 2:], start[:, 0] * 0 + 0.75, end[:, 0] * 0 + 0.5, 3)
    torch.testing.assert_close(answer[:, :, 2:], alone)


def test_guided_flow_is_guidance_of_the_estimate_and_off_it_asks_once():
    cond, uncond = flow_of(MEAN, DEVIATION), flow_of(OTHER_MEAN, OTHER_DEVIATION)
    assert guided_flow(cond, uncond, Guidance(1.0)) is cond
    guidance = Guidance(4.0, interval=(0.3, 0.8))
    flow = guided_flow(cond, uncond, guidance)
    estimate = guide(as_denoise(cond), as_denoise(uncond), guidance)
    for point in flow_grid(10).points[:-1]:
        told = torch.full((64,), point.told, dtype=torch.float64)
        wanted = from_denoised("flow", estimate(noise(), point), noise(), point.alpha, point.sigma)
        torch.testing.assert_close(flow(noise(), told), wanted)
    mixed = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    one_by_one = [flow(row[None], level[None]) for row, level in zip(noise(), mixed)]
    torch.testing.assert_close(flow(noise(), mixed), torch.cat(one_by_one))
    with pytest.raises(ValueError, match=r"rescale=0\.7"):
        guided_flow(cond, uncond, Guidance(4.0, rescale=0.7))


def test_wrong_numbers_are_refused():
    level = torch.ones(64).double()
    with pytest.raises(ValueError, match="parts=0"):
        mean_flow(flow_of(0, 1), noise(), level, level, 0)
    with pytest.raises(ValueError, match="midpoint"):
        mean_flow(flow_of(0, 1), noise(), level, level, 1, "midpont")
