"""Clips of other sides and durations beside the recipe's own: buckets that take turns in training.

Each shape has a cache of its own and is trained on in whole batches, with about as many tokens as a batch of the
recipe's shape (Esser et al. 2024, "Scaling Rectified Flow Transformers", sort by aspect ratio likewise). A shape of one
frame is a bucket of images. Not standard: a wide frame shows more of the pond, so there a scene lies anywhere in it
and not only in the middle, and what a square cut out of the middle loses can be measured: `crop` trains on such
squares instead (Brooks et al. 2024, "Video generation models as world simulators", compare the two).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from carrara.core.types import Stride, VideoShape
from carrara.data.batches import Turns
from carrara.data.batches import mix as mix_seed
from carrara.data.latents import LatentCache
from carrara.data.pond.render import render
from carrara.data.pond.sampling import LAYOUTS, Mix
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import Scene
from carrara.recipes.pond_data import Captioning, ImageSteps, PixelSource, latent_source
from carrara.recipes.pond_favoured import EVERY_CLIP, Favoured
from carrara.systems.phases import CaptionedLatents, PixelBatch

_TURNS = 11  # what the order of the buckets is drawn from, beside the seed


@dataclass(frozen=True)
class Buckets:
    """Which shapes are trained on beside the recipe's own.

    shapes: each as WIDTHxHEIGHTxFRAMES, such as 96x48x9, or 64x64x1 for images; share: of the steps, how many are on
    these shapes, each equally many, None for as many on each as on the recipe's own; crop: train on the square in the
    middle of each, scaled to the recipe's sides, instead; clips: how many of each are rendered and encoded once, None
    for as many as of the recipe's own.
    """

    shapes: tuple[str, ...] = ()
    share: float | None = None
    crop: bool = False
    clips: int | None = None

    def __post_init__(self) -> None:
        found = [parse_shape(text) for text in self.shapes]
        if len(set(found)) < len(found):
            raise ValueError(f"buckets.shapes={' '.join(self.shapes)}: name every shape once")
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"buckets.share={self.share}: must lie between 0 and 1; leave out shapes to train on none")
        if self.clips is not None and self.clips < 1:
            raise ValueError(f"buckets.clips={self.clips}: must be at least 1")

    def parsed(self) -> dict[str, VideoShape]:
        """The shapes by name."""
        return {text: parse_shape(text) for text in self.shapes}

    def weights(self) -> tuple[Fraction, ...]:
        """How many turns the recipe's own shape, and each of these, has for one of each of these."""
        share, count = self.share, len(self.shapes)
        own = Fraction(1) if share is None else count * (1 / Fraction(share).limit_denominator(1000) - 1)
        return (own, *(Fraction(1),) * count)

    def check(self, own: VideoShape, stride: Stride, patch: tuple[int, int, int]) -> None:
        """Refuse what the model cannot be trained on, before anything runs. Raises ValueError."""
        for text, shape in self.parsed().items():
            if shape == own:
                raise ValueError(f"buckets.shapes: {text} is the recipe's own shape, which is trained on anyway")
            try:
                self.seen(shape, own).latent(stride).tokens(patch)
            except ValueError as error:
                raise ValueError(f"buckets.shapes: {text}: {error}") from None

    def seen(self, shape: VideoShape, own: VideoShape) -> VideoShape:
        """The shape in which clips of one come to the model."""
        return replace(own, frames=shape.frames) if self.crop else shape


