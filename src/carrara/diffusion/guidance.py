"""Guidance as a value, and wrappers that change what a denoiser answers.

Everything acts on the estimate of the data. Prediction kinds are affine in it at a fixed x and level, so guiding
noise, v or flow instead is the same computation. A negative prompt is only another unconditional denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.diffusion.grids import Denoise, GridPoint


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: `uncond + scale (cond - uncond)` (Ho and Salimans 2022).

    scale: 1 is off, 0 is the unconditional model;
    interval: the times, as the network is told them (0 data, 1 noise), within which it acts (Kynkäänniemi et al. 2024);
    rescale: how far, 0 to 1, the result is brought back to the conditional estimate's standard deviation (Lin et al.
    2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4).
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale < 0:
            raise ValueError(
                f"guidance scale={self.scale}: expected a number of at least 0; 1 is off, 3 to 7 are usual"
            )
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(
                f"guidance interval={self.interval}: expected 0 <= from <= to <= 1, in time; (0, 1) is all"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance rescale={self.rescale}: expected 0 (none) to 1 (full); 0.7 is usual")

    @property
    def off(self) -> bool:
        """Whether it changes nothing anywhere, and so costs nothing."""
        return self.scale == 1

    def acts(self, point: GridPoint) -> bool:
        """Whether it changes anything at this point."""
        return not self.off and self.interval[0] <= point.told <= self.interval[1]

    def combine(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """The guided estimate; statistics are taken per sample, over all axes but the first."""
        guided = uncond + self.scale * (cond - uncond)
        if self.rescale == 0:
            return guided
        ratio = _deviation(cond) / _deviation(guided).clamp_min(torch.finfo(guided.dtype).tiny)
        return guided * (1 + self.rescale * (ratio - 1))


Both = Callable[[Tensor, GridPoint], tuple[Tensor, Tensor]]
"""x at a point -> the conditional and the unconditional estimate."""


def guide(cond: Denoise, uncond: Denoise, guidance: Guidance, both: Both | None = None) -> Denoise:
    """The guided denoiser. Where guidance is off it is `cond` alone, evaluated once; at scale 0, `uncond` alone.

    both: makes the two estimates where both are needed, for networks that do so faster in one batch.
    """
    if guidance.off:
        return cond

    def denoise(x: Tensor, point: GridPoint) -> Tensor:
        if not guidance.acts(point):
            return cond(x, point)
        if guidance.scale == 0 and guidance.rescale == 0:
            return uncond(x, point)
        return guidance.combine(*(both(x, point) if both else (cond(x, point), uncond(x, point))))

    return denoise


def threshold_static(denoise: Denoise, limit: float = 1.0) -> Denoise:
    """Clip the estimate to [-limit, limit] (Saharia et al. 2022, "Imagen", section 2.3). For pixels."""
    return lambda x, point: denoise(x, point).clamp(-limit, limit)


def threshold_dynamic(denoise: Denoise, percentile: float = 0.995, limit: float = 1.0) -> Denoise:
    """Clip each sample to the given percentile s of its magnitudes, where s exceeds the limit, and divide by s / limit.

    Saharia et al. 2022, "Imagen", section 2.3. For pixels: saturated values move inwards, not all to the same value.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile={percentile}: expected a share in (0, 1]; 0.995 is usual")

    def clipped(x: Tensor, point: GridPoint) -> Tensor:
        denoised = denoise(x, point)
        sizes = denoised.abs().flatten(1)
        rank = max(1, math.ceil(percentile * sizes.shape[1]))
        bound = sizes.kthvalue(rank, dim=1).values.clamp_min(limit).reshape(-1, *[1] * (x.ndim - 1))
        return torch.minimum(torch.maximum(denoised, -bound), bound) * (limit / bound)

    return clipped


def _deviation(x: Tensor) -> Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
