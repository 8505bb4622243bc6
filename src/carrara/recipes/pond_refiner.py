"""A refiner for a finished model of the pond, which draws its clips again as their prompts say.

    carrara train pond-refiner --model runs/pond/denoiser/model -o runs/pond-refiner

The model stays as it is; the whole folder, with the refiner in it, ends up in `runs/pond-refiner/refiner/model`. A
model whose text encoder learned on needs another refiner, for it reads what that encoder says. No clip of the model is
looked at: what is melted is simulated (`data/pond/melting.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from carrara.core.config import at_least, to_dict
from carrara.core.types import VideoShape
from carrara.data.batches import mix as mix_seed
from carrara.data.batches import part
from carrara.data.pond.melting import Melted, Melting, melt
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.world import Scene
from carrara.recipes.device import chosen_device
from carrara.recipes.pond_data import Captioning, window_corner
from carrara.recipes.runs import Recipe
from carrara.recipes.scene_numbers import REFINER_SCENES, VALIDATION_SCENES
from carrara.systems.latent import LatentVideo
from carrara.systems.refiner import Refiner, RefinerConfig, unet_of
from carrara.systems.refiner_phase import MeltedClips, RefinerLoss, RefinerPhase
from carrara.training.config import TrainConfig
from carrara.training.loop import train

TURNS = ("frames", "frames", "pieces", "clips")
"""What steps are on, in turn."""


@dataclass(frozen=True)
class MeltedBatches:
    """What a refiner is shown, step after step (`TURNS`).

    frames: scenes of a step on single frames, of which it sees `per_scene` successive ones each, as images of their
    own; pieces: scenes of a step on pieces of `piece_frames`; crop: side of the windows, around an actor, of frames and
    pieces, 0 for whole ones; clips: whole clips of a step.
    """

    frames: int = 40
    per_scene: int = 3
    pieces: int = 13
    piece_frames: int = 9
    crop: int = 32
    clips: int = 2

    def __post_init__(self) -> None:
        at_least(self, 1, "frames", "per_scene", "pieces", "piece_frames", "clips")
        at_least(self, 0, "crop")


class MeltedSource:
    """Melted clips as a function of the step; no scene is seen twice."""

    def __init__(
        self,
        shown: MeltedBatches,
        shape: VideoShape,
        fps: float,
        world: Mix,
        melting: Melting,
        captioning: Captioning,
        seed: int,
        device: torch.device,
    ) -> None:
        self.shown, self.shape, self.fps, self.world = shown, shape, fps, world
        self.melting, self.captioning, self.seed, self.device = melting, captioning, seed, device
        longest = max(shown.per_scene, shown.piece_frames)
        if longest > shape.frames:
            raise ValueError(f"{longest} frames of a scene are to be shown, and its clips have {shape.frames}")
        if shown.crop > min(shape.height, shape.width):
            raise ValueError(f"crop={shown.crop}: larger than the {shape.width}x{shape.height} frames")
        told = (captioning.short, captioning.medium, captioning.dense)
        self._told = torch.tensor(told)

    def __call__(self, step: int) -> MeltedClips:
        """The batch of a step."""
        return self.piece(step, 0, 1)[0]

    def piece(self, step: int, number: int, count: int) -> tuple[MeltedClips, int]:
        """A piece of a step's batch, of so many, and how many scenes the batch has."""
        shown, turn = self.shown, TURNS[step % len(TURNS)]
        scenes, frames = {
            "frames": (shown.frames, shown.per_scene),
            "pieces": (shown.pieces, shown.piece_frames),
            "clips": (shown.clips, self.shape.frames),
        }[turn]
        rows = range(scenes)[part(scenes, number, count)]
        stride = max(shown.frames, shown.pieces, shown.clips)
        numbers = [REFINER_SCENES + step * stride + row for row in rows]
        made, captions = self.of(numbers, frames, step)
        if turn != "clips" and shown.crop:
            made = windows(made, shown.crop, torch.Generator().manual_seed(mix_seed(self.seed, step, rows.start, 1)))
        if turn == "frames":
            made = singles(made)
            captions = [caption for caption in captions for _ in range(frames)]
        return batch_of(made, captions), scenes

    def of(self, numbers: list[int], frames: int, step: int) -> tuple[Melted, list[str]]:
        """So many frames of each of these scenes, from anywhere in its clip, melted, with a caption of the clip."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, numbers[0], frames))
        scenes = [sample_scene(number, self.world) for number in numbers]
        levels = torch.multinomial(self._told, len(scenes), replacement=True, generator=generator).tolist()
        draws, starts = torch.rand(2, len(scenes), generator=generator).tolist()
        captions = [
            self.captioning.say(scene, False, level, draw, step, mix_seed(self.seed, number))
            for scene, level, draw, number in zip(scenes, levels, draws, numbers)
        ]
        rest = (self.shape.frames - frames) / self.fps
        later: list[Scene] = [replace(scene, start=scene.start + rest * draw) for scene, draw in zip(scenes, starts)]
        seed = mix_seed(self.seed, numbers[0], frames, 2)
        shape = replace(self.shape, frames=frames)
        return melt(later, shape, self.fps, self.melting, seed, self.device), captions


def windows(clips: Melted, size: int, generator: torch.Generator) -> Melted:
    """Of each clip a square window of `size` pixels through all frames, around a place where an actor is at some time
    (else anywhere)."""
    count, _, _, height, width = clips.actors.shape
    corners = [
        window_corner((clips.actors[clip, 0] > 0).nonzero(), size, height, width, generator) for clip in range(count)
    ]

    def cut(part: Tensor, behind: int) -> Tensor:
        rows, columns = -2 - behind, -1 - behind
        return torch.stack(
            [whole.narrow(rows, top, size).narrow(columns, left, size) for whole, (top, left) in zip(part, corners)]
        )

    return Melted(cut(clips.video, 1), cut(clips.actors, 0), cut(clips.melted, 1), cut(clips.touched, 0))


def singles(clips: Melted) -> Melted:
    """Every frame as a clip of its own."""
    one, ways = "b t ... -> (b t) 1 ...", "b k t ... -> (b t) k 1 ..."
    return Melted(
        rearrange(clips.video, ways),
        rearrange(clips.actors, ways),
        rearrange(clips.melted, one),
        rearrange(clips.touched, one),
    )


def batch_of(clips: Melted, captions: list[str]) -> MeltedClips:
    """What the phase takes."""
    return MeltedClips(clips.melted, captions, clips.video, clips.actors, clips.touched)


@dataclass(frozen=True)
class RefinerRecipe(Recipe):
    """Everything that decides the refiner, beside the model that it is for.

    model: a model folder, whose refiner, where it has one, learns on; dim, multipliers, fold: of the refiner's network;
    mix, captioning: which scenes it sees, and how they are told; validation: clips of the fixed validation batch.
    device: "cpu", "cuda" or "auto".
    """

    train: TrainConfig
    model: str = "runs/pond/denoiser/model"
    dim: int = 32
    multipliers: tuple[int, ...] = (1, 2, 3)
    fold: int = 2
    loss: RefinerLoss = field(default_factory=RefinerLoss)
    melting: Melting = field(default_factory=Melting)
    mix: Mix = field(default_factory=lambda: Mix(two=0.3, camera=0.2, wall=0.05))
    captioning: Captioning = field(default_factory=lambda: Captioning(synonyms_from=0))
    shown: MeltedBatches = field(default_factory=MeltedBatches)
    validation: int = 24
    seed: int = 0
    device: str = "auto"

    kind = "pond-refiner"

    def __post_init__(self) -> None:
        at_least(self, 1, "validation")

    def _run(self, folder: Path) -> Path:
        settings, phase = to_dict(self), self.phase()
        names = ("dim", "multipliers", "fold", "loss", "melting", "mix", "captioning", "shown", "seed")
        kept = {name: settings[name] for name in names}
        return train(phase, self.train, folder / "refiner", {**kept, "model": phase.system.fingerprint})

    def phase(self) -> RefinerPhase:
        """What is trained. Raises ValueError for a model that a refiner of these sizes does not fit."""
        system, device = LatentVideo.load(Path(self.model), torch.float32), torch.device(chosen_device(self.device))
        unet = unet_of(system.text_encoder.config.d_model, self.fold, self.dim, self.multipliers)
        config = RefinerConfig(unet, self.fold)
        if system.refiner is None:
            system.refiner = Refiner(config)
            system.refiner.init_weights(self.seed)
        elif system.refiner.config != config:
            raise ValueError(
                f"{self.model}: has a refiner of other sizes; give those, or a model without one (its folder less "
                "refiner/)"
            )
        system.refiner.check_fits(system.text_encoder.config.d_model, system.stride.space * system.patch[1])
        if self.shown.crop % (step := system.refiner.side_step):
            raise ValueError(f"shown.crop={self.shown.crop}: this refiner takes windows in steps of {step} pixels")
        system.to(device)
        defaults = system.defaults
        shape = VideoShape(defaults.frames, defaults.height, defaults.width)
        settings = (self.mix, self.melting, self.captioning, self.seed, device)
        source = MeltedSource(self.shown, shape, defaults.fps, *settings)
        made, captions = source.of([VALIDATION_SCENES + row for row in range(self.validation)], shape.frames, 0)
        return RefinerPhase(system, source, batch_of(made, captions), self.loss)


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
