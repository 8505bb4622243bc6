"""What one pass of the sampler is told of a window: latents to keep, keyframe tokens, where to begin.

The prefix is encoded as a clip of its own, so that its latents are what a causal encoder gives the beginning of any
clip. A known frame elsewhere is encoded alone, as a keyframe token at its own time; of a run of known frames every
fourth is told, one for each latent frame. A source clip is encoded as a whole, its hole filled. Models that read an
image beside the noise (Wan's image to video) know nothing of levels: they are told a window's first frame, and its last
one where it is known, in their own way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.core.types import Keyframes, VideoShape
from carrara.generation.holes import filled, latent_hole
from carrara.generation.timeline import Timeline, Window
from carrara.systems.latent import ImageContext, Known, LatentVideo, Start
from carrara.systems.phases import to_unit
from carrara.systems.wan_image import given_image

Frame = Callable[[int], Tensor | None]
"""A frame of the timeline, uint8 `h w 3`, where it is known by now."""


@dataclass(frozen=True, eq=False)
class Told:
    """The arguments of `LatentVideo.sample` beside prompt, seed and sampling."""

    known: Known | None = None
    keyframes: Keyframes | None = None
    start: Start | None = None
    image: ImageContext | None = None


@torch.no_grad()
def tell(
    system: LatentVideo,
    timeline: Timeline,
    window: Window,
    frame: Frame,
    height: int,
    width: int,
    by: str = "hold",
    weight: float | None = None,
) -> Told:
    """What is known of a window when it is made. `by`: how known latents are kept; weight: of the way "guide", None for
    the system's own."""
    prefix = [_given(frame, index) for index in range(window.start, window.fresh)]
    if reads_image(system):
        last = frame(window.stop - 1)
        shape = VideoShape(window.frames, height, width)
        return Told(image=given_image(system, shape, _given(frame, window.start), last)[1])
    keyframes = _keyframes(system, window, keyframe_indices(window, frame, system.stride.time), frame)
    if timeline.source is not None:
        return _on_source(system, timeline, window, prefix, keyframes, by, weight)
    if not prefix:
        return Told(None, keyframes)
    beginning = encoded(system, torch.stack(prefix))
    stride = system.stride
    latents = beginning.new_zeros(
        1, beginning.shape[1], (window.frames - 1) // stride.time + 1, height // stride.space, width // stride.space
    )
    kept = beginning.shape[2]
    latents[:, :, :kept] = beginning
    mask = torch.zeros_like(latents[:, 0], dtype=torch.bool)
    mask[:, :kept] = True
    return Told(Known(latents, mask, by, weight), keyframes)


def reads_image(system: LatentVideo) -> bool:
    """Whether the network takes an image's channels beside the noise, and nothing else of what is known."""
    return bool(getattr(system.denoiser.config, "given_channels", 0))


def keyframe_indices(window: Window, frame: Callable[[int], object], step: int) -> list[int]:
    """Which known frames behind a window's prefix become tokens: the first of every run and each fourth after it."""
    chosen, run = [], 0
    for index in range(window.fresh, window.stop):
        run = run + 1 if frame(index) is not None else 0
        if run and (run - 1) % step == 0:
            chosen.append(index)
    return chosen


@torch.no_grad()
def encoded(system: LatentVideo, frames: Tensor) -> Tensor:
    """Frames uint8 `t h w 3`, 1 + 4k of them, as normalised latents `1 c f h w`."""
    return system.autoencoder.encode(to_unit(frames[None].to(system.device)))


def _keyframes(system: LatentVideo, window: Window, indices: list[int], frame: Frame) -> Keyframes | None:
    if not indices:
        return None
    latents = torch.cat([encoded(system, _given(frame, index)[None]) for index in indices], dim=2)
    times = torch.tensor([[(index - window.start) / system.stride.time for index in indices]], device=latents.device)
    return Keyframes(latents, times, torch.zeros_like(times))


def _on_source(
    system: LatentVideo,
    timeline: Timeline,
    window: Window,
    prefix: list[Tensor],
    keyframes: Keyframes | None,
    by: str,
    weight: float | None,
) -> Told:
    assert timeline.source is not None
    places = torch.arange(window.start, window.stop).clamp_max(len(timeline.source) - 1)  # its last frame goes on
    frames = timeline.source[places]
    hole = torch.ones(frames.shape[:3], dtype=torch.bool) if timeline.hole is None else timeline.hole[places]
    for index, pixels in enumerate(prefix):
        frames[index], hole[index] = pixels, False
    if timeline.strength == 1:
        frames = filled(frames, hole)
    latents = encoded(system, frames)
    mask = ~latent_hole(hole, system.stride)[None].to(latents.device)
    known = Known(latents, mask, by, weight) if bool(mask.any()) else None
    return Told(known, keyframes, Start(latents, timeline.strength) if timeline.strength < 1 else None)


def _given(frame: Frame, index: int) -> Tensor:
    pixels = frame(index)
    assert pixels is not None, f"frame {index} should be known by now"
    return pixels
