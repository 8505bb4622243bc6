"""From a network to what a sampler asks: a function from (x, grid point) to guided, denoised latents.

Here everything that is given beside the noise meets the network: prompts, known latents and their levels, keyframes,
an image's channels and states. Text keys are computed once. Conditional and unconditional go through the network in one
batch where that is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from einops import reduce, repeat
from torch import Tensor

from carrara.core.types import Keyframes, TextStates
from carrara.denoisers.dit import DiT
from carrara.denoisers.first_block import FirstBlock
from carrara.denoisers.text_keys import TextKeys
from carrara.diffusion.fields import held_levels
from carrara.diffusion.grids import Denoise, GridPoint
from carrara.diffusion.guidance import Guidance, guide
from carrara.diffusion.predictions import to_denoised
from carrara.systems.experts import ExpertKeys, Experts, split_at

TOGETHER = 192
"""Up to so many tokens, one batch of both sides of guidance is faster than one after the other.

On one CPU core, widths 256 and 384: 1.2 to 1.4 times at 80 tokens, 1.1 at 180, 0.8 (bfloat16) or 1.07 at 256.
"""


@dataclass(frozen=True)
class ImageContext:
    """What an image-to-video network reads of the image at every evaluation.

    channels: `b e f h w`, beside the noised latents in the input; states: of the image tower, `b m i`, for the blocks.
    """

    channels: Tensor | None = None
    states: Tensor | None = None

    def to(self, device: torch.device | str) -> ImageContext:
        """On a device, in float32."""
        parts = (self.channels, self.states)
        return ImageContext(*(None if part is None else part.to(device, torch.float32) for part in parts))

    def repeated(self, count: int) -> ImageContext:
        """Those of so many clips: these, again and again."""
        parts = (self.channels, self.states)
        return ImageContext(
            *(None if part is None else part[torch.arange(count, device=part.device) % len(part)] for part in parts)
        )

    def row(self, number: int) -> ImageContext:
        """That of one clip alone."""
        parts = (self.channels, self.states)
        return ImageContext(*(None if part is None else part[number : number + 1] for part in parts))


@dataclass(frozen=True)
class Given:
    """What a clip is given besides its prompt.

    held: bool `b f h w`, True where latents are known and held at level 0. A token covers a patch of latents; it is
    told that it is clean where all of its patch is held.
    """

    held: Tensor | None = None
    keyframes: Keyframes | None = None
    image: ImageContext = ImageContext()


def guided(
    network: DiT | Experts,
    text: TextStates,
    null: Callable[[], TextStates],
    guidance: Guidance,
    low_scale: float | None = None,
    given: Given | None = None,
    reuse: float = 0.0,
    together: bool | None = None,
) -> Denoise:
    """The guided denoiser of these prompts.

    null: reads the unconditional side, asked only where guidance needs it; low_scale: the guidance scale of the expert
    for low noise, None for the same; reuse: see `denoisers/first_block.py`, 0 is exact; together: both sides in one
    batch, None where it is faster.
    """
    given = given or Given()
    check_given(network, given)
    boundary = network.boundary if isinstance(network, Experts) else None
    low = guidance if low_scale is None else replace(guidance, scale=low_scale)
    states = given.image.states
    if states is not None and len(states) == 1:
        states = states.expand(len(text.states), -1, -1)  # one image for all prompts
    keys = network.read_text(text, states)
    cond = as_denoise(network, keys, given, reuse)
    if guidance.off and (low.off or boundary is None):
        return cond
    null_keys = network.read_text(null(), states)
    uncond = as_denoise(network, null_keys, given, reuse)

    @cache
    def joint() -> Denoise:
        return as_denoise(network, keys.join(null_keys), given, reuse)  # type: ignore[arg-type]

    def both(x: Tensor, point: GridPoint) -> tuple[Tensor, Tensor]:
        if together or (together is None and _tokens(network, x) <= TOGETHER):
            first, second = joint()(repeat(x, "b ... -> (two b) ...", two=2), point).chunk(2)
            return first, second
        return cond(x, point), uncond(x, point)

    high = guide(cond, uncond, guidance, both)
    return high if boundary is None else split_at(boundary, high, guide(cond, uncond, low, both))


def as_denoise(network: DiT | Experts, keys: TextKeys | ExpertKeys, given: Given, reuse: float = 0.0) -> Denoise:
    """The network, with its prompts read, as a function from (x, grid point) to denoised latents.

    A batch of a whole multiple of what is given repeats it.
    """
    asked = _remembering(network, reuse)
    _, rows, columns = network.config.patch
    held = None
    if given.held is not None:
        held = reduce(given.held, "b f (h p) (w q) -> b (f h w)", "min", p=rows, q=columns)
    channels = given.image.channels

    def denoise(x: Tensor, point: GridPoint) -> Tensor:
        if held is None:
            t = torch.full((x.shape[0],), point.told, dtype=torch.float64, device=x.device)
        else:
            t = held_levels(_repeated(held, x), point.told)
        frames = given.keyframes
        if frames is not None:
            frames = Keyframes(*(_repeated(part, x) for part in (frames.latents, frames.times, frames.levels)))
        whole = x if channels is None else torch.cat((x, _repeated(channels, x).to(x.dtype)), dim=1)
        return to_denoised("flow", asked(whole, t, keys, frames), x, point.alpha, point.sigma)

    return denoise


def check_given(network: DiT | Experts, given: Given) -> None:
    """Refuse an image's channels where the network takes none, their absence where it does, and another number."""
    wanted = network.config.given_channels
    found = 0 if given.image.channels is None else given.image.channels.shape[1]
    if wanted and not found:
        raise ValueError(f"this model makes a clip of an image: give one (its {wanted} channels beside the latents)")
    if wanted != found:
        raise ValueError(f"the image has {found} channels: this model takes {wanted} beside the latents")


def _remembering(network: DiT | Experts, threshold: float) -> DiT | FirstBlock | Experts:
    """The network itself, or one with memories of its own that reuses what changes less than the threshold."""
    if threshold == 0:
        return network
    if isinstance(network, Experts):
        high, low = (_remembering(expert, threshold) for expert in (network.high, network.low))  # type: ignore[arg-type]
        return Experts(high, low, network.boundary)  # type: ignore[arg-type]
    return FirstBlock(network, threshold)


def _repeated(part: Tensor, x: Tensor) -> Tensor:
    times = x.shape[0] // part.shape[0]
    return part if times == 1 else repeat(part, "b ... -> (times b) ...", times=times)


def _tokens(network: DiT | Experts, x: Tensor) -> int:
    b, _, f, h, w = x.shape
    pf, ph, pw = network.config.patch
    return b * (f // pf) * (h // ph) * (w // pw)
