"""Few-step sampling learnt from a teacher: windowed trajectory distillation.

A student's sampling grid cuts noise to data into windows, one for every step. Inside a window the teacher, guided,
follows its flow in several evaluations; the student answers at the window's start, in one, with the *mean* flow to the
window's end. Then Euler steps of the student on that grid pass through the points of the teacher's own path, and
guidance is in the weights (Yan et al. 2024, "PeRFlow", arXiv 2405.07510, section 3.1; guidance as in Meng et al. 2023,
arXiv 2210.03142, section 3.1, for one scale).

What is not standard:
- levels are fields, `(b,)` or `(b, f)`: every sample has its own window, and a known frame has a window of no length,
  so that it stays where it is;
- windows start on the student's own path as well as at noised data (`visited`; Ross et al. 2011, "DAgger"). Guided
  paths leave the distribution of noised data, and what the student meets when it samples is where its own steps led.

Time runs as everywhere here, from noise at 1 to data at 0. A flow is noise - data, the derivative of x by the level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from carrara.core.config import choose
from carrara.diffusion.grids import Grid
from carrara.diffusion.guidance import Guidance
from carrara.diffusion.predictions import expand_levels

Flow = Callable[[Tensor, Tensor], Tensor]
"""x and its levels, `(b,)` or `(b, f)` float64 -> the flow, of the shape of x."""


def window_levels(grid: Grid) -> Tensor:
    """The levels `(n + 1,)` float64 between which the n windows of a sampling grid lie, from 1 to 0.

    They are to the bit what the network is told when it samples on the grid. Raises ValueError for a grid on which an
    Euler step is not one of the flow by the level that is told.
    """
    if not (grid.told.equal(grid.sigmas[:-1]) and grid.alphas.equal(1 - grid.sigmas) and grid.sigmas[0] == 1):
        raise ValueError(
            "these windows do not start at noise, or the network is not told the level itself; use the grid 'flow'"
        )
    return grid.sigmas


def guided_flow(cond: Flow, uncond: Flow, guidance: Guidance) -> Flow:
    """The guided flow, `uncond + scale (cond - uncond)`; where guidance is off it is `cond` alone, evaluated once.

    Flow is affine in the estimate of the data, so this is `guidance.guide` with a level per frame. Raises ValueError
    for a rescaled guidance, which is not affine.
    """
    if guidance.rescale:
        raise ValueError(f"guidance rescale={guidance.rescale}: a rescaled teacher is not distilled; use rescale=0")
    if guidance.off:
        return cond
    first, last = guidance.interval

    def flow(x: Tensor, levels: Tensor) -> Tensor:
        acts = (first <= levels) & (levels <= last)
        scale = expand_levels(torch.where(acts, guidance.scale, 1.0).to(x.dtype), x)
        without = uncond(x, levels)
        return without + scale * (cond(x, levels) - without)

    return flow


def _euler(flow: Flow, x: Tensor, here: Tensor, there: Tensor) -> Tensor:
    return flow(x, here)


def _midpoint(flow: Flow, x: Tensor, here: Tensor, there: Tensor) -> Tensor:
    middle = (here + there) / 2
    return flow(moved(x, flow(x, here), here, middle), middle)


SOLVERS: dict[str, Callable[[Flow, Tensor, Tensor, Tensor], Tensor]] = {"euler": _euler, "midpoint": _midpoint}
"""Each gives the flow that leads over one part of a window, of order 1 and 2. Neither asks for the flow at the end of
it, for a network at level 0 has learnt that what it sees is known."""


def mean_flow(flow: Flow, x: Tensor, start: Tensor, end: Tensor, parts: int = 2, solver: str = "midpoint") -> Tensor:
    """The mean of the flow along the path from x at level `start` to level `end`: what a student should answer there.

    start, end: `(b,)` or `(b, f)` float64. The window is cut into equal parts, one step of the solver each. Nothing is
    divided by the window's length: where that is 0 (a known frame) x stays, and the answer is finite.
    """
    if parts < 1:
        raise ValueError(f"parts={parts}: a window needs at least 1; 2 to 4 are usual")
    lead = choose("solver", solver, SOLVERS)
    total = torch.zeros_like(x)
    for part in range(parts):
        here, there = (torch.lerp(start, end, step / parts) for step in (part, part + 1))
        slope = lead(flow, x, here, there)
        x = moved(x, slope, here, there)
        total = total + slope
    return total / parts


def visited(flow: Flow, x: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """x at each of the levels, by Euler steps of the flow from the first to the last: a student's path, x included.

    levels: `(b,)` or `(b, f)` each.
    """
    states = [x]
    for here, there in pairwise(levels):
        states.append(moved(states[-1], flow(states[-1], here), here, there))
    return states


def moved(x: Tensor, flow: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """x after a straight step from one level to another, the step's length taken in float64."""
    step = expand_levels((there - here).to(x.dtype), x)
    return x + step * flow
