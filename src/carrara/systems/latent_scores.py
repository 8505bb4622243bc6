"""What evaluation asks of a latent video model beside clips: to continue a beginning, and to say how likely a clip is.

Both are values around a `LatentVideo` with the signatures that `carrara.evaluation` names `Continues` and
`ScoresNoise`, so that a measure never learns what stands behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from torch import Tensor

from carrara.core.types import VideoShape, check_frames
from carrara.systems.latent import Known, LatentVideo, Sampling
from carrara.systems.phases import to_bytes, to_unit


@dataclass(frozen=True)
class LatentContinues:
    """Continue a clip: the latents of the known frames are held at level 0 while the rest is drawn.

    A causal encoder gives the beginning of a clip the same latents whether it is followed by anything or not, so the
    known frames are encoded alone: 1 + k times the stride in time. sampling: the model's own if None.
    """

    system: LatentVideo
    sampling: Sampling | None = None

    @torch.inference_mode()
    def __call__(self, known: Tensor, frames: int, prompt: str = "", seed: int = 0) -> Tensor:
        """Frames uint8 `t h w 3` to a clip uint8 `frames h w 3`, its beginning as the autoencoder gives it back.

        Raises ValueError for a number of frames, a size or a dtype that the model cannot take.
        """
        system = self.system
        _check_pixels("known", known, 4)
        time = system.stride.time
        check_frames(len(known), time)
        if len(known) >= frames:
            raise ValueError(f"{len(known)} known of {frames} frames: nothing is left to continue; ask for more frames")
        shape = VideoShape(frames, *known.shape[1:3])
        latent = shape.latent(system.stride)
        beginning = system.autoencoder.encode(to_unit(known[None].to(system.device)))
        whole = beginning.new_zeros(1, system.latent_channels, latent.frames, latent.height, latent.width)
        mask = torch.zeros(1, latent.frames, latent.height, latent.width, dtype=torch.bool, device=system.device)
        given = beginning.shape[2]
        whole[:, :, :given], mask[:, :given] = beginning, True
        sampling = self.sampling or system.defaults.sampling
        if not prompt:  # with nothing to say, guidance would compare the null caption with itself
            sampling = replace(sampling, guidance=1.0)
        latents = system.sample([prompt], [seed], shape, sampling, known=Known(whole, mask))
        video = torch.cat(list(system.decode_chunks(latents)), dim=2)
        return to_bytes(system.finish(video, [prompt]))[0].cpu()


@dataclass(frozen=True)
class LatentScores:
    """The error with which a model undoes noise on given clips: lower where a clip is likelier to it.

    The denoising loss bounds the negative log likelihood (Ho et al. 2020), and compares clips that differ in one thing
    when they get the same noise (LikePhys, Yuan et al. 2025, arXiv 2510.11512). known: how many frames (1 + 4k) the
    model is given clean, as the beginning, and not scored; 0 scores the whole clip. batch: clips at a time.
    """

    system: LatentVideo
    known: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        if self.known:
            check_frames(self.known, self.system.stride.time)
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}: must be at least 1")

    @torch.inference_mode()
    def __call__(self, clips: Tensor, prompt: str, levels: Sequence[float], seed: int) -> Tensor:
        """Clips uint8 `b t h w 3` to mean square errors of the flow `(b, levels)`, float64.

        levels: noise levels in (0, 1). Each has its own noise, drawn from the seed, the same for every clip and
        whatever else is in the batch.
        """
        system = self.system
        _check_pixels("clips", clips, 5)
        outside = [level for level in levels if not 0 < level < 1]
        if outside or not levels:
            raise ValueError(f"levels={list(levels)}: give at least one, all above 0 and below 1")
        shape = VideoShape(*clips.shape[1:4])
        latent = shape.latent(system.stride)
        given = (self.known - 1) // system.stride.time + 1 if self.known else 0
        if given >= latent.frames:
            raise ValueError(f"known={self.known} of {shape.frames} frames: nothing is left to score")
        size = (len(levels), system.latent_channels, latent.frames, latent.height, latent.width)
        noise = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(system.device)
        told = torch.tensor(levels, dtype=torch.float32, device=system.device)
        told = repeat(told, "l -> l f", f=latent.frames).clone()
        told[:, :given] = 0
        return torch.cat([self._errors(part, prompt, noise, told, given) for part in clips.split(self.batch)])

    def _errors(self, clips: Tensor, prompt: str, noise: Tensor, told: Tensor, given: int) -> Tensor:
        latents = self.system.autoencoder.encode(to_unit(clips.to(self.system.device)))
        text, network = self.system.read([prompt] * len(clips)), self.system.network
        found = []
        for one, level in zip(noise, told):
            noised = torch.lerp(latents, one[None], rearrange(level, "f -> 1 1 f 1 1"))
            flow = network(noised, level.expand(len(clips), -1), text)
            error = (flow - (one - latents)).double().square()
            found.append(error[:, :, given:].mean(dim=(1, 2, 3, 4)))
        return torch.stack(found, dim=1).cpu()


def _check_pixels(name: str, pixels: Tensor, axes: int) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != axes or pixels.shape[-1] != 3:
        wanted = "b t h w 3" if axes == 5 else "t h w 3"
        raise ValueError(f"{name} is {pixels.dtype} of shape {tuple(pixels.shape)}: expected uint8 `{wanted}`")
