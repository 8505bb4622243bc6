"""A refiner for a finished model of the pond, which draws its clips again as their prompts say.

    carrara train pond-refiner --model runs/pond/denoiser/model -o runs/pond-refiner

The model stays as it is; the whole folder, with the refiner in it, ends up in `runs/pond-refiner/refiner/model`. A
model whose text encoder learned on needs another refiner, for it reads what that encoder says. What is melted is
simulated (`data/pond/melting.py`), and with `--own.clips` the model's own clips besides (`own_clips.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from carrara.core.config import at_least, to_dict
from carrara.core.types import VideoShape
from carrara.core.weights import same_weights
from carrara.data.pond.melting import Melting
from carrara.data.pond.sampling import Mix
from carrara.recipes.device import chosen_device
from carrara.recipes.own_clips import OwnClips, OwnShards, make_own
from carrara.recipes.pond_data import Captioning
from carrara.recipes.pond_refiner_data import MeltedBatches, MeltedSource, batch_of, own_of
from carrara.recipes.runs import Recipe
from carrara.recipes.scene_numbers import OWN_SCENES, VALIDATION_SCENES
from carrara.systems.find import find_model
from carrara.systems.latent import LatentVideo
from carrara.systems.refiner import Refiner, RefinerConfig, unet_of
from carrara.systems.refiner_adversary import Adversary
from carrara.systems.refiner_phase import RefinerLoss, RefinerPhase
from carrara.training.config import TrainConfig
from carrara.training.loop import train
from carrara.training.parallel import alone_first


@dataclass(frozen=True)
class RefinerRecipe(Recipe):
    """Everything that decides the refiner, beside the model that it is for.

    model: a bundled model or a model folder, whose refiner, where it has one, learns on; dim, multipliers, fold: of the
    refiner's network; numbered: after how many frames their numbers, which it is told, begin again, 0 to tell it none,
    None for what it was told before (at 8 frames per second what spins comes round in 16);
    mix, captioning: which scenes it sees, and how they are told; own: clips of the model itself that it sees beside
    simulated ones; teacher: a model of the same text encoder, whose refiner, a larger one, is learned from instead of
    what the clips should have been; adversary: what tells it that a clip does not look right; validation: clips of the
    fixed validation batch, which are the model's own where `own` has any.
    device: "cpu", "cuda" or "auto".
    """

    train: TrainConfig
    model: str = "runs/pond/denoiser/model"
    dim: int = 32
    multipliers: tuple[int, ...] = (1, 2, 3)
    fold: int = 2
    numbered: int | None = None
    loss: RefinerLoss = field(default_factory=RefinerLoss)
    melting: Melting = field(default_factory=Melting)
    mix: Mix = field(default_factory=lambda: Mix(two=0.3, camera=0.2, wall=0.05))
    captioning: Captioning = field(default_factory=lambda: Captioning(synonyms_from=0))
    shown: MeltedBatches = field(default_factory=MeltedBatches)
    own: OwnClips = field(default_factory=OwnClips)
    teacher: str | None = None
    adversary: Adversary = field(default_factory=Adversary)
    validation: int = 24
    seed: int = 0
    device: str = "auto"

    kind = "pond-refiner"

    def __post_init__(self) -> None:
        at_least(self, 1, "validation")
        if self.numbered is not None:
            at_least(self, 0, "numbered")

    def _run(self, folder: Path) -> Path:
        settings, phase = to_dict(self), self.phase(folder)
        names = ("dim", "multipliers", "fold", "loss", "melting", "mix", "captioning", "shown", "own", "seed")
        kept = {name: settings[name] for name in names}
        kept |= {} if self.numbered is None else {"numbered": self.numbered}
        kept |= {} if self.teacher is None else {"teacher": self.teacher}
        kept |= {"adversary": settings["adversary"]} if self.adversary.weight else {}
        return train(phase, self.train, folder / "refiner", {**kept, "model": phase.system.fingerprint})

    def phase(self, folder: Path) -> RefinerPhase:
        """What is trained; `folder` is where clips of the model itself are kept, made now if there are too few. Raises
        ValueError for a model that a refiner of these sizes does not fit."""
        system = LatentVideo.load(find_model(self.model), torch.float32)
        device = torch.device(chosen_device(self.device))
        unet = unet_of(system.text_encoder.config.d_model, self.fold, self.dim, self.multipliers)
        told = system.refiner.config.numbered if system.refiner is not None and self.numbered is None else self.numbered
        config = RefinerConfig(unet, self.fold, told or 0)
        if system.refiner is None:
            system.refiner = Refiner(config)
            system.refiner.init_weights(self.seed)
        elif replace(system.refiner.config, numbered=config.numbered) == config:
            system.refiner.config = config
        else:
            raise ValueError(
                f"{self.model}: has a refiner of other sizes; give those, or a model without one (its folder less "
                "refiner/)"
            )
        system.refiner.check_fits(system.text_encoder.config.d_model, system.stride.space * system.patch[1])
        if self.shown.crop % (step := system.refiner.side_step):
            raise ValueError(f"shown.crop={self.shown.crop}: this refiner takes windows in steps of {step} pixels")
        teacher = self.taught_by(system)
        system.to(device)
        shape = VideoShape(system.defaults.frames, system.defaults.height, system.defaults.width)
        settings = (self.mix, self.melting, self.captioning, self.seed, device)
        source = MeltedSource(self.shown, shape, system.defaults.fps, *settings, self.own.share, config.numbered > 0)
        if self.own.clips:
            source.own, fixed = self._own(folder, system.fingerprint, device)
            rows, generator = list(range(self.validation)), torch.Generator().manual_seed(self.seed)
            drawn = own_of(fixed, rows, shape.frames, source.fps, generator, device, config.numbered > 0)
        else:
            numbers = [VALIDATION_SCENES + row for row in range(self.validation)]
            drawn = source.of(numbers, shape.frames, 0)
        taught = teacher and teacher.to(device)
        return RefinerPhase(system, source, batch_of(*drawn), self.loss, taught, self.adversary)

    def taught_by(self, system: LatentVideo) -> Refiner | None:
        """The refiner that is learned from, if any. Raises ValueError for one that reads other words."""
        if self.teacher is None:
            return None
        taught = LatentVideo.load(find_model(self.teacher), torch.float32)
        if taught.refiner is None:
            raise ValueError(f"teacher={self.teacher!r}: has no refiner; give a model with one")
        if self.shown.crop % taught.refiner.side_step:
            raise ValueError(
                f"shown.crop={self.shown.crop}: the teacher takes steps of {taught.refiner.side_step} pixels"
            )
        if not same_weights(system.text_encoder, taught.text_encoder):
            raise ValueError(f"teacher={self.teacher!r}: its refiner reads what another text encoder says")
        return taught.refiner

    def _own(self, folder: Path, fingerprint: str, device: torch.device) -> tuple[OwnShards, OwnShards]:
        """The model's clips to learn from, and those of validation."""

        @cache
        def model() -> LatentVideo:
            return LatentVideo.load(find_model(self.model), torch.bfloat16).to(device)

        def made(name: str, first: int, count: int) -> OwnShards:
            return make_own(folder / name, self.own, self.captioning, first, count, fingerprint, model)

        with alone_first():
            return made("own", OWN_SCENES, self.own.clips), made("own-validation", VALIDATION_SCENES, self.validation)


