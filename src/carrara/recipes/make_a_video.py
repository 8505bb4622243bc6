"""Make-A-Video on the pond: words from captioned images, motion from clips without captions, in seven phases.

    carrara train make-a-video -o runs/make-a-video
    carrara generate "a red ball on the grass" --model runs/make-a-video/space/model

    contrastive    text and image encoders                    captioned images
    prior          from text to an image's embedding          captioned images
    image          the decoder as an image model              images
    decoder        with layers along time, told the rate      clips without captions, from high rates to low ones
    interpolation  with masked frames beside the noise        clips without captions, from high rates to low ones
    space_time     twice the sides, along time                clips without captions
    space          twice the sides, frame by frame            images

`--data FOLDER` trains on what `carrara data prepare` has written instead: captioned images, of pictures or of any frame
of a captioned clip, and the pixels of clips at the rates that every frame, every second, every third ... give.

`--flops 1e15` trains for that much compute in all instead of a time, each phase for its share (`--decoder.share`, ...);
`compute.json` says what each took, and all.

Every phase leaves a model folder that runs, `PHASE/model`; the next one begins with it. From `image` on each is a model
that makes what its stages can: images, then short clips, then clips of any length, then larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from carrara.core.config import at_least, to_dict
from carrara.core.types import VideoShape
from carrara.data.pond.sampling import Mix
from carrara.data.prepared import Prepared
from carrara.denoisers.prior import Prior, PriorConfig
from carrara.denoisers.unet3d import MAKE_A_VIDEO_TIME, NO_TIME, UNet3D, UNetConfig
from carrara.denoisers.unet_inflation import inflate
from carrara.recipes.compute import check_flops, find_counted, sum_compute, train_counted
from carrara.recipes.device import chosen_device
from carrara.recipes.make_a_video_data import OF_CAPTIONED, READERS, captioned_images, unlabelled_clips
from carrara.recipes.pond import PICTURED
from carrara.recipes.pond_data import Captioning, train_pond_tokenizer
from carrara.recipes.pond_unlabelled import Rates
from carrara.recipes.prepared_clips import PreparedClips, clips_of, recorded, without_folder
from carrara.recipes.prepared_pieces import Wanted
from carrara.recipes.prepared_words import check_captions, example_of
from carrara.recipes.runs import PHASES, Recipe, check_finished
from carrara.systems.cascade import Augmentation
from carrara.systems.image_prior import ContrastivePhase, PriorPhase
from carrara.systems.latent import Defaults, Sampling
from carrara.systems.make_a_video import FASTEST, STAGES, MakeAVideo, MakeAVideoSettings
from carrara.systems.unlabelled_phase import UnlabelledPhase
from carrara.text.contrastive import Contrastive, ContrastiveConfig
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.training.config import TrainConfig

ARRANGED = ("temporal", "scalars", "given_channels", "vector_dim", "text")  # of a network: the system's choice


@dataclass(frozen=True)
class PhasePlan:
    """How long a phase trains, on batches of how many images or clips.

    share: of the compute of all phases, where the recipe is given one; validation: images or clips of the fixed batch.
    """

    train: TrainConfig
    batch: int = 16
    validation: int = 32
    share: float = 1 / 7

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share}: must be above 0 and below 1, a phase's part of the compute")
        at_least(self, 1, "batch", "validation")


@dataclass(frozen=True)
class MakeAVideoRecipe(Recipe):
    """Everything that decides a Make-A-Video. device: "cpu", "cuda", or "auto".

    network, space_time_network, space_network: sizes of the U-Nets (of the decoder and the interpolation alike); what
    they are told, and their layers along time, are the system's. side: of the decoder's frames; seconds: of a scene,
    of which clips are pieces; until: the last phase to train; flops: compute to train all phases with, split by their
    shares, None for the lengths that their `train` says; data: a prepared folder to train on instead of the pond (mix,
    captioning and seconds have no effect then); held_out, threads, memory: as those of `VDMRecipe`.
    """

    contrastive: PhasePlan
    prior: PhasePlan
    image: PhasePlan
    decoder: PhasePlan
    interpolation: PhasePlan
    space_time: PhasePlan
    space: PhasePlan
    network: UNetConfig
    space_time_network: UNetConfig
    space_network: UNetConfig
    settings: MakeAVideoSettings = field(default_factory=MakeAVideoSettings)
    encoder: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    embedder: PriorConfig = field(default_factory=PriorConfig)
    rates: Rates = field(default_factory=Rates)
    side: int = 32
    seconds: float = 4.0
    until: str = "space"
    flops: float | None = None
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

    kind = "make-a-video"

    def __post_init__(self) -> None:
        check_flops(self.flops)
        shares = {f"{name}.share": getattr(self, name).share for name in PHASES}
        if abs(sum(shares.values()) - 1) > 1e-6:
            said = ", ".join(f"{name} {share:g}" for name, share in shares.items())
            raise ValueError(f"{said}: they add up to {sum(shares.values()):g}; they must add up to 1")
        if self.until not in PHASES:
            raise ValueError(f"until={self.until!r}: expected one of {', '.join(PHASES)}")
        if self.rates.high > FASTEST:
            raise ValueError(f"rates.high={self.rates.high:g}: networks are told at most {FASTEST:g} frames per second")
        if self.embedder.embedding != self.encoder.embedding:
            raise ValueError(
                f"embedder.embedding={self.embedder.embedding}, encoder.embedding={self.encoder.embedding}: "
                "must be equal"
            )
        if self.side < 16:
            raise ValueError(f"side={self.side}: the pond is rendered at 16 pixels a side at least")
        for name in STAGES:
            step, side = self._config(name).side_step, self._side(name)
            if side % step:
                raise ValueError(f"{name} makes frames of {side}x{side}: its network takes multiples of {step}")

    def _run(self, folder: Path) -> Path:
        device, phases = torch.device(chosen_device(self.device)), PHASES[: PHASES.index(self.until) + 1]
        with clips_of(self, folder, phases) as clips:
            for name in phases:
                check_finished(folder / name, self.plan(name).train, self._kept(name, clips))
            return self._phases(folder, phases, device, clips)

    @property
    def example(self) -> str:
        """A prompt to try the model with."""
        return example_of(Prepared(self.data)) if self.data else PICTURED[0]

    def plan(self, name: str) -> PhasePlan:
        """How a phase is trained."""
        found: PhasePlan = getattr(self, name)
        return found

    def wanted(self, name: str) -> Wanted:
        """The images or clips that a phase learns; the rate is that of what its network makes."""
        stage = name if name in STAGES else "decoder"
        frames = self.settings.frames if name in STAGES and name != "space" else 1
        rate = self.settings.fps * (1 if stage == "decoder" else self.settings.skip)
        return Wanted(name, VideoShape(frames, self._side(stage), self._side(stage)), rate, name in OF_CAPTIONED)

    def check(self, clips: PreparedClips) -> None:
        """Refuse images, clips and captions that a phase cannot take, before the first one runs."""
        for wanted in clips.system:
            clips.trained(wanted, self.plan(wanted.stage).batch)
        check_captions(clips.prepared, clips.words)

    def _phases(self, folder: Path, phases: tuple[str, ...], device: torch.device, clips: PreparedClips | None) -> Path:
        system, made = self.fresh(clips), folder
        for name in phases:
            made = self._train(folder / name, name, system, device, clips)
            system = MakeAVideo.load(made)
        sum_compute(folder, phases)
        return made

    def fresh(self, clips: PreparedClips | None = None) -> MakeAVideo:
        """A system that knows nothing yet, whose decoder makes single images, and the words of the pond, or of a
        folder's captions."""
        tokenizer = clips.words if clips else train_pond_tokenizer()
        torch.manual_seed(self.seed)  # transformers draws the text encoder's weights from the global generator
        width = self.text_width
        text = TextEncoder(
            TextEncoderConfig(
                tokenizer.vocab_size, width, d_ff=2 * width, num_layers=self.text_layers, num_heads=max(1, width // 64)
            )
        )
        contrastive = Contrastive(replace(self.encoder, text_dim=width))
        prior = Prior(replace(self.embedder, text_dim=width))
        image = UNet3D(replace(self._config("decoder"), temporal=NO_TIME, scalars=()))
        for part in (contrastive, prior, image):
            part.init_weights(self.seed)
        others = {"contrastive": contrastive, "prior": prior}
        defaults = Defaults(1, self.side, self.side, self.settings.fps, self.sampling)
        return MakeAVideo({"decoder": image}, text, tokenizer, defaults, self.settings, others=others)

    def grown(self, system: MakeAVideo, phase: str) -> MakeAVideo:
        """The system with the network that a phase trains, and what it will make unasked."""
        if phase not in STAGES:
            return system
        config, networks, settings = self._config(phase), dict(system.networks), self.settings
        if phase in ("decoder", "interpolation"):
            networks[phase] = inflate(networks["decoder"], config, self.seed)
        else:
            networks[phase] = UNet3D(config)
            networks[phase].init_weights(self.seed + STAGES.index(phase))
        filled = phase != "decoder"
        frames = settings.skip * (settings.frames - 1) + 1 if filled else settings.frames
        fps = settings.fps * settings.skip if filled else settings.fps
        defaults = Defaults(frames, self._side(phase), self._side(phase), fps, self.sampling)
        return MakeAVideo(networks, system.text_encoder, system.tokenizer, defaults, settings, others=system.others)

    def phase(
        self, name: str, system: MakeAVideo, device: torch.device, clips: PreparedClips | None = None
    ) -> ContrastivePhase | PriorPhase | UnlabelledPhase:
        """One phase on its own kind of data."""
        for module in (*system.networks.values(), *system.others.values(), system.text_encoder):
            module.to(device)
        if name in READERS:
            told = captioned_images(self, name, device, clips)
            return (ContrastivePhase if name == "contrastive" else PriorPhase)(system, told.batch, told.validation)
        seen = unlabelled_clips(self, name, device, clips)
        stage = "decoder" if name == "image" else name
        return UnlabelledPhase(system, stage, seen.batch, seen.validation, self.sampling)

    def _side(self, stage: str) -> int:
        return self.side * self.settings.space ** max(0, STAGES.index(stage) - 1)

    def _config(self, stage: str) -> UNetConfig:
        """A network's sizes with what the system wants of it."""
        if stage in ("decoder", "interpolation"):
            given, vector, scalars, sizes = 0, self.encoder.embedding, ("fps",), self.network
            if stage == "interpolation":
                given = 4  # masked pixels and the mask
        else:
            given, vector, scalars = 3, 0, (Augmentation.NAME,)
            sizes = self.space_time_network if stage == "space_time" else self.space_network
        time = NO_TIME if stage == "space" else MAKE_A_VIDEO_TIME
        return replace(sizes, temporal=time, text="none", given_channels=given, vector_dim=vector, scalars=scalars)

    def _train(
        self, folder: Path, name: str, system: MakeAVideo, device: torch.device, clips: PreparedClips | None
    ) -> Path:
        """Train one phase, or find it trained; `compute.json` says with how many operations."""
        plan, flops = self.plan(name), None if self.flops is None else self.flops * self.plan(name).share

        def phase() -> ContrastivePhase | PriorPhase | UnlabelledPhase:
            return self.phase(name, self.grown(system, name), device, clips)

        if made := find_counted(folder, name, flops, phase):
            return made
        if clips:
            clips.verify()
        return train_counted(phase(), plan.train, folder, self._kept(name, clips), name, flops)

    def _kept(self, name: str, clips: PreparedClips | None = None) -> dict[str, object]:
        """What a resumed run of a phase must have in common with the one before."""
        whole = without_folder(to_dict(self))
        for key in ("device", "until", "flops", *(phase for phase in PHASES if phase != name)):
            whole.pop(key)
        whole[name].pop("train")  # the loop keeps its own, and knows which of them may change
        whole[name].pop("share")  # a length too
        return whole | recorded(clips, self.held_out)


def make_a_video() -> MakeAVideoRecipe:
    """Make-A-Video: 31 frames of 128 x 128 from 16 of 32 x 32, in about two hours on two CPU cores."""
    config = TrainConfig(
        minutes=20,
        warmup=100,
        optimizer="muon",
        learning_rate=1e-3,
        matrix_learning_rate=1e-3,
        prefetch=False,
        validate_every=500,
        picture_every=500,
    )
    text = replace(config, optimizer="adamw", minutes=10)
    return MakeAVideoRecipe(
        contrastive=PhasePlan(text, 128, 128, share=0.03),
        prior=PhasePlan(text, 128, 128, share=0.02),
        image=PhasePlan(replace(config, minutes=30), 32, share=0.25),
        decoder=PhasePlan(replace(config, minutes=30), 4, 16, share=0.32),
        interpolation=PhasePlan(config, 4, 16, share=0.2),
        space_time=PhasePlan(replace(config, minutes=15), 2, 8, share=0.12),
        space=PhasePlan(replace(config, minutes=10), 4, 8, share=0.06),
        network=UNetConfig(blocks=1),
        space_time_network=UNetConfig(dim=16, blocks=1, attention=(2,)),
        space_network=UNetConfig(dim=16, blocks=1, attention=()),
    )


def make_a_video_tiny() -> MakeAVideoRecipe:
    """All phases of a Make-A-Video in seconds, to see that training works on a machine; what it makes is noise."""
    plan = PhasePlan(
        TrainConfig(steps=3, warmup=1, precision="float32", log_every=1, validate_every=3, picture_every=3), 2, 2
    )
    network = UNetConfig(dim=8, multipliers=(1, 2), blocks=1, attention=(1,), head_dim=8)
    return MakeAVideoRecipe(
        contrastive=replace(plan, share=0.001),
        prior=replace(plan, share=0.0005),
        image=replace(plan, share=0.02),
        decoder=replace(plan, share=0.1),
        interpolation=replace(plan, share=0.1),
        space_time=replace(plan, share=0.5),
        space=replace(plan, share=0.2785),
        network=network,
        space_time_network=network,
        space_network=replace(network, attention=()),
        settings=MakeAVideoSettings(frames=4, overlap=2, prior_steps=2, fine_steps=2),
        encoder=ContrastiveConfig(side=8, dim=8, levels=2, embedding=16),
        embedder=PriorConfig(embedding=16, dim=16, blocks=1),
        rates=Rates(curriculum=2),
        side=16,
        sampling=Sampling(steps=2, guidance=2.0, sampler="ancestral", shift=1.0, grid="cosine"),
        text_width=32,
        text_layers=1,
    )
