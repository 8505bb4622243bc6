"""Recipes: functions that return a whole training configuration, one per published run.

Each recipe is a frozen dataclass with `run(folder)`; `carrara train NAME --setting value` changes single settings.
"""

from __future__ import annotations

from collections.abc import Callable

from carrara.recipes.clips import ClipsRecipe, clips, clips_tiny
from carrara.recipes.clips_autoencoder import ClipsAutoencoderRecipe, clips_autoencoder
from carrara.recipes.lora import LoRARecipe, lora
from carrara.recipes.make_a_video import MakeAVideoRecipe, make_a_video, make_a_video_tiny
from carrara.recipes.motion_features import MotionRecipe, motion_features
from carrara.recipes.phyworld import phyworld, phyworld_tiny
from carrara.recipes.pond import PondRecipe, pond, pond_128, pond_tiny
from carrara.recipes.pond_decoder import DecoderRecipe, pond_decoder
from carrara.recipes.pond_distill import DistillRecipe, pond_distill
from carrara.recipes.vdm import VDMRecipe, vdm, vdm_tiny

Recipe = (
    ClipsRecipe
    | ClipsAutoencoderRecipe
    | LoRARecipe
    | PondRecipe
    | DecoderRecipe
    | DistillRecipe
    | MotionRecipe
    | VDMRecipe
    | MakeAVideoRecipe
)
RECIPES: dict[str, Callable[[], Recipe]] = {
    "clips": clips,
    "clips-tiny": clips_tiny,
    "clips-autoencoder": clips_autoencoder,
    "lora": lora,
    "pond": pond,
    "pond-128": pond_128,
    "pond-tiny": pond_tiny,
    "pond-decoder": pond_decoder,
    "pond-distill": pond_distill,
    "motion-features": motion_features,
    "phyworld": phyworld,
    "phyworld-tiny": phyworld_tiny,
    "vdm": vdm,
    "vdm-tiny": vdm_tiny,
    "make-a-video": make_a_video,
    "make-a-video-tiny": make_a_video_tiny,
}