def pond_refiner() -> RefinerRecipe:
    """A refiner for a finished model of `pond`: outlines as the prompt says, in one more evaluation."""
    return RefinerRecipe(
        TrainConfig(
            minutes=60,
            warmup=50,
            decay_share=0.5,
            learning_rate=1e-3,
            matrix_learning_rate=2e-3,
            optimizer="muon",
            weight_decay=0.0,
            ema=0.998,
            prefetch=False,
            validate_every=400,
            picture_every=400,
        )
    )


def pond_refiner_adversarial() -> RefinerRecipe:
    """Go on with a refiner of `pond` against a discriminator, on the model's own clips: what is open gets drawn, one
    way or another, where errors alone make it a blot."""
    return RefinerRecipe(
        TrainConfig(
            minutes=90,
            warmup=100,
            decay_share=0.3,
            learning_rate=3e-4,
            betas=(0.5, 0.95),
            weight_decay=0.0,
            clip=5.0,
            ema=0.998,
            prefetch=False,
            validate_every=400,
            picture_every=400,
        ),
        model="runs/pond-refiner/refiner/model",
        shown=MeltedBatches(turns=("frames", "pieces", "clips"), frames=16, pieces=5, clips=1),
        own=OwnClips(clips=8192, share=0.75),
        adversary=Adversary(weight=0.5),
    )
