"""What the pond's recipes train on: rendered pixels, encoded clips, captions. All of it a function of scene numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from carrara.autoencoders.video import VideoAutoencoder
from carrara.core.config import at_least, from_dict, to_dict
from carrara.core.types import VideoShape
from carrara.data.batches import indices, mix
from carrara.data.latents import LatentBatch, LatentCache, write_latents
from carrara.data.pond.captions import caption, vocabulary
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.world import Scene
from carrara.recipes.pond_favoured import EVERY_CLIP, Favoured
from carrara.recipes.pond_truth import TruthTable
from carrara.systems.phases import CaptionedLatents, PixelBatch, to_unit
from carrara.text.tokenizer import Tokenizer, train_tokenizer
from carrara.training.process import keep_freed_memory

KEYFRAMES = 4  # of every cached clip
ENCODE_BATCH = 32


class ClipSource(Protocol):
    """Clips by number: scenes of any world (dataclasses), and their pixels at `shape` and `fps`."""

    shape: VideoShape
    fps: float

    @property
    def world(self) -> Any: ...

    def scenes(self, first: int, count: int) -> list[Any]: ...

    def render(self, scenes: Sequence[Any], frames: int) -> PixelBatch: ...

    def batch(self, first: int, count: int) -> PixelBatch: ...

    def pieces(self, first: int, count: int, frames: int) -> PixelBatch: ...


class LatentSource(Protocol):
    """Batches of a cache as a function of the step; visit: how many batches were taken from it before, if fewer."""

    def __call__(self, step: int, visit: int | None = None) -> CaptionedLatents: ...


@dataclass(frozen=True)
class Captioning:
    """How scenes are told during training.

    short, medium, dense: shares of the levels of detail; synonyms: share of captions in other words than the canonical
    ones, from step `synonyms_from` on.
    """

    short: float = 0.5
    medium: float = 0.25
    dense: float = 0.25
    synonyms: float = 0.5
    synonyms_from: int = 400

    def say(self, scene: Scene, still: bool, level: int, draw: float, step: int, seed: int) -> str:
        """A caption of the scene, or of a picture of it (`still`): level 0 is short, 1 medium, 2 dense; draw, a number
        in [0, 1), decides whether synonyms may be used at this step."""
        told_as = replace(scene, still=True) if still else scene
        plain = step < self.synonyms_from or draw >= self.synonyms
        return caption(told_as, ("short", "medium", "dense")[level], seed, plain).text


@dataclass(frozen=True)
class ImageSteps:
    """Which training steps are on single frames: the `first` ones and a `share` of the rest.

    A frame costs a transformer far less than a clip and shows it colours, shapes and places as well, so such a step
    takes `clips` times as many clips as a batch has, and of each `per_clip` frames: of its beginning and its keyframes,
    any ones.
    """

    first: int = 0
    share: float = 0.05
    clips: int = 1
    per_clip: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"images.share={self.share}: expected a share in [0, 1]; 0.05 is usual")
        at_least(self, 0, "first")
        at_least(self, 1, "clips", "per_clip")
        if self.per_clip > 1 + KEYFRAMES:
            raise ValueError(f"images.per_clip={self.per_clip}: a cached clip has {1 + KEYFRAMES} frames encoded alone")

    def alone(self, step: int, generator: torch.Generator) -> bool:
        """Whether a step is on single frames, by the step's own generator."""
        return step < self.first or float(torch.rand((), generator=generator)) < self.share


NO_IMAGES = ImageSteps(share=0)


class PixelSource:
    """Rendered clips by scene number."""

    def __init__(self, shape: VideoShape, fps: float, world: Mix, device: torch.device) -> None:
        self.shape, self.fps, self.world, self.device = shape, fps, world, device

    def scenes(self, first: int, count: int) -> list[Scene]:
        return [sample_scene(number, self.world) for number in range(first, first + count)]

    def batch(self, first: int, count: int) -> PixelBatch:
        """Clips of the scenes first..first+count-1."""
        return self.render(self.scenes(first, count), self.shape.frames)

    def pieces(self, first: int, count: int, frames: int) -> PixelBatch:
        """So many frames of each scene's clip, from anywhere in it."""
        rest = (self.shape.frames - frames) / self.fps
        scenes = [
            replace(scene, start=scene.start + rest * (mix(first + index) % 997) / 996)
            for index, scene in enumerate(self.scenes(first, count))
        ]
        return self.render(scenes, frames)

    def render(self, scenes: Sequence[Scene], frames: int) -> PixelBatch:
        """So many frames of each scene, from its start."""
        rendered = render(scenes, replace(self.shape, frames=frames), self.fps, self.device)
        return PixelBatch(rendered.video, rendered.mask)


