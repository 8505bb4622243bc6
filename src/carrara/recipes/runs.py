"""What every recipe is, and whose run a folder holds, so that no run is put into another's.

A training folder records its settings in `config.json` from its first step on; they tell whose it is, in runs of any
age.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from carrara.core.config import read_json, to_dict
from carrara.core.files import check_folder
from carrara.systems.compiling import check_compiler
from carrara.systems.make_a_video import STAGES
from carrara.training.config import TrainConfig, check_same


@dataclass(frozen=True)
class Mark:
    """How a run is known. folders: that it trains in, "" for its own; setting: recorded there by this recipe; but: one
    that is not."""

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
PHASES = ("contrastive", "prior", "image", *STAGES)  # of Make-A-Video
MARKS = {
    "clips": Mark(LATENT, "held_out"),
    "pond": Mark(LATENT, "width", but="world"),
    "phyworld": Mark(LATENT, "world"),
    "pond-distill": Mark(("denoiser",), "distillation"),
    "pond-decoder": Mark(("decoder",), "shown"),
    "pond-refiner": Mark(("refiner",), "melting"),
    "lora": Mark(("lora",), "lora"),
    "motion-features": Mark(("",), "wide_every"),
    "vdm": Mark(("base", "fine"), "base"),
    "make-a-video": Mark(PHASES, "embedder"),
}


class Recipe(ABC):
    """A whole training configuration, as a frozen dataclass. kind: what its runs are called, a key of `MARKS`."""

    kind: ClassVar[str]

    def run(self, folder: Path) -> Path:
        """Train all stages below `folder`, each from where it stopped, and return the folder of what was made.

        Raises ValueError for a folder that cannot be written to or holds the run of another recipe, and for settings
        that cannot be trained with or that what is there was not trained with; before anything is written where that
        can be known.
        """
        check_folder(folder)
        for kind, mark in MARKS.items():
            if kind != self.kind and mark.is_on(folder):
                raise ValueError(
                    f"{folder}: holds a run of {kind}, and {self.kind} was asked for; "
                    "give another folder (-o), or move this one away"
                )
        if any(config.compile for config in trainings(self)):
            check_compiler()
        return self._run(folder)

    def recorded(self) -> dict[str, Any]:
        """All settings as they are written down."""
        return to_dict(self)

    @abstractmethod
    def _run(self, folder: Path) -> Path:
        """Train below a folder that is this recipe's."""


R = TypeVar("R", bound=Recipe)


def seeded(recipe: R, seed: int) -> R:
    """The recipe with all its chance anew: weights, scenes or their order, and what every training in it draws."""
    return replace(_seeded(recipe, seed), seed=seed)


def _seeded(settings: Any, seed: int) -> Any:
    if isinstance(settings, TrainConfig):
        return replace(settings, seed=seed)
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return replace(settings, **{name: _seeded(value, seed) for name, value in values.items() if is_dataclass(value)})


def trainings(settings: Any) -> Iterator[TrainConfig]:
    """Of a recipe, or of a stage in it, how everything in it is trained."""
    if isinstance(settings, TrainConfig):
        yield settings
    elif is_dataclass(settings):
        for field in fields(settings):
            yield from trainings(getattr(settings, field.name))


def check_finished(folder: Path, config: TrainConfig, settings: Mapping[str, Any]) -> None:
    """Refuse a finished training folder of other settings (ValueError): it would be taken as it is. One that is not
    finished is refused as its training goes on."""
    path = folder / "config.json"
    if (folder / "model").is_dir() and path.is_file():
        check_same(read_json(path), {"train": to_dict(config), "recipe": dict(settings)}, folder)


def _recorded(folder: Path) -> Mapping[str, object]:
    """A training folder's settings of its recipe; none where it is no training folder."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return said if isinstance(said, dict) else {}
