"""Solvers that remember the last estimates: second order for one network evaluation per step.

With l = log(alpha / sigma), the exact step from s to t is

    x_t = (sigma_t / sigma_s) x_s + alpha_t * (integral over l from l_s to l_t of e^(l - l_t) denoised)

(Lu et al. 2022, "DPM-Solver++", prop. 4.1). The solvers differ in what they put for `denoised`. The first step is of
first order, having no past, and so is the last, where l is infinite and the step returns `denoised` itself. The orders
hold where steps in l are bounded; on an evenly spaced flow grid, where they are not, DPM-Solver++ nears 2 slowly.
"""

from __future__ import annotations

import math

from torch import Tensor

from carrara.diffusion.grids import Denoise, Grid, GridPoint

# A grid may start at alpha 0, where l is minus infinity; 1e-6 is where diffusers' grid starts instead.
SMALLEST_ALPHA = 1e-6


def first_order_step(x: Tensor, denoised: Tensor, here: GridPoint, there: GridPoint) -> Tensor:
    """`alpha_t denoised + sigma_t noise`, noise being what x holds besides `denoised`; exact if that is constant.

    Written so that it is finite at alpha 0 and that a step to data returns `denoised` to the bit.
    """
    shrink = there.sigma / here.sigma
    return shrink * x + (there.alpha - shrink * here.alpha) * denoised


def dpmpp_2m(denoise: Denoise, x: Tensor, grid: Grid, generator: object = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): extrapolates from the last two estimates. Draws no noise.

    Behind a first point at alpha 0, where l is minus infinity, the extrapolation's weight is its limit, 0.
    """
    before: tuple[GridPoint, Tensor] | None = None
    for here, there in grid:
        denoised = denoise(x, here)
        ahead = denoised
        if before is not None and before[0].alpha > 0 and there.sigma > 0:
            behind = _l(here) - _l(before[0])
            ahead = denoised + (_l(there) - _l(here)) / (2 * behind) * (denoised - before[1])
        x = first_order_step(x, ahead, here, there)
        before = here, denoised
    return x


def unipc(denoise: Denoise, x: Tensor, grid: Grid, generator: object = None) -> Tensor:
    """UniPC-2 with B2(h) on the estimate of the data (Zhao et al. 2023, "UniPC", section 3), as in Wan. Draws no noise.

    Each evaluation serves twice: it corrects the step that led to it (UniC, from the second point on; without a new
    evaluation at the corrected x), then predicts the next (UniP, whose two weights are 1/2 at order 2).
    """
    points = grid.points
    seen: list[Tensor] = []  # denoised at points 0 .. i
    start, order = x, 1  # where the last step started, after correction, and its order
    for i in range(grid.steps):
        denoised = denoise(x, points[i])
        if i > 0:
            x = _corrected(start, [*seen, denoised], points[: i + 1], order)
        seen.append(denoised)
        start, order = x, min(2, i + 1, grid.steps - i)
        x = _predicted(x, seen, points[: i + 2], order)
        seen = seen[-2:]
    return x


def _predicted(x: Tensor, seen: list[Tensor], points: list[GridPoint], order: int) -> Tensor:
    here, there = points[-2:]
    ahead = seen[-1]
    if order == 2:
        ratio = (_l(points[-3]) - _l(here)) / (_l(there) - _l(here))
        ahead = seen[-1] + 0.5 / ratio * (seen[-2] - seen[-1])
    return first_order_step(x, ahead, here, there)


def _corrected(start: Tensor, seen: list[Tensor], points: list[GridPoint], order: int) -> Tensor:
    here, there = points[-2:]
    now, past = seen[-1], seen[-2]
    if order == 1:
        return first_order_step(start, past + 0.5 * (now - past), here, there)
    h = _l(there) - _l(here)
    ratio = (_l(points[-3]) - _l(here)) / h
    # The weights solve  w1 + w2 = b1,  ratio w1 + w2 = b2  (b_n = h phi_(n+1)(-h) n! / B(h)).
    growth = math.expm1(-h)
    phi = -growth / h - 1
    b1, b2 = phi / growth, 2 * (-phi / h - 0.5) / growth
    w1 = (b1 - b2) / (1 - ratio)
    w2 = b1 - w1
    return first_order_step(start, past + w1 / ratio * (seen[-3] - past) + w2 * (now - past), here, there)


def _l(point: GridPoint) -> float:
    """Half the log-SNR."""
    return math.log(max(point.alpha, SMALLEST_ALPHA) / point.sigma)
