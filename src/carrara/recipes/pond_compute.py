"""What the two stages of a latent model take, counted: their steps are of several kinds, and not all cost the same.

What is done with finished stages alone, such as encoding clips for the cache, is not counted: no weight learns by it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from carrara.autoencoders.inflation import image_config
from carrara.autoencoders.video import VideoAutoencoder
from carrara.core.config import write_json
from carrara.recipes.compute import COMPUTE, Cost, steps_of
from carrara.recipes.pond_autoencoder import AutoencoderStage
from carrara.recipes.pond_data import ClipSource
from carrara.recipes.scene_numbers import AUTOENCODER_SCENES, IMAGE_SCENES
from carrara.systems.phases import AutoencoderPhase, CaptionedLatents, DenoiserPhase, PixelBatch
from carrara.systems.step_flops import loss_flops

DRAWS = 16  # of what a step's clips have known of them, over which the cost of a step is a mean


def count_denoiser(
    phase: DenoiserPhase, one: Callable[[int], CaptionedLatents], batch: int, alone: Callable[[int], bool]
) -> Cost:
    """FLOP of the steps on clips and on single frames. one: batches of one clip; alone: of the steps."""

    def counted(step: int, draws: int) -> int:
        each = [loss_flops(phase, one(step), step, seed) for seed in range(draws)]
        return batch * round(sum(each) / draws)

    def first(still: bool) -> int | None:
        return next((step for step in range(100_000) if alone(step) == still), None)

    clips, stills = first(False), first(True)
    if clips is None:  # a training on images alone
        assert stills is not None
        return Cost(counted(stills, 1))
    return Cost(counted(clips, DRAWS), 0 if stills is None else counted(stills, 1), None if stills is None else alone)


def count_autoencoder(folder: Path, stage: AutoencoderStage, source: ClipSource, seed: int) -> None:
    """Write `compute.json` of a finished autoencoder: of its steps on clips, and of the image model before them."""
    parts = [_counted(folder, VideoAutoencoder(stage.model), stage, source, seed, images=False)]
    if (folder / "images").is_dir():
        image = VideoAutoencoder(image_config(stage.model))
        parts.append(_counted(folder / "images", image, stage, source, seed, images=True))
    write_json(folder / COMPUTE, {"stages": parts, "flops": sum(part["flops"] for part in parts)})


def _counted(
    folder: Path, model: VideoAutoencoder, stage: AutoencoderStage, source: ClipSource, seed: int, images: bool
) -> dict[str, Any]:
    """Steps come in a fixed round of kinds, each of which is counted on its first clip or window."""
    batches = stage.of(source, seed, IMAGE_SCENES if images else AUTOENCODER_SCENES, images)
    first = batches(0)
    phase = AutoencoderPhase(model.to(first.video.device), batches, first, stage.loss)
    steps, kinds, costs = steps_of(folder), dict[torch.Size, int](), list[int]()
    for step in range(min(steps, 4 * max(1, stage.image_every))):
        pixels = batches(step)
        one = PixelBatch(pixels.video[:1], pixels.actors[:1])
        if one.video.shape not in kinds:
            kinds[one.video.shape] = loss_flops(phase, one)
        costs.append(kinds[one.video.shape] * len(pixels.video))
    rounds, rest = divmod(steps, len(costs))
    flops = rounds * sum(costs) + sum(costs[:rest])
    return {"stage": "autoencoder of images" if images else "autoencoder", "steps": steps, "flops": flops}
