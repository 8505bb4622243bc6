"""Video Diffusion Models on the pond: a base of 16 frames of 32 x 32, and a fine stage at four times the rate.

    carrara train vdm -o runs/vdm
    carrara generate "a red ball bounces on the grass" --model runs/vdm/fine/model

`--only-base` stops after the base, whose clips are then the model's; `--base.flops 1e15` trains for that much compute
instead of a time, and `compute.json` says what each stage took, and all. The number of images behind every clip, 0, 4
or 8 in the paper, is `--base.images`.

Cost, from the processor time of single steps on one core with AVX-512 BF16: the base trains at 4 clips a second and
core (32 GFLOP a clip with 4 images, 130 GFLOP/s), so 45 minutes of two cores are about 21,000 clips or 0.7e15 FLOP; the
fine stage at 2.5 clips a second and core (45 GFLOP a clip). A clip of 61 frames takes some 20 TFLOP to draw, nearly all
of it in the gradients of the fine stage: minutes; the base's 16 frames take seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from carrara.core.config import at_least, to_dict
from carrara.core.types import VideoShape, check_multiple
from carrara.data.pond.sampling import Mix
from carrara.denoisers.unet3d import Temporal, UNet3D, UNetConfig
from carrara.recipes.compute import check_flops, sum_compute, train_counted
from carrara.recipes.device import chosen_device
from carrara.recipes.pond import PICTURED
from carrara.recipes.pond_clips import pond_clips
from carrara.recipes.pond_data import Captioning, train_pond_tokenizer
from carrara.recipes.scene_numbers import CLIP_SCENES, CLIP_VALIDATION_SCENES
from carrara.systems.cascade import Rung, check_ladder
from carrara.systems.latent import Defaults, Sampling
from carrara.systems.stage_phase import CaptionedClips, StagePhase
from carrara.systems.vdm import VDM, VDMSettings
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.training.config import TrainConfig


@dataclass(frozen=True)
class StagePlan:
    """How one network is trained.

    frames, height, width, fps: of its clips; span: frames of a scene, of which a clip is a piece; batch: clips of a
    step; images: independent images behind each; flops: compute to train with, None for the length that `train` says;
    validation: clips of the fixed validation batch. text_dim of the network follows the encoder.
    """

    network: UNetConfig
    train: TrainConfig
    frames: int
    height: int
    width: int
    fps: float
    span: int = 0
    batch: int = 8
    images: int = 4
    flops: float | None = None
    validation: int = 32

    def __post_init__(self) -> None:
        at_least(self, 1, "frames", "batch")
        at_least(self, 0, "images")
        at_least(self, 1, "validation")
        at_least(self, 0, "span")
        check_flops(self.flops)
        for name in ("height", "width"):
            check_multiple(name, getattr(self, name), self.network.side_step)

    @property
    def shape(self) -> VideoShape:
        return VideoShape(self.frames, self.height, self.width)


@dataclass(frozen=True)
class VDMRecipe:
    """Everything that decides a VDM. device: "cpu", "cuda", or "auto"."""

    base: StagePlan
    fine: StagePlan
    settings: VDMSettings = field(default_factory=VDMSettings)
    only_base: bool = False
    sampling: Sampling = field(
        default_factory=lambda: Sampling(steps=64, guidance=2.0, sampler="ancestral", shift=1.0, grid="cosine")
    )
    mix: Mix = field(default_factory=lambda: Mix(two=0.12, relation=0.5, wall=0.03, camera=0.06))
    captioning: Captioning = field(default_factory=Captioning)
    text_width: int = 128
    text_layers: int = 2
    seed: int = 0
    device: str = "auto"

    def run(self, folder: Path) -> Path:
        """Train the stages below `folder` and return the model's folder. Raises ValueError before anything runs."""
        check_ladder(self.ladder())
        device = torch.device(chosen_device(self.device))
        base = self._train(folder / "base", "base", self.fresh(), self.base, device)
        if self.only_base:
            sum_compute(folder, ["base"])
            return base
        system = VDM.load(base)
        networks = {**system.networks, "fine": self._network(self.fine, self.seed + 1)}
        last = self.ladder()[-1]
        whole = replace(
            system.defaults, frames=last.makes.frames, height=last.makes.height, width=last.makes.width, fps=last.fps
        )
        system = VDM(networks, system.text_encoder, system.tokenizer, whole, self.settings)
        made = self._train(folder / "fine", "fine", system, self.fine, device)
        sum_compute(folder, ["base", "fine"])
        return made

    def ladder(self) -> list[Rung]:
        """The stages by their sizes. Raises ValueError where the fine clips are no pieces of an enlarged base clip."""
        base, fine, settings = self.base, self.fine, self.settings
        if base.frames != settings.frames:
            raise ValueError(f"base.frames={base.frames}, settings.frames={settings.frames}: must be equal")
        rungs = [Rung("base", None, base.shape, base.fps)]
        if self.only_base:
            return rungs
        if fine.frames != settings.fine_frames:
            raise ValueError(f"fine.frames={fine.frames}, settings.fine_frames={settings.fine_frames}: must be equal")
        if fine.fps != settings.time * base.fps:
            raise ValueError(f"fine.fps={fine.fps:g}: must be {settings.time} times the base's {base.fps:g}")
        space = settings.space
        for name, side in (("fine.height", fine.height), ("fine.width", fine.width)):
            check_multiple(name, side, space)
        takes = VideoShape(base.frames, fine.height // space, fine.width // space)
        makes = VideoShape(settings.time * (base.frames - 1) + 1, fine.height, fine.width)
        return [*rungs, Rung("fine", takes, makes, fine.fps)]

    def fresh(self) -> VDM:
        """A base and a text encoder that know nothing yet."""
        tokenizer = train_pond_tokenizer()
        torch.manual_seed(self.seed)  # transformers draws the text encoder's weights from the global generator
        width = self.text_width
        text = TextEncoder(
            TextEncoderConfig(
                tokenizer.vocab_size, width, d_ff=2 * width, num_layers=self.text_layers, num_heads=max(1, width // 64)
            )
        )
        base = self.base
        defaults = Defaults(base.frames, base.height, base.width, base.fps, self.sampling)
        return VDM({"base": self._network(base, self.seed)}, text, tokenizer, defaults, self.settings)

    def phase(self, stage: str, system: VDM, plan: StagePlan, device: torch.device) -> StagePhase:
        """The base learns with the text encoder; the fine network reads what that has become."""
        for module in (*system.networks.values(), system.text_encoder):
            module.to(device)

        def clips(batch: int, images: int, seed: int, first: int) -> Callable[[int], CaptionedClips]:
            about = (self.mix, self.captioning, seed, device, plan.span, first)
            return pond_clips(plan.shape, plan.fps, batch, images, *about)

        return StagePhase(
            system,
            stage,
            clips(plan.batch, plan.images, self.seed, CLIP_SCENES),
            clips(plan.validation, 0, 0, CLIP_VALIDATION_SCENES)(0),
            self.sampling,
            plan.shape,
            PICTURED,
            text=stage == "base",
        )

    def _network(self, plan: StagePlan, seed: int) -> UNet3D:
        network = UNet3D(replace(plan.network, text_dim=self.text_width))
        network.init_weights(seed)
        return network

    def _train(self, folder: Path, stage: str, system: VDM, plan: StagePlan, device: torch.device) -> Path:
        """Train one stage, or find it trained; `compute.json` says with how many operations."""
        model = folder / "model"
        if (model / "model_index.json").is_file():
            return model
        phase = self.phase(stage, system, plan, device)
        return train_counted(phase, plan.train, folder, self._settings(stage), stage, plan.flops)

    def _settings(self, stage: str) -> dict[str, object]:
        whole = to_dict(self)
        for plan in ("base", "fine"):
            whole[plan].pop("train")  # the loop keeps its own, and knows which of them may change
            whole[plan].pop("flops")  # a length too: a resumed run may go on for longer
        kept = ("base",) if stage == "base" else ("base", "fine")
        return {
            key: whole[key] for key in (*kept, "settings", "mix", "captioning", "text_width", "text_layers", "seed")
        }


def vdm() -> VDMRecipe:
    """Video Diffusion Models: 61 frames of 64 x 64 from a base of 16 frames of 32 x 32, on two CPU cores."""
    config = TrainConfig(
        minutes=45,
        warmup=100,
        optimizer="muon",
        learning_rate=1e-3,
        matrix_learning_rate=1e-3,
        prefetch=False,
        validate_every=500,
        picture_every=500,
    )
    everywhere = Temporal((0, 1, 2))  # at 32 x 32 the finest level is one that the paper's networks attend at
    return VDMRecipe(
        StagePlan(UNetConfig(blocks=1, temporal=everywhere), config, 16, 32, 32, 8.0, span=17),
        StagePlan(
            UNetConfig(dim=24, blocks=1, attention=(2,), temporal=everywhere),
            replace(config, minutes=15),
            9,
            64,
            64,
            32.0,
            span=65,
            batch=4,
            images=4,
        ),
    )


def vdm_tiny() -> VDMRecipe:
    """Both stages of a VDM in seconds, to see that training works on a machine; what it makes is noise."""
    steps = TrainConfig(steps=4, warmup=1, precision="float32", log_every=2, validate_every=2, picture_every=4)
    network = UNetConfig(dim=8, multipliers=(1, 2), blocks=1, attention=(1,), head_dim=8)
    return VDMRecipe(
        StagePlan(network, steps, 4, 16, 16, 8.0, batch=2, images=2, validation=2),
        StagePlan(network, steps, 3, 32, 32, 16.0, span=7, batch=2, images=1, validation=2),
        VDMSettings(frames=4, overlap=2, fine_frames=3, time=2, fine_steps=2),
        sampling=Sampling(steps=2, guidance=2.0, sampler="ancestral", shift=1.0, grid="cosine"),
        text_width=32,
        text_layers=1,
    )
