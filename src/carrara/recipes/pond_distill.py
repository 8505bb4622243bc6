"""The bundled model in few steps: a student that crosses the teacher's path in 8 (or 4) strides without guidance.

    carrara train pond-distill -o runs/pond-distill
    carrara train pond-distill -o runs/four --distillation.steps 4 --distillation.shift 3 --distillation.parts 2

The teacher is a finished model folder with the latents that it learned from, by default those of `carrara train pond`.
The run is resumed where it stopped; the model folder ends up in `runs/pond-distill/denoiser/model`.

Why shift 2: a teacher's paths bend near noise, and there the windows should be short. Followed with one midpoint part
in each of 8 windows, its ends are off by 0.18 of the spread between clips at shift 1, by 0.02 at shift 2 and by 0.01 at
shift 3 (first bundled model, guidance 4, four clips, float32, against 16 windows of 3 parts). In bfloat16, in which the
teacher is asked here, any two ways of following it end about 0.1 apart.

What a step costs, in networks evaluated for each of its 48 examples: `4 parts` by the teacher (midpoint, guided), about
3 by the student (forward and backward), and at most 1 on the student's own path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from carrara.core.config import from_dict, read_json, to_dict
from carrara.core.types import VideoShape
from carrara.data.latents import LatentCache
from carrara.data.pond.sampling import EVERYTHING
from carrara.data.pond.world import Scene
from carrara.recipes.device import chosen_device
from carrara.recipes.pond import PICTURED
from carrara.recipes.pond_data import Captioning, ImageSteps, PixelSource, latent_source
from carrara.recipes.runs import Recipe
from carrara.systems.distill_phase import Distillation, DistillPhase
from carrara.systems.latent import LatentVideo
from carrara.systems.phases import to_unit
from carrara.training.config import TrainConfig
from carrara.training.loop import train


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """Everything that decides the student, beside its teacher.

    teacher: a finished model folder; latents, validation: caches of clips encoded by its autoencoder;
    clips: read for a step, of which `distillation.rolled` count once for every window. device: "cpu", "cuda" or "auto".
    """

    train: TrainConfig
    teacher: str = "runs/pond/denoiser/model"
    latents: str = "runs/pond/latents"
    validation: str = "runs/pond/latents-validation"
    distillation: Distillation = field(default_factory=lambda: Distillation(steps=8, shift=2.0, parts=1))
    captioning: Captioning = field(default_factory=lambda: Captioning(synonyms_from=0))
    images: ImageSteps = field(default_factory=lambda: ImageSteps(share=0.02))
    clips: int = 27
    seed: int = 0
    device: str = "auto"

    kind = "pond-distill"

    def __post_init__(self) -> None:
        if self.clips < max(1, self.distillation.rolled):
            raise ValueError(
                f"clips={self.clips}: must be at least the distillation.rolled={self.distillation.rolled} of them that "
                "start on the student's own path"
            )

    def _run(self, folder: Path) -> Path:
        phase = self.phase()
        return train(phase, self.train, folder / "denoiser", self.settings(phase))

    def settings(self, phase: DistillPhase) -> dict[str, object]:
        """What must be the same when a run is resumed, besides the loop's own: folders may move, weights may not."""
        whole = to_dict(self)
        kept = {name: whole[name] for name in ("distillation", "captioning", "images", "clips", "seed")}
        return {**kept, "teacher": phase.teacher.fingerprint}

    def phase(self) -> DistillPhase:
        """The teacher, its student and the clips they meet. Raises ValueError where they do not belong together."""
        teacher = LatentVideo.load(Path(self.teacher), torch.float32)
        device = torch.device(chosen_device(self.device))
        for module in (teacher.denoiser, teacher.text_encoder, teacher.autoencoder):
            module.to(device)
        clips, checked = (open_clips(Path(name), teacher, device) for name in (self.latents, self.validation))
        count = min(self.distillation.compared, len(checked))
        return DistillPhase(
            teacher,
            latent_source(clips, self.clips, self.captioning, self.seed, self.images),
            latent_source(checked, count, Captioning(), 0)(0),
            self.distillation,
            PICTURED,
            VideoShape(teacher.defaults.frames, teacher.defaults.height, teacher.defaults.width),
            self.clips,
        )


def open_clips(folder: Path, teacher: LatentVideo, device: torch.device) -> LatentCache:
    """The cache of this folder, after its first clips were encoded again by the teacher's autoencoder.

    Fingerprints cannot tell here: a model folder holds its autoencoder rounded. Raises ValueError for clips of another
    size or by another autoencoder.
    """
    if not (folder / "cache.json").is_file():
        raise ValueError(f"{folder}: no cache of latents here; give the one that the teacher learned from")
    index = read_json(folder / "cache.json")
    made, wanted = index.get("about", {}), teacher.defaults
    for name in ("frames", "height", "width", "fps"):
        if made.get(name) != getattr(wanted, name):
            raise ValueError(
                f"{folder}: clips with {name}={made.get(name)}, the teacher makes {name}={getattr(wanted, name)}; "
                "give the latents that it learned from"
            )
    cache = LatentCache.open(folder, index.get("fingerprint", ""), device)
    shape = VideoShape(wanted.frames, wanted.height, wanted.width)
    first = cache[range(min(2, len(cache)))]
    scenes = [from_dict(Scene, record["scene"], f"{folder}: scene") for record in first.records]
    rendered = PixelSource(shape, wanted.fps, EVERYTHING, device).render(scenes, shape.frames)
    with torch.no_grad():
        again = teacher.autoencoder.encode(to_unit(rendered.video))
    if again.shape != first.latents.shape or (again - first.latents.float()).square().mean() > 0.05:
        raise ValueError(
            f"{folder}: the teacher's autoencoder encodes the same clips otherwise; give the latents it learned from"
        )
    return cache


def pond_distill() -> DistillRecipe:
    """A finished model of `pond` in 8 steps without guidance: 8 evaluations of its network instead of 60."""
    return DistillRecipe(
        TrainConfig(
            minutes=25,
            warmup=20,
            decay_share=0.4,
            learning_rate=2e-4,
            matrix_learning_rate=5e-4,
            optimizer="muon",
            weight_decay=0.0,
            ema=0.99,
            prefetch=False,
            log_every=10,
            validate_every=100,
            picture_every=200,
        )
    )
