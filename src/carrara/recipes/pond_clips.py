"""What the systems of pixels train on: rendered clips of the pond, and images of other scenes behind them, captioned.

Every batch is a function of its step; no scene is seen twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange

from carrara.core.types import VideoShape
from carrara.data.batches import mix as mix_seed
from carrara.data.pond.sampling import Mix
from carrara.data.pond.world import Scene
from carrara.recipes.pond_data import Captioning, PixelSource
from carrara.recipes.scene_numbers import CLIP_SCENES, IMAGES_BEHIND
from carrara.systems.stage_phase import CaptionedClips


def pond_clips(
    shape: VideoShape,
    fps: float,
    batch: int,
    images: int,
    world: Mix,
    captioning: Captioning,
    seed: int,
    device: torch.device,
    span: int = 0,
    first: int = CLIP_SCENES,
) -> Callable[[int], CaptionedClips]:
    """Batches of clips, each with `images` frames of other scenes.

    span: frames of a scene, of which a clip is a piece from anywhere; at least those of the clip.
    """
    source = PixelSource(replace(shape, frames=max(span, shape.frames)), fps, world, device)
    told = torch.tensor([captioning.short, captioning.medium, captioning.dense])

    def at(step: int) -> CaptionedClips:
        generator = torch.Generator().manual_seed(mix_seed(seed, step))

        def say(scenes: list[Scene], still: bool) -> list[str]:
            levels = torch.multinomial(told, len(scenes), replacement=True, generator=generator).tolist()
            draws = torch.rand(len(scenes), generator=generator).tolist()
            return [
                captioning.say(scene, still, level, draw, step, mix_seed(seed, step, row))
                for row, (scene, level, draw) in enumerate(zip(scenes, levels, draws))
            ]

        start = first + step * batch
        video = source.pieces(start, batch, shape.frames).video
        captions = say(source.scenes(start, batch), shape.frames == 1)
        if not images:
            return CaptionedClips(video, captions, video[:, :0], ())
        others = first + IMAGES_BEHIND + step * batch * images
        shown = rearrange(source.pieces(others, batch * images, 1).video, "(b k) 1 h w c -> b k h w c", k=images)
        return CaptionedClips(video, captions, shown, say(source.scenes(others, batch * images), True))

    return at
