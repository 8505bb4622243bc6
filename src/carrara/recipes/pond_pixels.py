"""What an autoencoder is shown of the pond, step by step: whole clips, windows around actors, single frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from carrara.core.config import at_least
from carrara.data.batches import mix as mix_seed
from carrara.recipes.pond_data import ClipSource, actor_crops
from carrara.systems.phases import PixelBatch


@dataclass(frozen=True, kw_only=True)
class PixelBatches:
    """Batches of pixels as a function of the step.

    batch: whole clips in a step; image_batch: single frames in a step on these; image_every: every so many steps is
    one, or space is forgotten (0: none); crop: side in pixels of windows around actors, 0 for none. With windows, of
    four steps one is on whole clips, one on `crop_batch` windows of all frames, two on `piece_batch` windows of
    `piece_frames`: equal work shows more that differs. per_clip: windows from each rendered clip. Without windows,
    every other step is on `piece_batch` pieces of `piece_frames`, where clips are longer than that.
    """

    batch: int = 8
    crop: int = 0
    crop_batch: int = 8
    piece_batch: int = 24
    piece_frames: int = 9
    per_clip: int = 2
    image_batch: int = 64
    image_every: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "batch", "crop_batch", "piece_batch", "piece_frames", "per_clip", "image_batch")
        at_least(self, 0, "crop", "image_every")

    def of(self, source: ClipSource, seed: int, first: int, images: bool = False) -> Callable[[int], PixelBatch]:
        """The batch of a step, of scenes from number `first` on that no other step is shown; images: only of them."""
        stride = max(self.batch, self.crop_batch, self.piece_batch, self.image_batch)

        def at(step: int) -> PixelBatch:
            scene = first + step * stride
            every = self.image_every
            turn = step - step // every if every and not images else step  # steps on images in between do not count
            single = images or (every > 0 and step % every == 0)
            if not self.crop:
                if single:
                    return source.pieces(scene, self.image_batch, 1)
                if turn % 2 or source.shape.frames <= self.piece_frames:
                    return source.batch(scene, self.batch)
                return source.pieces(scene, self.piece_batch, self.piece_frames)
            if turn % 4 == 3 and (images or not single):
                return (
                    source.pieces(scene, max(1, self.image_batch // 4), 1)
                    if images
                    else source.batch(scene, self.batch)
                )
            if single:
                clips = source.pieces(scene, max(1, self.image_batch // self.per_clip), 1)
            elif turn % 4 == 1:
                clips = source.batch(scene, self.crop_batch // self.per_clip)
            else:
                clips = source.pieces(scene, self.piece_batch // self.per_clip, self.piece_frames)
            return actor_crops(clips, self.crop, self.per_clip, torch.Generator().manual_seed(mix_seed(seed, step)))

        return at
