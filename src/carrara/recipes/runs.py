"""Which recipe a folder holds a run of, so that no run is put into another's.

A training folder records its settings in `config.json` from its first step on; they tell whose it is, in runs of any
age.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from carrara.recipes import Recipe
from carrara.recipes.clips import ClipsRecipe
from carrara.recipes.clips_autoencoder import ClipsAutoencoderRecipe
from carrara.recipes.lora import LoRARecipe
from carrara.recipes.make_a_video import PHASES, MakeAVideoRecipe
from carrara.recipes.motion_features import MotionRecipe
from carrara.recipes.phyworld import PhyWorldRecipe
from carrara.recipes.pond import PondRecipe
from carrara.recipes.pond_decoder import DecoderRecipe
from carrara.recipes.pond_distill import DistillRecipe
from carrara.recipes.vdm import VDMRecipe


@dataclass(frozen=True)
class Mark:
    """How a run is known. recipe: what it is called; folders: that it trains in, "" for its own; setting: recorded
    there by this recipe; but: one that is not."""

    recipe: str
    folders: tuple[str, ...]
    setting: str
    but: str = ""

    def is_on(self, run: Path) -> bool:
        """Whether the folder holds such a run, finished or not."""
        return any(
            self.setting in (said := _recorded(run / name)) and (not self.but or self.but not in said)
            for name in self.folders
        )


LATENT = ("autoencoder", "denoiser")
CLIPS = Mark("clips", LATENT, "held_out")
MARKS: Mapping[type[Recipe], Mark] = {
    ClipsRecipe: CLIPS,
    ClipsAutoencoderRecipe: CLIPS,  # the same first stage, which `clips` goes on from
    PondRecipe: Mark("pond", LATENT, "width", but="world"),
    PhyWorldRecipe: Mark("phyworld", LATENT, "world"),
    DistillRecipe: Mark("pond-distill", ("denoiser",), "distillation"),
    DecoderRecipe: Mark("pond-decoder", ("decoder",), "shown"),
    LoRARecipe: Mark("lora", ("lora",), "lora"),
    MotionRecipe: Mark("motion-features", ("",), "wide_every"),
    VDMRecipe: Mark("vdm", ("base", "fine"), "base"),
    MakeAVideoRecipe: Mark("make-a-video", PHASES, "embedder"),
}


def check_run(folder: Path, name: str, recipe: Recipe) -> None:
    """Refuse to train a recipe, which goes by this name, where the run of another one is. Raises ValueError."""
    asked = MARKS[type(recipe)]
    for mark in MARKS.values():
        if mark != asked and mark.is_on(folder):
            raise ValueError(
                f"{folder}: holds a run of {mark.recipe}, and {name} was asked for; "
                "give another folder with -o, or move this one away"
            )


def _recorded(folder: Path) -> Mapping[str, object]:
    """A training folder's settings of its recipe; none where it is no training folder."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return said if isinstance(said, dict) else {}
