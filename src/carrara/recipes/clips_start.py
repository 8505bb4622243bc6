"""How a transformer is trained on clips, from nothing or from a finished model of which every weight learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.core.config import at_least
from carrara.core.types import VideoShape
from carrara.data.mixture import Weights
from carrara.denoisers.dit import DiTConfig
from carrara.diffusion.fields import FieldMix, TimeDraw
from carrara.recipes.clips_autoencoder import encoder_fingerprint, unmapped
from carrara.recipes.clips_data import LatentBatches
from carrara.systems.find import find_model
from carrara.systems.folder import recognise, write_autoencoder
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.lora_phase import RememberedText
from carrara.systems.phases import CaptionedLatents, DenoiserPhase, film, to_bytes
from carrara.text.tokenizer import Tokenizer
from carrara.training.config import TrainConfig

ONE_LEVEL = FieldMix(equal=1.0, prefix=0.0, keyframe=0.0, independent=0.0, region=0.0)
"""What foreign models know: one noise level for all frames."""


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
    multiples of those of `train`; train_text: with `start`, whether the text encoder of a model made here learns too.
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

    def __post_init__(self) -> None:
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
    """A model to be trained on. encoder: its autoencoder's fingerprint; foreign: not trained here."""

    system: LatentVideo
    encoder: str
    foreign: bool


def open_finished(name: str, train_text: bool, device: torch.device) -> Finished:
    """A bundled model, a model folder of either layout, or a model of the hub, ready for training.

    The transformer is in float32 and learns; so does the text encoder of a model made here, unless `train_text` is
    False. A foreign text encoder stays as it is, in its published precision. Raises ValueError for a model that does
    not make clips of text alone with one transformer.
    """
    found = recognise(find_model(name))
    if found.kind.task != "t2v" or found.kind.experts != 1:
        raise ValueError(
            f"start={name!r}: {found.kind} is not trained here, only models that make clips of text with one "
            "transformer; give such a one, for example Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    found.check()
    denoiser = unmapped(found.load("transformer", torch.float32)).to(device).requires_grad_(True)
    if train_text and not found.foreign:
        text: Any = unmapped(found.load("text_encoder", torch.float32)).to(device).requires_grad_(True)
    else:
        text = RememberedText(found.load_staged())
    system = LatentVideo(
        found.load("vae", torch.float32).to(device),
        denoiser,
        text,
        Tokenizer.load(found.tokenizer),
        found.defaults,
        found.fingerprint(),
    )
    return Finished(system, encoder_fingerprint(found.folder / "vae", found.networks["vae"].files()), found.foreign)


class ClipsPhase(DenoiserPhase):
    """The denoiser's phase on clips, whose captions were left out, where they are to be, when the batch was drawn.

    validation: fixed batches of any shapes; foreign: the model was not made here, and is written as such are published.
    A frozen text encoder is no part of what is trained and saved in checkpoints; the written model has it.
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
        foreign: bool = False,
    ) -> None:
        super().__init__(system, batch, validation[0], mix, sampling, pictured, shape, 0.0, times)
        self.validations = validation
        self.piece = batch.piece
        self.foreign = foreign
        self.defaults = replace(
            system.defaults, frames=shape.frames, height=shape.height, width=shape.width, fps=fps, sampling=sampling
        )
        if isinstance(system.text_encoder, RememberedText):
            self.module = nn.ModuleDict({"denoiser": system.denoiser})

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
            latents = self.system.sample([prompt], [seed], self.shape, self.sampling)
            made.append(to_bytes(torch.cat(list(self.system.decode_chunks(latents)), dim=2)))
        return film(torch.cat(made))

    def export(self, folder: Path) -> None:
        """Write the whole model folder; of a foreign model in bfloat16, as it was published, its autoencoder whole."""
        system, text = self.system, self.system.text_encoder
        if isinstance(text, RememberedText):
            text = text.encoder
        whole = LatentVideo(system.autoencoder, system.denoiser, text, system.tokenizer, self.defaults)
        whole.save(Path(folder), torch.bfloat16 if self.foreign else torch.float16)
        if self.foreign:
            write_autoencoder(system.autoencoder, Path(folder) / "vae", torch.float32)
