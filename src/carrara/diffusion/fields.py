"""Noise fields: every latent frame has its own noise level, known ones have level 0.

A field is a tensor of times `(b, f)`. All levels equal is text-to-video; a prefix at 0 is a given beginning; frames
known at other times enter as keyframe tokens beside the field; a region at 0 is what inpainting keeps. Training draws
all of them from the start, so that one network serves every mode (Chen et al. 2024, "Diffusion Forcing", for
independent levels; HaCohen et al. 2024, "LTX-Video", for known parts at a small level).

Every draw comes from the passed generator, on its device, and takes equally many random values whatever it decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Generator, Tensor

from carrara.diffusion.grids import Denoise, GridPoint
from carrara.diffusion.predictions import expand_levels

EQUAL, PREFIX, KEYFRAME, INDEPENDENT, REGION = range(5)


SHARES = ("equal", "prefix", "keyframe", "independent", "region")


@dataclass(frozen=True)
class FieldMix:
    """Shares of the kinds of field, which add up to 1.

    In a share `noisy_known` of the samples the known parts have a level drawn from [0, known_level]; else level 0. Of
    the samples with keyframes a share `keyframe_prefix` has a known beginning too (interpolation, loops, joining).
    """

    equal: float = 0.66
    prefix: float = 0.12
    keyframe: float = 0.10
    independent: float = 0.08
    region: float = 0.04
    noisy_known: float = 0.5
    known_level: float = 0.05
    keyframe_prefix: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)}: expected a share in [0, 1]")
        if not math.isclose(sum(self.shares), 1, abs_tol=1e-6):
            raise ValueError(f"the shares of fields {self.shares} add up to {sum(self.shares):g}; expected 1")

    @property
    def longest_prefix(self) -> int | None:
        """Latent frames of a known beginning at most; None: all but one."""
        return None

    @property
    def shares(self) -> tuple[float, float, float, float, float]:
        return self.equal, self.prefix, self.keyframe, self.independent, self.region

    @property
    def taught(self) -> tuple[str, ...]:
        """What a model trained on these fields can be told: "levels" of single positions, and "keyframes"."""
        levels = self.prefix or self.keyframe or self.independent or self.region
        return (*(("levels",) if levels else ()), *(("keyframes",) if self.keyframe else ()))

    def only(self, kind: int) -> FieldMix:
        """Fields of this kind and no other."""
        return replace(self, **{name: float(index == kind) for index, name in enumerate(SHARES)})

    def without(self, *kinds: int) -> FieldMix:
        """The other kinds in the same proportions, or equal levels if there are none."""
        kept = [0.0 if index in kinds else share for index, share in enumerate(self.shares)]
        total = sum(kept)
        return (
            replace(self, **{name: share / total for name, share in zip(SHARES, kept)}) if total else self.only(EQUAL)
        )


class FirstFrame(FieldMix):
    """Where a beginning is known, it is the first latent frame alone."""

    @property
    def longest_prefix(self) -> int:
        return 1


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

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which times are drawn."""
        return 0.0, 1.0


@dataclass(frozen=True)
class TimesBetween(TimeDraw):
    """Times at least `least` and below `most`, each component as it would be drawn there."""

    least: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.least < self.most <= 1:
            raise ValueError(f"times from {self.least} to {self.most}: expected 0 <= least < most <= 1")

    @property
    def bounds(self) -> tuple[float, float]:
        return self.least, self.most


@dataclass(frozen=True, eq=False)
class Field:
    """What a batch is trained on.

    levels: `(b, f)` float32, times of the latent frames (with a region: of what is not known);
    weights: `(b, f)` float32, 1 where the loss counts and 0 where the frame is known;
    kinds: `(b,)` int64, of EQUAL, PREFIX, KEYFRAME, INDEPENDENT, REGION;
    keyframes: `(b, k)` int64, which of a clip's stored keyframes are given as tokens, -1 for none;
    known_levels: `(b,)` float32, the level of what is known, 0 where nothing is;
    region: `(b, rows, columns)` bool, tokens that are known in every frame, or None.
    """

    levels: Tensor
    weights: Tensor
    kinds: Tensor
    keyframes: Tensor
    known_levels: Tensor
    region: Tensor | None = None


def draw_times(n: int, generator: Generator, draw: TimeDraw | None = None) -> Tensor:
    """Training times `(n,)` float32 in (0, 1), in random order: logit-normal and uniform mixed, stratified over the n.

    One uniform draw from each n-th of [0, 1) picks the component and, rescaled, the quantile in it, so that both the
    shares and each component are stratified.
    """
    draw = draw or TimeDraw()
    low, high = draw.bounds
    u, share = _strata(n, generator), 1 - draw.uniform
    below, above = (_logit_normal_share(bound, draw) for bound in draw.bounds)
    quantiles = below + (above - below) * (u / max(share, 1e-12))
    normal = torch.special.ndtri(quantiles.clamp(1e-9, 1 - 1e-9))
    uniform = low + (high - low) * (u - share) / max(draw.uniform, 1e-12)
    times = torch.where(u < share, torch.sigmoid(draw.mean + draw.std * normal), uniform)
    return times.clamp(max(low, 1e-6), high - 1e-6).float()


