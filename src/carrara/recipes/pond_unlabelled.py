"""What the stages of Make-A-Video train on: images and clips of the pond at varying rates, without a word.

Captions are never written here, so none can reach a video phase. Every batch is a function of its step.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from carrara.core.types import VideoShape
from carrara.data.batches import mix as mix_seed
from carrara.data.pond.sampling import Mix
from carrara.recipes.pond_data import PixelSource
from carrara.recipes.scene_numbers import CLIP_SCENES
from carrara.systems.unlabelled_phase import UnlabelledClips


@dataclass(frozen=True)
class Rates:
    """Frames per second that clips are shown at, from `low` to `high`, and the curriculum (Make-A-Video, section 3.3).

    Training begins with high rates, at which little moves from frame to frame; over `curriculum` steps the lowest rate
    falls from `high` to `low`. Rates are drawn evenly in their logarithm, one for a batch.
    """

    low: float = 2.0
    high: float = 30.0
    curriculum: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"low={self.low:g}, high={self.high:g}: expected 0 < low <= high")
        if self.curriculum < 0:
            raise ValueError(f"curriculum={self.curriculum}: must be at least 0")

    def lowest(self, step: int) -> float:
        """The lowest rate that a step may have."""
        done = min(1.0, step / self.curriculum) if self.curriculum else 1.0
        return self.high * (self.low / self.high) ** done

    def at(self, step: int, seed: int) -> float:
        """The rate of a step's batch."""
        lowest = self.lowest(step)
        return lowest * (self.high / lowest) ** random.Random(mix_seed(seed, step, 1)).random()


def pond_unlabelled(
    shape: VideoShape,
    rates: Rates,
    seconds: float,
    batch: int,
    world: Mix,
    seed: int,
    device: torch.device,
    first: int = CLIP_SCENES,
) -> Callable[[int], UnlabelledClips]:
    """Batches of clips without captions, each clip a piece from anywhere in the first `seconds` of its scene."""

    def at(step: int) -> UnlabelledClips:
        fps = rates.at(step, seed)
        span = max(shape.frames, round(seconds * fps) + 1)
        source = PixelSource(replace(shape, frames=span), fps, world, device)
        return UnlabelledClips(source.pieces(first + step * batch, batch, shape.frames).video, fps)

    return at
