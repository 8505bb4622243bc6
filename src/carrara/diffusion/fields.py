"""Noise fields: every latent frame has its own noise level, known ones have level 0.

A field is a tensor of times `(b, f)`. All levels equal is text-to-video; a prefix at 0 is a given beginning; frames
known at other times enter as keyframe tokens beside the field. Training draws all of them from the start, so that one
network serves every mode (Chen et al. 2024, "Diffusion Forcing", for independent levels; HaCohen et al. 2024,
"LTX-Video", for known parts at a small level).

Every draw comes from the passed generator, on its device, and takes equally many random values whatever it decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from carrara.diffusion.grids import Denoise, GridPoint
from carrara.diffusion.predictions import expand_levels

EQUAL, PREFIX, KEYFRAME, INDEPENDENT = range(4)


@dataclass(frozen=True)
class FieldMix:
    """Shares of the kinds of field, which add up to 1.

    In a share `noisy_known` of the samples the known parts have a level drawn from [0, known_level]; else level 0.
    """

    equal: float = 0.70
    prefix: float = 0.12
    keyframe: float = 0.10
    independent: float = 0.08
    noisy_known: float = 0.5
    known_level: float = 0.05

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)}: expected a share in [0, 1]")
        if not math.isclose(sum(self.shares), 1, abs_tol=1e-6):
            raise ValueError(f"the shares of fields {self.shares} add up to {sum(self.shares):g}; expected 1")

    @property
    def shares(self) -> tuple[float, float, float, float]:
        return self.equal, self.prefix, self.keyframe, self.independent


@dataclass(frozen=True)
class TimeDraw:
    """How training times are drawn: a share `uniform` evenly from (0, 1), the rest logit-normal (mean, std).

    Logit-normal (Esser et al. 2024, section 3.1) favours the middle; alone it draws t > 0.95 in 0.2% of the cases. The
    uniform share keeps times near 1, where layout is decided, in view.
    """

    uniform: float = 0.3
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.uniform <= 1:
            raise ValueError(f"uniform={self.uniform}: expected a share in [0, 1]; 0.3 is usual")
        if self.std <= 0:
            raise ValueError(f"std={self.std}: expected a positive number; 1 is usual")


@dataclass(frozen=True, eq=False)
class Field:
    """What a batch is trained on.

    levels: `(b, f)` float32, times of the latent frames;
    weights: `(b, f)` float32, 1 where the loss counts and 0 where the frame is known;
    kinds: `(b,)` int64, of EQUAL, PREFIX, KEYFRAME, INDEPENDENT;
    keyframes: `(b,)` int64, the pixel frame given as a keyframe token (rotary time `index / stride`), -1 for none;
    keyframe_levels: `(b,)` float32, the level of that token, 0 for none.
    """

    levels: Tensor
    weights: Tensor
    kinds: Tensor
    keyframes: Tensor
    keyframe_levels: Tensor


def draw_times(n: int, generator: Generator, draw: TimeDraw | None = None) -> Tensor:
    """Training times `(n,)` float32 in (0, 1), in random order: logit-normal and uniform mixed, stratified over the n.

    One uniform draw from each n-th of [0, 1) picks the component and, rescaled, the quantile in it, so that both the
    shares and each component are stratified.
    """
    draw = draw or TimeDraw()
    u, share = _strata(n, generator), 1 - draw.uniform
    normal = torch.special.ndtri((u / max(share, 1e-12)).clamp(1e-9, 1 - 1e-9))
    uniform = (u - share) / max(draw.uniform, 1e-12)
    times = torch.where(u < share, torch.sigmoid(draw.mean + draw.std * normal), uniform)
    return times.clamp(1e-6, 1 - 1e-6).float()


def draw_field(
    batch: int,
    frames: int,
    generator: Generator,
    mix: FieldMix | None = None,
    draw: TimeDraw | None = None,
    stride: int = 4,
) -> Field:
    """Noise levels, loss weights and keyframes for clips of so many latent frames.

    A clip has `1 + stride (frames - 1)` pixel frames. A known prefix has 1 to frames - 1 latent frames; a keyframe is
    the last pixel frame in half of the draws, else any but the first. Single images (frames 1) have neither, and get
    equal levels instead. Kinds are stratified over the batch.
    """
    mix = mix or FieldMix()
    device = generator.device
    kinds = torch.bucketize(
        _strata(batch, generator),
        torch.tensor(mix.shares, dtype=torch.float64, device=device).cumsum(0)[:3],
        right=True,
    )
    times = draw_times(batch, generator, draw)
    separate = draw_times(batch * frames, generator, draw).reshape(batch, frames)
    lengths, pixels, last, noisy, small = torch.rand(5, batch, generator=generator, device=device)
    if frames == 1:
        kinds = torch.where(kinds == INDEPENDENT, kinds, EQUAL)

    known_level = torch.where(noisy < mix.noisy_known, small * mix.known_level, 0.0)
    known_frames = torch.where(kinds == PREFIX, 1 + _index(lengths, frames - 1), 0)
    known = torch.arange(frames, device=device) < known_frames[:, None]
    levels = torch.where((kinds == INDEPENDENT)[:, None], separate, times[:, None])
    levels = torch.where(known, known_level[:, None], levels)

    end = stride * (frames - 1)
    chosen = torch.where(last < 0.5, end, 1 + _index(pixels, end))
    given = kinds == KEYFRAME
    return Field(
        levels=levels,
        weights=(~known).float(),
        kinds=kinds,
        keyframes=torch.where(given, chosen, -1),
        keyframe_levels=torch.where(given, known_level, 0.0),
    )


def held_levels(mask: Tensor, told: float) -> Tensor:
    """What the network is told of each position during sampling: 0 where the mask holds it, else the grid's time.

    float64, because the times of foreign grids are thousandths that a network multiplies by 1000 again.
    """
    return (~mask).double() * told


def hold(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Keep known latents at level 0 throughout sampling, with any sampler.

    known: like x; mask: bool, True where known: `(b, f)` (a given beginning), `(b, f, h, w)` (a region) or like x. The
    network sees the known latents instead of noise, and the estimate there is them, so the sampler ends on them to the
    bit. The denoiser must tell its network `held_levels(mask, point.told)` (Wan 2.2 TI2V's per-token times).
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of type {mask.dtype}: expected bool, True where the latents are known")
    where = expand_levels(mask, known)
    assert isinstance(where, Tensor)

    def held(x: Tensor, point: GridPoint) -> Tensor:
        return torch.where(where, known, denoise(torch.where(where, known, x), point))

    return held


def _strata(n: int, generator: Generator) -> Tensor:
    """One uniform number from each of n equal parts of [0, 1), float64, in random order."""
    device = generator.device
    order = torch.randperm(n, generator=generator, device=device)
    return (order + torch.rand(n, generator=generator, device=device, dtype=torch.float64)) / n


def _index(uniform: Tensor, count: int) -> Tensor:
    """A uniform number in [0, 1) as a whole number below count."""
    return (uniform * count).long().clamp_max(max(count - 1, 0))
