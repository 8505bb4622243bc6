"""A stage: one diffusion model of pixels, which is a U-Net and the process that it learned to undo.

The systems before latent diffusion are chains of these. A stage knows nothing of text encoders or of other stages: it
is told `Conditions`, and draws clips or says how far its prediction is off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import reduce
from torch import Generator, Tensor

from carrara.core.config import choose
from carrara.core.precision import computing_in
from carrara.denoisers.unet3d import Conditions, UNet3D
from carrara.diffusion.conditioning import replace_known
from carrara.diffusion.fields import TimeDraw, draw_times
from carrara.diffusion.grids import Denoise, GridPoint
from carrara.diffusion.guidance import Guidance, guide, threshold_dynamic, threshold_static
from carrara.diffusion.predictions import Kind, add_noise, target, to_denoised
from carrara.diffusion.samplers import SAMPLERS, draw_noise
from carrara.diffusion.schedules import CosineVP
from carrara.systems.latent import Progress, Sampling, Watch

COSINE = CosineVP()
THRESHOLDS: dict[str, Callable[[Denoise], Denoise]] = {
    "none": lambda denoise: denoise,
    "static": threshold_static,
    "dynamic": threshold_dynamic,
}
Wrap = Callable[[Denoise, Tensor], Denoise]
"""Makes a denoiser respect what is known; its second argument is the noise that sampling starts from."""


def replacing(known: Tensor, mask: Tensor) -> Wrap:
    """The wrap that shows what is known at the level of the rest, as training does; see `replace_known`."""
    return lambda denoise, noise: replace_known(denoise, known, mask, noise)


@dataclass(frozen=True)
class Process:
    """What a stage predicts under the cosine schedule, "noise" or "v", and how its estimates of pixels are bounded."""

    prediction: Kind = "v"
    threshold: str = "static"

    def __post_init__(self) -> None:
        choose("prediction", self.prediction, dict.fromkeys(("noise", "v")))
        choose("threshold", self.threshold, THRESHOLDS)


class Tally:
    """Counts the evaluations of all stages of a clip and shows each."""

    def __init__(self, total: int, progress: Progress | None = None, watch: Watch | None = None) -> None:
        self.total, self.progress, self.watch, self.done = total, progress, watch, 0

    def __call__(self, denoise: Denoise) -> Denoise:
        def counted(x: Tensor, point: GridPoint) -> Tensor:
            denoised = denoise(x, point)
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
            if self.watch is not None:
                self.watch(point, x, denoised)
            return denoised

        return counted


@dataclass(frozen=True)
class Stage:
    """A network, its process, and the precision in which it computes when it draws, "" for that of its weights."""

    network: UNet3D
    process: Process
    precision: str = ""

    @property
    def device(self) -> torch.device:
        return self.network.leave.weight.device

    def estimate(self, conditions: Conditions) -> Denoise:
        """The network as a function from (x, grid point) to the estimate of the clip."""

        def denoise(x: Tensor, point: GridPoint) -> Tensor:
            told = torch.full((len(x),), point.told, dtype=torch.float64, device=x.device)
            with computing_in(self.precision, x.device):
                made = self.network(x, told, conditions)
            return to_denoised(self.process.prediction, made, x, point.alpha, point.sigma)

        return denoise

    @torch.no_grad()
    def draw(
        self,
        size: Sequence[int],
        conditions: Conditions,
        null: Conditions | None,
        sampling: Sampling,
        generators: Sequence[Generator],
        tally: Tally | None = None,
        wrap: Wrap | None = None,
        one_noise: bool = False,
    ) -> Tensor:
        """Draw clips `b c f h w` in [-1, 1], one for each generator; size is (c, f, h, w).

        null: the other side of guidance, None for none; wrap: see `Wrap`; one_noise: every frame starts from the same
        noise (Make-A-Video, section 3.2). Estimates are bounded after guidance, before and after what is known.
        """
        channels, frames, *sides = size
        noise = draw_noise((channels, 1 if one_noise else frames, *sides), generators).to(self.device)
        noise = noise.expand(-1, -1, frames, -1, -1).contiguous()
        bound, bounded = THRESHOLDS[self.process.threshold], self.process.threshold != "none"
        guidance = Guidance(sampling.guidance, sampling.interval, sampling.rescale)
        denoise = self.estimate(conditions)
        if null is not None:
            denoise = guide(denoise, self.estimate(null), guidance)
        denoise = bound(denoise)
        if wrap is not None:
            denoise = wrap(denoise, noise)
            if bounded:  # by its limits alone: what is known lies within them, and is not scaled with the rest
                denoise = threshold_static(denoise)
        if tally is not None:
            denoise = tally(denoise)
        return choose("sampler", sampling.sampler, SAMPLERS)(denoise, noise, sampling.points(), generators)

    def errors(self, clip: Tensor, noise: Tensor, t: Tensor, conditions: Conditions, alone: int = 0) -> Tensor:
        """Mean square error of the prediction per frame, `(b, f)`, for clips in [-1, 1] noised to times `(b,)` or
        `(b, f)`; alone: how many of the frames, the last, are images of their own."""
        levels = t.float()
        alpha, sigma = COSINE.alpha(levels), COSINE.sigma(levels)
        made = self.network(add_noise(clip, noise, alpha, sigma), t, conditions, alone)
        wanted = target(self.process.prediction, clip, noise, alpha, sigma)
        return reduce((made.float() - wanted).square(), "b c f h w -> b f", "mean")


def draw_levels(clips: int, alone: int, frames: int, generator: Generator) -> Tensor:
    """Training times `(clips, frames)`, uniform and stratified: one for all frames of a clip, one for each lone frame.

    frames: of a clip and its `alone` lone frames together.
    """
    times = draw_times(clips * (1 + alone), generator, TimeDraw(uniform=1.0)).reshape(clips, 1 + alone)
    return torch.cat((times[:, :1].expand(-1, frames - alone), times[:, 1:]), dim=1)
