"""Video Diffusion Models on the pond: a base of 16 frames of 32 x 32, and a fine stage at four times the rate.

    carrara train vdm -o runs/vdm
    carrara generate "a red ball bounces on the grass" --model runs/vdm/fine/model

`--data FOLDER` trains on clips that `carrara data prepare` has written instead; both stages are cut from the same ones.

`--only-base` stops after the base, whose clips are then the model's; `--base.flops 1e15` trains for that much compute
instead of a time, and `compute.json` says what each stage took, and all. The number of images behind every clip, 0, 4
or 8 in the paper, is `--base.images`.

Cost, from the processor time of single steps on one core with AVX-512 BF16: the base trains at 4 clips a second and
core (32 GFLOP a clip with 4 images, 130 GFLOP/s), so 45 minutes of two cores are about 21,000 clips or 0.7e15 FLOP; the
fine stage at 2.5 clips a second and core (45 GFLOP a clip). A clip of 61 frames takes some 20 TFLOP to draw, nearly all
of it in the gradients of the fine stage: minutes; the base's 16 frames take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from carrara.core.config import at_least, to_dict
from carrara.core.types import VideoShape, check_multiple
from carrara.data.pond.sampling import Mix
from carrara.data.prepared import Prepared
from carrara.denoisers.unet3d import Temporal, UNet3D, UNetConfig
from carrara.recipes.compute import check_flops, find_counted, sum_compute, train_counted
from carrara.recipes.device import chosen_device
from carrara.recipes.pond import PICTURED
from carrara.recipes.pond_data import Captioning, train_pond_tokenizer
from carrara.recipes.prepared_clips import PreparedClips, clips_of, recorded
from carrara.recipes.prepared_pieces import Wanted
from carrara.recipes.prepared_words import check_captions, example_of
from carrara.recipes.runs import Recipe, check_finished
from carrara.recipes.vdm_data import pond_data, prepared_data
from carrara.systems.cascade import Rung, check_ladder
from carrara.systems.latent import Defaults, Sampling
from carrara.systems.stage_phase import StagePhase
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
class VDMRecipe(Recipe):
    """Everything that decides a VDM. device: "cpu", "cuda", or "auto".

    data: a prepared folder to train on instead of the pond (mix, captioning and spans have no effect then); held_out:
    share of its sources kept for validation; threads: that decode (0: one per core, at most 8); memory: GB of decoded
    clips that are kept.
    """

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
    data: str = ""
    held_out: float = 0.05
    threads: int = 0
    memory: float = 1.0

    kind = "vdm"

    def _run(self, folder: Path) -> Path:
        check_ladder(self.ladder())
        device = torch.device(chosen_device(self.device))
        with clips_of(self, folder, self.stages) as clips:
            for stage in self.stages:
                check_finished(folder / stage, self.plan(stage).train, self._settings(stage, clips))
            return self._stages(folder, device, clips)

    @property
    def stages(self) -> tuple[str, ...]:
        return ("base",) if self.only_base else ("base", "fine")

    @property
    def example(self) -> str:
        """A prompt to try the model with."""
        return example_of(Prepared(self.data)) if self.data else PICTURED[0]

    def wanted(self, stage: str) -> Wanted:
        """The clips that a stage learns."""
        plan = self.plan(stage)
        return Wanted(stage, plan.shape, plan.fps)

    def check(self, clips: PreparedClips) -> None:
        """Refuse clips and captions that a stage cannot take, before the first one runs."""
        for stage in self.stages:
            clips.trained(self.wanted(stage), self.plan(stage).batch)
            clips.trained(replace(self.wanted(stage), captioned=True))
        check_captions(clips.prepared, clips.words)

    def _stages(self, folder: Path, device: torch.device, clips: PreparedClips | None) -> Path:
        base = self._train(folder / "base", "base", self.fresh(clips), self.base, device, clips)
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
        made = self._train(folder / "fine", "fine", system, self.fine, device, clips)
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

    def fresh(self, clips: PreparedClips | None = None) -> VDM:
        """A base and a text encoder that know nothing yet, and the words of the pond, or of a folder's captions."""
        tokenizer = clips.words if clips else train_pond_tokenizer()
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

    def phase(
        self,
        stage: str,
        system: VDM,
        plan: StagePlan,
        device: torch.device,
        clips: PreparedClips | None = None,
    ) -> StagePhase:
        """The base learns with the text encoder; the fine network reads what that has become."""
        for module in (*system.networks.values(), system.text_encoder):
            module.to(device)
        data = prepared_data(self, stage, clips) if clips else pond_data(self, stage, device)
        return StagePhase(
            system,
            stage,
            data.batch,
            data.validation,
            self.sampling,
            plan.shape,
            data.pictured,
            text=stage == "base",
        )

    def plan(self, stage: str) -> StagePlan:
        """How a stage is trained."""
        return self.base if stage == "base" else self.fine

    def _network(self, plan: StagePlan, seed: int) -> UNet3D:
        network = UNet3D(replace(plan.network, text_dim=self.text_width))
        network.init_weights(seed)
        return network

    def _train(
        self,
        folder: Path,
        stage: str,
        system: VDM,
        plan: StagePlan,
        device: torch.device,
        clips: PreparedClips | None,
    ) -> Path:
        """Train one stage, or find it trained; `compute.json` says with how many operations."""
        if made := find_counted(folder, stage, plan.flops, lambda: self.phase(stage, system, plan, device, clips)):
            return made
        if clips:
            clips.verify()
        phase = self.phase(stage, system, plan, device, clips)
        return train_counted(phase, plan.train, folder, self._settings(stage, clips), stage, plan.flops)

    def _settings(self, stage: str, clips: PreparedClips | None = None) -> dict[str, object]:
        whole = to_dict(self)
        for plan in ("base", "fine"):
            whole[plan].pop("train")  # the loop keeps its own, and knows which of them may change
            whole[plan].pop("flops")  # a length too: a resumed run may go on for longer
        kept = ("base",) if stage == "base" else ("base", "fine")
        names = (*kept, "settings", "mix", "captioning", "text_width", "text_layers", "seed")
        return {name: whole[name] for name in names} | recorded(clips, self.held_out)


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
