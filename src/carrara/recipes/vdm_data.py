"""What a stage of a VDM is trained on: captioned clips with images behind them, of the pond or of a prepared folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from carrara.recipes.pond import PICTURED
from carrara.recipes.pond_clips import pond_clips
from carrara.recipes.prepared_clips import PreparedClips, captioned_clips, validation_clips
from carrara.recipes.scene_numbers import CLIP_VALIDATION_SCENES, clips_of_seed
from carrara.systems.stage_phase import CaptionedClips

if TYPE_CHECKING:
    from carrara.recipes.vdm import VDMRecipe


@dataclass(frozen=True, eq=False)
class StageData:
    """batch: clips of a step; validation: fixed ones; pictured: prompts of the pictures."""

    batch: Callable[[int], CaptionedClips]
    validation: CaptionedClips
    pictured: Sequence[str]


def pond_data(recipe: VDMRecipe, stage: str, device: torch.device) -> StageData:
    """Rendered clips."""
    plan = recipe.plan(stage)

    def clips(batch: int, images: int, seed: int, first: int) -> Callable[[int], CaptionedClips]:
        about = (recipe.mix, recipe.captioning, seed, device, plan.span, first)
        return pond_clips(plan.shape, plan.fps, batch, images, *about)

    return StageData(
        clips(plan.batch, plan.images, recipe.seed, clips_of_seed(recipe.seed)),
        clips(plan.validation, 0, 0, CLIP_VALIDATION_SCENES)(0),
        PICTURED,
    )


def prepared_data(recipe: VDMRecipe, stage: str, clips: PreparedClips) -> StageData:
    """Clips of a folder; what has no caption has the null caption."""
    plan, wanted = recipe.plan(stage), recipe.wanted(stage)
    said = clips.captions(clips.trained(replace(wanted, captioned=True)))
    numbers = clips.trained(wanted, plan.batch)
    return StageData(
        captioned_clips(clips, wanted, numbers, plan.batch, plan.images, recipe.seed),
        validation_clips(clips, wanted, plan.validation),
        list(dict.fromkeys(said))[: len(PICTURED)],
    )