def actor_crops(clips: PixelBatch, size: int, per_clip: int, generator: torch.Generator) -> PixelBatch:
    """Square windows of `size` pixels through all frames, each around a place where an actor is seen at some time.

    Actors cover a twentieth of a frame; windows around them show an autoencoder more of what is hard in equal time.
    """
    count, _, height, width = clips.actors.shape
    if size > min(height, width):
        raise ValueError(f"crop={size}: larger than the {width}x{height} frames; use at most {min(height, width)}")
    videos, actors = [], []
    for clip in range(count):
        seen = (clips.actors[clip] > 0).nonzero()
        for _ in range(per_clip):
            top, left = window_corner(seen, size, height, width, generator)
            window = (slice(None), slice(top, top + size), slice(left, left + size))
            videos.append(clips.video[clip][window])
            actors.append(clips.actors[clip][window])
    return PixelBatch(torch.stack(videos), torch.stack(actors))


def window_corner(seen: Tensor, size: int, height: int, width: int, generator: torch.Generator) -> tuple[int, int]:
    """The top and left of a window of `size` pixels around one of the places `(n, 3)`, by frame, row and column, where
    actors are seen; around the middle where there is none."""
    jitter = torch.randint(-size // 4, size // 4 + 1, (2,), generator=generator)
    pick = int(torch.randint(max(1, len(seen)), (), generator=generator))
    centre = seen[pick, 1:].cpu() if len(seen) else torch.tensor([height // 2, width // 2])
    corner = centre + jitter - size // 2
    return int(corner[0].clamp(0, height - size)), int(corner[1].clamp(0, width - size))


def train_pond_tokenizer() -> Tokenizer:
    """A tokenizer that has every word of the pond's captions as one token."""
    return train_tokenizer(vocabulary())


def encode_clips(
    folder: Path,
    source: ClipSource,
    encoder: Callable[[], VideoAutoencoder],
    first: int,
    count: int,
    made_by: str,
    shard: int,
) -> None:
    """Render scenes and keep their latents, the scenes, and some keyframes of each clip: any ones, and the last.

    encoder: asked for the autoencoder where a shard is missing, and not otherwise.
    """

    @torch.no_grad()
    def produce(start: int, stop: int) -> Iterator[LatentBatch]:
        autoencoder = encoder()
        keep_freed_memory()
        for at in range(start, stop, ENCODE_BATCH):
            numbers = range(first + at, first + min(at + ENCODE_BATCH, stop))
            scenes = source.scenes(numbers.start, len(numbers))
            pixels = source.render(scenes, source.shape.frames)
            video = to_unit(pixels.video)
            frames = torch.tensor([_some_frames(number, source.shape.frames) for number in numbers])
            with torch.autocast(video.device.type, torch.bfloat16):
                latents = autoencoder.encode(video)
                single = autoencoder.encode(_pick(video, frames.to(video.device)))
            yield LatentBatch(
                latents,
                [{"scene": to_dict(scene)} for scene in scenes],
                rearrange(single, "(b k) c 1 h w -> b k c h w", k=frames.shape[1]),
                frames,
            )

    shape = source.shape
    about = {
        "frames": shape.frames,
        "height": shape.height,
        "width": shape.width,
        "fps": source.fps,
        "first": first,
        "keyframes": KEYFRAMES,
    }
    write_latents(
        folder,
        produce,
        count,
        made_by,
        shard,
        torch.float16,
        {**about, "world": to_dict(source.world)},
        _report(folder),
    )


def latent_source(
    cache: LatentCache,
    batch: int,
    captioning: Captioning,
    seed: int,
    images: ImageSteps = NO_IMAGES,
    truth: TruthTable | None = None,
    favoured: Favoured = EVERY_CLIP,
) -> LatentSource:
    """Batches of a cache as a function of the step; captions are drawn anew for every visit of a clip.

    A cache of clips of one frame gives single frames at every step. truth: what the cache's clips show, to be part of
    the batches; favoured: which clips are drawn more often.
    """
    told, stride = torch.tensor([captioning.short, captioning.medium, captioning.dense]), frames_per_latent(cache)
    places = favoured.places(cache)

    def at(step: int, visit: int | None = None) -> CaptionedLatents:
        generator = torch.Generator().manual_seed(mix(seed, step))
        alone = images.alone(step, generator) or cache.shape[1] == 1
        # Clips and images are visited in orders of their own, so that neither skips what the other sees.
        visits = (batch * images.clips, mix(seed, 1)) if alone else (batch, seed)
        chosen = places[indices(step if visit is None else visit, visits[0], len(places), visits[1])]
        clips = cache[chosen]
        assert clips.keyframes is not None
        assert clips.frames is not None
        each = min(images.per_clip, 1 + cache.keyframes) if alone else 1
        draws = torch.rand(len(chosen), each, generator=generator).tolist()
        levels = torch.multinomial(told, len(chosen) * each, replacement=True, generator=generator).tolist()
        captions = []
        for row, record in enumerate(clips.records):
            scene = from_dict(Scene, record["scene"], "scene")
            for index, draw in enumerate(draws[row]):
                number = row * each + index
                captions.append(captioning.say(scene, alone, levels[number], draw, step, mix(seed, step, number)))
        if alone:
            latents, frames = _stills(clips, each, generator)
            content = truth.stills(chosen, frames) if truth else None
            nothing = latents.new_empty(len(latents), latents.shape[1], 0, *latents.shape[3:])
            return CaptionedLatents(latents, captions, nothing, torch.empty(len(latents), 0), content)
        keyframes = rearrange(clips.keyframes, "b k c h w -> b c k h w")
        content = truth(chosen) if truth else None
        return CaptionedLatents(clips.latents, captions, keyframes, clips.frames.float() / stride, content)

    return at


def _stills(clips: LatentBatch, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`each` single frames of every clip, `(b each) c 1 h w`, and which they are, `(b, each)`."""
    assert clips.keyframes is not None
    assert clips.frames is not None
    alone = torch.cat([rearrange(clips.latents[:, :, :1], "b c 1 h w -> b 1 c h w"), clips.keyframes], dim=1)
    numbers = torch.cat([torch.zeros_like(clips.frames[:, :1]), clips.frames], dim=1)
    order = torch.rand(alone.shape[:2], generator=generator).argsort(dim=1)[:, :each]
    rows = torch.arange(len(alone))[:, None]
    return rearrange(alone[rows, order], "b e c h w -> (b e) c 1 h w"), numbers[rows, order]


def frames_per_latent(cache: LatentCache) -> float:
    """How many pixel frames a latent frame behind the first stands for, by what the cache says of its clips."""
    return (cache.about["frames"] - 1) / max(1, cache.shape[1] - 1)


def _some_frames(number: int, frames: int) -> list[int]:
    """Which frames of this scene's clip are encoded alone: different ones behind the first, and the last; the same at
    every run."""
    between = list(range(1, frames - 1))
    random.Random(mix(number)).shuffle(between)
    return [*between[: KEYFRAMES - 1], frames - 1]


def _pick(video: Tensor, frames: Tensor) -> Tensor:
    """Frames `(b, k)` of clips `b c t h w` as one-frame clips `(b k) c 1 h w`."""
    rows = torch.arange(len(video), device=video.device)[:, None]
    return rearrange(video.transpose(1, 2)[rows, frames], "b k c h w -> (b k) c 1 h w")


def _report(folder: Path) -> Callable[[int, int], None]:
    def report(done: int, count: int) -> None:
        print(f"{folder.name}: {done} of {count} clips encoded", flush=True)

    return report
