"""How a transformer is trained on clips, from nothing or from a finished model of which every weight learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.core.config import at_least, choose
from carrara.core.types import VideoShape
from carrara.data.clip_latents import Beside
from carrara.data.mixture import Weights
from carrara.denoisers.dit import DiTConfig
from carrara.diffusion.fields import FieldMix, FirstFrame, TimeDraw, TimesBetween
from carrara.recipes.clips_autoencoder import encoder_fingerprint, unmapped
from carrara.recipes.clips_data import LatentBatches
from carrara.recipes.clips_images import image_reader
from carrara.systems.denoising import ImageContext
from carrara.systems.find import find_model
from carrara.systems.folder import recognise, write_autoencoder, write_folder
from carrara.systems.kinds import ModelKind
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.lora_phase import RememberedText
from carrara.systems.phases import CaptionedLatents, DenoiserPhase, film, to_bytes
from carrara.text.tokenizer import Tokenizer
from carrara.training.config import TrainConfig

_NONE = {"keyframe": 0.0, "independent": 0.0, "region": 0.0, "noisy_known": 0.0}
ONE_LEVEL = FieldMix(equal=1.0, prefix=0.0, **_NONE)
TEXT_OR_IMAGE = FirstFrame(equal=0.5, prefix=0.5, **_NONE)
EXPERTS = {"high": "transformer", "low": "transformer_2"}
"""The experts of noise levels from the boundary on, and below it, by the names of their folders."""


def native_fields(kind: ModelKind) -> FieldMix:
    """What a foreign model knows: one noise level for all frames, or for all but a first one that is an image."""
    return TEXT_OR_IMAGE if kind.expand_timesteps else ONE_LEVEL


@dataclass(frozen=True)
class ClipsDenoiserStage:
    """How the transformer is trained on cached latents.

    model: sizes of the transformer (its channels follow the autoencoder, its text width the encoder), without `start`;
    batch: clips of the dearest bucket in a step, of cheaper ones as many as cost the same; weights: shares of steps on
    captioned video, captioned images and unlabelled clips (all 0: by number); caption_dropout: share of captions left
    out; validation: clips of the fixed validation batch at most; pictured: captions shown in pictures;
    text_width, text_layers, words: of the text encoder and its tokenizer, which knows the most frequent words of the
    captions as one token each, without `start`; keyframes: frames of each clip that are encoded alone;
    fields: shares of the kinds of noise field (foreign models: one level); times: how noise levels are drawn;
    sampling: what the finished model does by default, without `start`; start_rate: learning rates with `start`, as
    multiples of those of `train`; train_text: with `start`, whether the text encoder of a model made here learns too;
    expert: of a model with two, the one that learns: "high" (noise, what happens where) or "low" (detail).
    """

    model: DiTConfig
    train: TrainConfig
    batch: int = 16
    weights: Weights = field(default_factory=Weights)
    caption_dropout: float = 0.1
    validation: int = 16
    pictured: int = 4
    text_width: int = 192
    text_layers: int = 2
    words: int = 20_000
    keyframes: int = 4
    fields: FieldMix = field(default_factory=FieldMix)
    times: TimeDraw = field(default_factory=TimeDraw)
    sampling: Sampling = field(default_factory=lambda: Sampling(steps=30, guidance=4.0, shift=1.0))
    start_rate: float = 0.1
    train_text: bool = True
    expert: str = ""

    def __post_init__(self) -> None:
        if self.expert:
            choose("expert", self.expert, EXPERTS)
        at_least(self, 1, "batch", "validation", "pictured", "text_width", "text_layers", "words")
        at_least(self, 0, "keyframes")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout={self.caption_dropout}: expected a share of captions, 0 to below 1")
        if not self.start_rate > 0:
            raise ValueError(f"start_rate={self.start_rate}: must be more than 0")

    def rates(self, started: bool) -> TrainConfig:
        """The plan of training, slower where it begins from a finished model."""
        if not started:
            return self.train
        return replace(
            self.train,
            learning_rate=self.start_rate * self.train.learning_rate,
            matrix_learning_rate=self.start_rate * self.train.matrix_learning_rate,
        )


@dataclass(frozen=True)
class Finished:
    """A model to be trained on. encoder: its autoencoder's fingerprint; foreign: not trained here; expert: of two, the
    one that learns; beside: what is kept of clips beside their latents, where it reads an image."""

    system: LatentVideo
    encoder: str
    foreign: bool
    kind: ModelKind
    expert: str = ""
    beside: Beside | None = None

    def times(self, draw: TimeDraw) -> TimeDraw:
        """How noise levels are drawn: of an expert on its own side of the boundary."""
        if not self.expert:
            return draw
        sides = {"high": (self.system.boundary, 1.0), "low": (0.0, self.system.boundary)}
        return TimesBetween(draw.uniform, draw.mean, draw.std, *sides[self.expert])


def open_finished(name: str, train_text: bool, device: torch.device, expert: str = "") -> Finished:
    """A bundled model, a model folder of either layout, or a model of the hub, ready for training.

    The transformer, of two the one that `expert` names, is in float32 and learns; so does the text encoder of a model
    made here, unless `train_text` is False. The other expert and a foreign text encoder stay as they are, in their
    published precision, and so does the image tower. Raises ValueError for an expert that is not named, or not there.
    """
    found = recognise(find_model(name))
    _check_expert(name, found.kind, expert)
    found.check()
    denoisers = {
        part: found.load(part, torch.float32 if part == EXPERTS[expert or "high"] else None)
        for part in EXPERTS.values()
        if part in found.networks
    }
    unmapped(denoisers[EXPERTS[expert or "high"]]).requires_grad_(True)
    for denoiser in denoisers.values():
        denoiser.to(device)
    if train_text and not found.foreign:
        text: Any = unmapped(found.load("text_encoder", torch.float32)).to(device).requires_grad_(True)
    else:
        text = RememberedText(found.load_staged())
    system = LatentVideo(
        found.load("vae", torch.float32).to(device),
        denoisers["transformer"],
        text,
        Tokenizer.load(found.tokenizer),
        found.defaults,
        found.fingerprint(),
        denoisers.get("transformer_2"),
        found.kind.boundary or 0.0,
        found.load("image_encoder").to(device) if "image_encoder" in found.networks else None,
    )
    encoder = encoder_fingerprint(found.folder / "vae", found.networks["vae"].files())
    return Finished(system, encoder, found.foreign, found.kind, expert, image_reader(found, system))


def _check_expert(name: str, kind: ModelKind, expert: str) -> None:
    """Refuse experts that are not named, or not there."""
    if kind.experts == 1 and expert:
        raise ValueError(f"expert={expert!r}: {kind} has one transformer for all noise levels; leave it out")
    if kind.experts == 2 and not expert:
        raise ValueError(
            f"start={name!r}: {kind} has two experts, which are trained one after the other; say which one learns: "
            f"--denoiser.expert high (noise levels from {kind.boundary:g} on: what happens where) or low (detail)"
        )


class ClipsPhase(DenoiserPhase):
    """The denoiser's phase on clips, whose captions were left out, where they are to be, when the batch was drawn.

    validation: fixed batches of any shapes; finished: the model that is trained on, if one is; a foreign one is written
    as such are published; images: what it reads beside the pictured prompts, where it reads an image. A frozen text
    encoder, an image tower and the other of two experts are no part of what is trained and saved in checkpoints; the
    written model has them.
    """

    def __init__(
        self,
        system: LatentVideo,
        batch: LatentBatches,
        validation: Sequence[CaptionedLatents],
        mix: FieldMix,
        sampling: Sampling,
        pictured: Sequence[str],
        shape: VideoShape,
        fps: float,
        times: TimeDraw | None = None,
        finished: Finished | None = None,
        images: ImageContext | None = None,
    ) -> None:
        super().__init__(system, batch, validation[0], mix, sampling, pictured, shape, 0.0, times, images=images)
        self.validations = validation
        self.piece = batch.piece
        self.released = finished.kind if finished is not None and finished.foreign else None
        self.defaults = replace(
            system.defaults, frames=shape.frames, height=shape.height, width=shape.width, fps=fps, sampling=sampling
        )
        learner = system.denoiser
        if finished is not None and finished.expert:
            low = system.low_denoiser if finished.expert == "low" else None
            learner = low or learner
            self.levels = [level for level in self.levels if (level < system.boundary) == (low is not None)]
        if isinstance(system.text_encoder, RememberedText):
            self.module = nn.ModuleDict({"denoiser": learner})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss per noise level, the mean over all fixed clips, in no more memory than the largest batch takes."""
        found: dict[str, float] = {}
        clips = sum(len(batch.captions) for batch in self.validations)
        for batch in self.validations:
            self.validation = batch
            for name, value in super().validate().items():
                found[name] = found.get(name, 0.0) + value * len(batch.captions) / clips
        return found

    @torch.no_grad()
    def picture(self) -> Tensor:
        """A row of frames for each fixed prompt, from fixed seeds, one clip after the other."""
        made = []
        for seed, prompt in enumerate(self.pictured):
            image = self.images.row(seed).to(self.system.device)
            latents = self.system.sample([prompt], [seed], self.shape, self.sampling, image=image)
            made.append(to_bytes(torch.cat(list(self.system.decode_chunks(latents)), dim=2)))
        return film(torch.cat(made))

    def export(self, folder: Path) -> None:
        """Write the whole model folder; of a foreign model in bfloat16, as it was published, its autoencoder whole."""
        system, text = self.system, self.system.text_encoder
        if isinstance(text, RememberedText):
            text = text.encoder
        whole = LatentVideo(
            system.autoencoder,
            system.denoiser,
            text,
            system.tokenizer,
            self.defaults,
            low_denoiser=system.low_denoiser,
            boundary=system.boundary,
            image_tower=system.image_tower,
        )
        write_folder(whole, Path(folder), torch.bfloat16 if self.released else torch.float16, self.released)
        if self.released:
            write_autoencoder(system.autoencoder, Path(folder) / "vae", torch.float32)