def _logit_normal_share(time: float, draw: TimeDraw) -> float:
    """How much of the logit-normal component lies below a time."""
    if not 0 < time < 1:
        return float(time >= 1)
    return 0.5 * math.erfc((draw.mean - math.log(time / (1 - time))) / (draw.std * math.sqrt(2)))


def draw_step(mix: FieldMix, generator: Generator) -> FieldMix:
    """The mix of one step: keyframes for all its clips or for none, since tokens lengthen the sequence; and regions for
    all or for none, since levels per token cost more. Over many steps the shares are those of `mix`."""
    draw = float(torch.rand((), generator=generator, device=generator.device))
    if draw < mix.keyframe:
        return mix.only(KEYFRAME)
    if draw < mix.keyframe + mix.region:
        return mix.only(REGION)
    return mix.without(KEYFRAME, REGION)


def draw_count(stored: int, generator: Generator) -> int:
    """How many of a clip's stored keyframes a step gives: one in half of the steps, two, or all."""
    draw = float(torch.rand((), generator=generator, device=generator.device))
    return max(1, min(stored, 1 if draw < 0.5 else 2 if draw < 0.75 else stored))


def draw_field(
    batch: int,
    frames: int,
    generator: Generator,
    mix: FieldMix | None = None,
    draw: TimeDraw | None = None,
    stored: int = 2,
    count: int = 1,
    tokens: tuple[int, int] = (1, 1),
) -> Field:
    """Noise levels, loss weights and what is known, for clips of so many latent frames.

    A known prefix has 1 to frames - 1 latent frames, at most the mix's `longest_prefix`. `count` keyframes are
    chosen of `stored`, whose last is the clip's last frame: that one in half of the draws at least, the others
    evenly. A region is a rectangle of the `tokens` (rows, columns), or everything outside it. Single images (frames
    1) have nothing known, and get equal levels instead. Kinds are stratified over the batch.
    """
    mix = mix or FieldMix()
    device = generator.device
    bounds = torch.tensor(mix.shares, dtype=torch.float64, device=device).cumsum(0)[:-1]
    kinds = torch.bucketize(_strata(batch, generator), bounds, right=True)
    times = draw_times(batch, generator, draw)
    separate = draw_times(batch * frames, generator, draw).reshape(batch, frames)
    lengths, last, both, noisy, small = torch.rand(5, batch, generator=generator, device=device)
    order = torch.rand(batch, stored, generator=generator, device=device)
    region = _rectangles(torch.rand(5, batch, generator=generator, device=device), tokens)
    if frames == 1:
        kinds = torch.where(kinds == INDEPENDENT, kinds, EQUAL)

    begins = (kinds == PREFIX) | ((kinds == KEYFRAME) & (both < mix.keyframe_prefix))
    longest = frames - 1 if mix.longest_prefix is None else min(mix.longest_prefix, frames - 1)
    known_frames = torch.where(begins, 1 + _index(lengths, longest), 0)
    known = torch.arange(frames, device=device) < known_frames[:, None]
    given = (kinds == KEYFRAME) | (kinds == PREFIX) | (kinds == REGION)
    known_level = torch.where(given & (noisy < mix.noisy_known), small * mix.known_level, 0.0)
    levels = torch.where((kinds == INDEPENDENT)[:, None], separate, times[:, None])
    levels = torch.where(known, known_level[:, None], levels)

    if stored:
        order[:, -1] = torch.where(last < 0.5, -1.0, order[:, -1])  # the smallest come first
    chosen = order.argsort(dim=1)[:, :count]
    return Field(
        levels=levels,
        weights=(~known).float(),
        kinds=kinds,
        keyframes=torch.where((kinds == KEYFRAME)[:, None], chosen, -1),
        known_levels=known_level,
        region=region & (kinds == REGION)[:, None, None] if mix.region and frames > 1 else None,
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


def _index(uniform: Tensor, count: int | Tensor) -> Tensor:
    """A uniform number in [0, 1) as a whole number below count (one, or one for each)."""
    most = count - 1 if isinstance(count, Tensor) else torch.tensor(count - 1, device=uniform.device)
    return (uniform * count).long().clamp_min(0).minimum(most.clamp_min(0))


def _rectangles(uniform: Tensor, tokens: tuple[int, int]) -> Tensor:
    """Known tokens `(b, rows, columns)`: a rectangle of a quarter to all but one of each side, or what is outside.

    uniform: `(5, b)` numbers in [0, 1): heights, widths, places, and whether the inside is known.
    """
    inside = torch.ones(uniform.shape[1], *tokens, dtype=torch.bool, device=uniform.device)
    for axis, (side, size, place) in enumerate(zip(tokens, uniform[:2], uniform[2:4]), 1):
        least = max(1, side // 4)
        length = least + _index(size, max(1, side - least))
        start = _index(place, side - length + 1)
        at = torch.arange(side, device=uniform.device)
        within = (at >= start[:, None]) & (at < (start + length)[:, None])
        inside &= within[:, :, None] if axis == 1 else within[:, None, :]
    return torch.where((uniform[4] < 0.5)[:, None, None], inside, ~inside)
