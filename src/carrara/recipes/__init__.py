"""Recipes: functions that return a whole training configuration, one per published run.

Each is a frozen dataclass with `run(folder)` (`runs.py`); `carrara train NAME --setting value` changes single settings.
"""

from __future__ import annotations

from collections.abc import Callable

from carrara.recipes.clips import clips, clips_tiny
from carrara.recipes.clips_autoencoder import clips_autoencoder
from carrara.recipes.lora import lora
from carrara.recipes.make_a_video import make_a_video, make_a_video_tiny
from carrara.recipes.motion_features import motion_features
from carrara.recipes.phyworld import phyworld, phyworld_tiny
from carrara.recipes.pond import pond, pond_128, pond_tiny
from carrara.recipes.pond_decoder import pond_decoder
from carrara.recipes.pond_distill import pond_distill
from carrara.recipes.pond_refiner import pond_refiner, pond_refiner_adversarial
from carrara.recipes.runs import Recipe
from carrara.recipes.vdm import vdm, vdm_tiny

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
    "pond-refiner": pond_refiner,
    "pond-refiner-adversarial": pond_refiner_adversarial,
    "motion-features": motion_features,
    "phyworld": phyworld,
    "phyworld-tiny": phyworld_tiny,
    "vdm": vdm,
    "vdm-tiny": vdm_tiny,
    "make-a-video": make_a_video,
    "make-a-video-tiny": make_a_video_tiny,
}
