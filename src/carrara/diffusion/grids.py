"""Sampling grids: the noise levels that a sampler visits, from noise to data, and what the network is told at each.

A grid is float64, and a point's numbers are plain floats, so that samplers compute their coefficients in float64
whatever the latents are. The level and what the network is told are kept apart because schedulers elsewhere round
the second: each foreign convention is converted here, once. Their arithmetic is followed in their own order of
operations, since a truncation to integers shows the last bit.

The public Wan weights are sampled on three grids, which differ before the shift and so make different clips of the same
noise. With n steps: diffusers' UniPC goes from 1 (less 1e-6) towards 0.001 (`diffusers_unipc_grid`), the UniPC of the
original code from 0.999 towards 0 (`wan_grid`), its DPM-Solver++ from exactly 1 towards 0 (`wan_dpmpp_grid`). At 50
steps and shift 5 the last level before data is 0.0968, 0.0925 and 0.0926. All tell the network thousandths, truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from carrara.diffusion.schedules import CosineVP, Schedule, check_shift

FOREIGN_STEPS = 1000  # the integer time scale of Wan and diffusers


@dataclass(frozen=True)
class GridPoint:
    """One visit: the sample there is `alpha data + sigma noise`; `told` in [0, 1] is the time the network gets."""

    alpha: float
    sigma: float
    told: float
    index: int


Denoise = Callable[[Tensor, GridPoint], Tensor]
"""x at a point -> the estimate of the data, of the same shape."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Noise levels from noise to data.

    alphas, sigmas: `(n + 1,)` float64, the last point being data (sigma 0); told: `(n,)` float64 in [0, 1].
    """

    alphas: Tensor
    sigmas: Tensor
    told: Tensor

    def __post_init__(self) -> None:
        if not len(self.alphas) == len(self.sigmas) == len(self.told) + 1 >= 2:
            raise ValueError(
                f"a grid of {len(self.told)} steps has {len(self.alphas)} alphas and {len(self.sigmas)} sigmas; "
                "expected one more of each than of what the network is told"
            )
        if self.sigmas[-1] != 0 or (self.sigmas.diff() >= 0).any():
            raise ValueError("a grid's sigmas must fall at every step and end at 0, which is data")

    @property
    def steps(self) -> int:
        return len(self.told)

    @property
    def points(self) -> list[GridPoint]:
        """The n + 1 points; the last, data, tells the network 0 and is not evaluated."""
        told = [*self.told.tolist(), 0.0]
        return [GridPoint(*row, i) for i, row in enumerate(zip(self.alphas.tolist(), self.sigmas.tolist(), told))]

    def __iter__(self) -> Iterator[tuple[GridPoint, GridPoint]]:
        """The n steps, each as (from, to)."""
        return pairwise(self.points)


def flow_grid(steps: int, shift: float = 1.0) -> Grid:
    """Sigma evenly spaced from 1 to 0, then shifted towards noise; the network is told sigma itself."""
    _check(steps, shift)
    sigmas = _shift(np.linspace(1, 0, steps + 1)[:-1], shift)
    return _flow(sigmas, sigmas)


def diffusers_unipc_grid(steps: int, shift: float = 1.0) -> Grid:
    """What diffusers' `UniPCMultistepScheduler` (`use_flow_sigmas`, `flow_shift`) visits, as in its `WanPipeline`.

    Sigma runs from 1 (less 1e-6) towards 0.001 before the shift, float32; the network is told the time truncated to
    a multiple of 1/1000.
    """
    _check(steps, shift)
    sigmas = _shift(np.linspace(1, 1 / FOREIGN_STEPS, steps + 1)[:-1], shift)
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6
    return _flow(sigmas.astype(np.float32), _truncated(sigmas))


def diffusers_euler_grid(steps: int, shift: float = 1.0) -> Grid:
    """What diffusers' `FlowMatchEulerDiscreteScheduler` visits: float32, and the smallest sigma is shifted twice."""
    _check(steps, shift)
    scale = FOREIGN_STEPS
    ends = torch.tensor([scale, 1], dtype=torch.float32) / scale
    largest, smallest = (shift * ends / (1 + (shift - 1) * ends)).tolist()
    sigmas = _shift(np.linspace(largest * scale, smallest * scale, steps) / scale, shift).astype(np.float32)
    return _flow(sigmas, (sigmas * np.float32(scale)).astype(np.float64) / scale)


def wan_grid(steps: int, shift: float = 5.0) -> Grid:
    """What the UniPC of the original Wan repository visits (its `wan/utils/fm_solvers_unipc.py`).

    Sigma runs from 0.999 (held in float32) towards 0 before the shift; the network is told the time truncated to a
    multiple of 1/1000.
    """
    _check(steps, shift)
    largest = float(np.float32(1 - 1 / FOREIGN_STEPS))
    sigmas = _shift(np.linspace(largest, 0, steps + 1)[:-1], shift)
    return _flow(sigmas.astype(np.float32), _truncated(sigmas))


def wan_dpmpp_grid(steps: int, shift: float = 5.0) -> Grid:
    """What the DPM-Solver++ of the original Wan repository visits (its `wan/utils/fm_solvers.py`).

    Sigma runs from exactly 1 towards 0 before the shift, float32; the network is told the time truncated to a multiple
    of 1/1000.
    """
    _check(steps, shift)
    sigmas = _shift(np.linspace(1, 0, steps + 1)[:-1], shift)
    return _flow(sigmas.astype(np.float32), _truncated(sigmas))


def vp_grid(schedule: Schedule, steps: int, spacing: Literal["time", "log_snr"] = "time") -> Grid:
    """Points of a schedule, evenly spaced in its time or in log-SNR; the network is told the schedule's time.

    The last point is data itself, where the schedule's own end may lie a little above.
    """
    _check(steps, 1.0)
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    if spacing == "time":
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    elif spacing == "log_snr":
        low, high = schedule.log_snr(ends).tolist()
        t = schedule.time(torch.linspace(low, high, steps + 1, dtype=torch.float64)[:-1])
    else:
        raise ValueError(f"unknown spacing {spacing!r}; known: time, log_snr")
    alphas, sigmas = torch.cat([schedule.alpha(t), ends[:1]]), torch.cat([schedule.sigma(t), ends[1:]])
    return Grid(alphas, sigmas, t)


def cosine_grid(steps: int, shift: float = 1.0) -> Grid:
    """The cosine schedule of the Google video papers, evenly in its time. It is not shifted."""
    if shift != 1:
        raise ValueError(f"shift={shift}: the cosine grid has none; use shift=1")
    return vp_grid(CosineVP(), steps)


def _check(steps: int, shift: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= FOREIGN_STEPS:
        raise ValueError(f"steps={steps}: expected a whole number from 1 to {FOREIGN_STEPS}; 20 to 50 are usual")
    check_shift(shift)


def _shift(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _truncated(sigmas: np.ndarray) -> np.ndarray:
    return (sigmas * FOREIGN_STEPS).astype(np.int64) / FOREIGN_STEPS


def _flow(sigmas: np.ndarray, told: np.ndarray) -> Grid:
    padded = torch.from_numpy(np.append(sigmas.astype(np.float64), 0.0))
    return Grid(1 - padded, padded, torch.from_numpy(told.astype(np.float64)))
