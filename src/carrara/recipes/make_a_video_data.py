"""What a phase of Make-A-Video is trained on: captioned images, or images and clips without a word; of the pond, or of
a prepared folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from carrara.recipes.pond_clips import pond_clips
from carrara.recipes.pond_unlabelled import Rates, pond_unlabelled
from carrara.recipes.prepared_clips import PreparedClips, captioned_clips, validation_clips
from carrara.recipes.prepared_unlabelled import prepared_unlabelled, unlabelled_validation
from carrara.recipes.scene_numbers import CLIP_VALIDATION_SCENES, IMAGES_APART, clips_of_seed
from carrara.systems.stage_phase import CaptionedClips
from carrara.systems.unlabelled_phase import UnlabelledClips

if TYPE_CHECKING:
    from carrara.recipes.make_a_video import MakeAVideoRecipe

READERS = ("contrastive", "prior")
"""The phases that read captions."""
OF_CAPTIONED = (*READERS, "image")
"""Those that learn from captioned images; `image` is not told what the captions say."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """Captioned images. batch: of a step; validation: fixed ones."""

    batch: Callable[[int], CaptionedClips]
    validation: CaptionedClips


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images or clips without captions. batch: of a step; validation: fixed ones."""

    batch: Callable[[int], UnlabelledClips]
    validation: UnlabelledClips


def captioned_images(
    recipe: MakeAVideoRecipe, name: str, device: torch.device, clips: PreparedClips | None
) -> Captioned:
    """What the contrastive encoder and the prior learn from."""
    plan, wanted = recipe.plan(name), recipe.wanted(name)
    if clips:
        learn = captioned_clips(clips, wanted, clips.trained(wanted, plan.batch), plan.batch, 0, recipe.seed)
        return Captioned(learn, validation_clips(clips, wanted, plan.validation))

    def pond(batch: int, seed: int, first: int) -> Callable[[int], CaptionedClips]:
        about = (recipe.mix, recipe.captioning, seed, device, round(8 * recipe.seconds) + 1, first)
        return pond_clips(wanted.shape, 8.0, batch, 0, *about)

    return Captioned(
        pond(plan.batch, recipe.seed, clips_of_seed(recipe.seed) + IMAGES_APART),
        pond(plan.validation, 0, CLIP_VALIDATION_SCENES + IMAGES_APART)(0),
    )


def unlabelled_clips(
    recipe: MakeAVideoRecipe, name: str, device: torch.device, clips: PreparedClips | None
) -> Unlabelled:
    """What all other phases learn from."""
    plan, wanted = recipe.plan(name), recipe.wanted(name)
    if clips:
        numbers = clips.trained(wanted, plan.batch)
        return Unlabelled(
            prepared_unlabelled(clips, wanted, numbers, recipe.rates, plan.batch, recipe.seed),
            unlabelled_validation(clips, wanted, plan.validation),
        )

    def pond(rates: Rates, batch: int, seed: int, first: int) -> Callable[[int], UnlabelledClips]:
        return pond_unlabelled(wanted.shape, rates, recipe.seconds, batch, recipe.mix, seed, device, first)

    return Unlabelled(
        pond(recipe.rates, plan.batch, recipe.seed, clips_of_seed(recipe.seed)),
        pond(Rates(wanted.fps, wanted.fps, 0), plan.validation, 0, CLIP_VALIDATION_SCENES)(0),
    )