def parse_shape(text: str) -> VideoShape:
    """WIDTHxHEIGHTxFRAMES as a shape. Raises ValueError."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not found or min(sides := [int(side) for side in found.groups()]) < 1:
        raise ValueError(f"buckets.shapes: {text!r} is no shape; write WIDTHxHEIGHTxFRAMES, such as 96x48x9")
    width, height, frames = sides
    return VideoShape(frames, height, width)


class WideSource(PixelSource):
    """Scenes anywhere in a frame that is wider than high; those whose camera moves, or with a wall, in its middle.

    A scene says where its actors are in the wide frame, and so do captions. Motions turn at the edges of the square in
    the middle, so rendering simulates them there and looks from further left or right.
    """

    def scenes(self, first: int, count: int) -> list[Scene]:
        return [moved(scene, self._offset(scene)) for scene in super().scenes(first, count)]

    def render(self, scenes: Sequence[Scene], frames: int) -> PixelBatch:
        shape, truths = replace(self.shape, frames=frames), []
        middle = [moved(scene, -self._offset(scene)) for scene in scenes]
        for scene, where in zip(middle, scenes):
            truth = simulate(scene, frames, self.fps, shape.width / shape.height)
            camera = truth.camera.copy()
            camera[:, 0] -= self._offset(where)
            truths.append(replace(truth, camera=camera))
        rendered = render(middle, shape, self.fps, self.device, truths)
        return PixelBatch(rendered.video, rendered.mask)

    def _offset(self, scene: Scene) -> float:
        """How far to the right of the middle a scene lies, by its arrangement of the background, which moving keeps."""
        room = max(0.0, self.shape.width / self.shape.height - 1) / 2
        if scene.camera != "still" or scene.wall:
            return 0.0
        return room * (2 * (mix_seed(scene.layout) % LAYOUTS) / (LAYOUTS - 1) - 1)


class SquareSource(WideSource):
    """As `WideSource`, of which the square in the middle is kept, scaled to these sides: what crops make of clips."""

    def __init__(self, shape: VideoShape, fps: float, world: Mix, device: torch.device, seen: VideoShape) -> None:
        super().__init__(shape, fps, world, device)
        self.seen = seen

    def render(self, scenes: Sequence[Scene], frames: int) -> PixelBatch:
        whole = super().render(scenes, frames)
        return PixelBatch(self._squares(whole.video), self._squares(whole.actors[..., None], "nearest")[..., 0])

    def _squares(self, video: Tensor, mode: str = "bilinear") -> Tensor:
        height, width = video.shape[2:4]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = video[:, :, top : top + side, left : left + side]
        pixels = rearrange(square, "b t h w c -> (b t) c h w").float()
        if mode == "bilinear":
            pixels = interpolate(pixels, (self.seen.height, self.seen.width), mode=mode, antialias=True)
        else:
            pixels = interpolate(pixels, (self.seen.height, self.seen.width), mode=mode)
        return rearrange(pixels.round().to(torch.uint8), "(b t) c h w -> b t h w c", b=len(video))


def moved(scene: Scene, offset: float) -> Scene:
    """The scene with its actors further right."""
    return replace(scene, actors=tuple(replace(actor, x=actor.x + offset) for actor in scene.actors))


def bucket_source(
    shape: VideoShape, own: VideoShape, buckets: Buckets, fps: float, world: Mix, device: torch.device
) -> PixelSource:
    """Clips of one bucket."""
    if buckets.crop:
        return SquareSource(shape, fps, world, device, own)
    return WideSource(shape, fps, world, device)


def bucket_batch(batch: int, own: VideoShape, shape: VideoShape, stride: Stride) -> int:
    """How many clips of a shape have about as many tokens as `batch` of the recipe's own; at least one."""
    tokens = [prod(vars(one.latent(stride)).values()) for one in (own, shape)]
    return max(1, round(batch * tokens[0] / tokens[1]))


def taking_turns(
    caches: Sequence[LatentCache],
    batches: Sequence[int],
    weights: Sequence[Fraction],
    captioning: Captioning,
    seed: int,
    images: ImageSteps,
    favoured: Favoured = EVERY_CLIP,
) -> Callable[[int], CaptionedLatents]:
    """Batches of several caches in turns, in an order drawn from the seed.

    batches: how many clips of each a step takes; weights: how often each has its turn; favoured: which clips of each
    are drawn more often. Captions follow the step, clips how often their cache was visited.
    """
    sources = [
        latent_source(cache, size, captioning, seed, images, favoured=favoured) for cache, size in zip(caches, batches)
    ]
    turns = Turns(tuple(weights), mix_seed(seed, _TURNS))

    def at(step: int) -> CaptionedLatents:
        number, before = turns.at(step)
        return sources[number](step, before)

    return at
