"""From prompts to embeddings of images: the one part of Make-A-Video that reads text, and how its two halves learn.

First captions and images learn to point the same way (`ContrastivePhase`); then a prior learns to draw the embedding of
an image from what the frozen text encoder says (`PriorPhase`). Both learn from captioned images, and refuse clips: in
this system no word is ever seen beside a motion. Embeddings are scaled to about unit variance in each component.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from carrara.core.config import choose
from carrara.core.types import TextStates
from carrara.denoisers.prior import Prior
from carrara.diffusion.fields import TimeDraw, draw_times
from carrara.diffusion.grids import GridPoint
from carrara.diffusion.guidance import Guidance, guide
from carrara.diffusion.predictions import add_noise
from carrara.diffusion.samplers import SAMPLERS, draw_noise
from carrara.systems.latent import Sampling
from carrara.systems.phases import to_unit
from carrara.systems.pixel_system import PixelSystem
from carrara.systems.stage import COSINE
from carrara.systems.stage_phase import VALIDATION_LEVELS, CaptionedClips
from carrara.text.contrastive import Contrastive, contrastive_loss


class Captions:
    """Reads prompts and images into the one space of a system's contrastive encoder."""

    def __init__(self, system: PixelSystem) -> None:
        self.system = system

    @property
    def contrastive(self) -> Contrastive:
        part = self.system.others["contrastive"]
        assert isinstance(part, Contrastive)
        return part

    @property
    def prior(self) -> Prior:
        part = self.system.others["prior"]
        assert isinstance(part, Prior)
        return part

    @property
    def size(self) -> float:
        """The length of an embedding as networks are told it."""
        return float(self.contrastive.config.embedding**0.5)

    def of_images(self, images: Tensor) -> Tensor:
        """Embeddings `b d` of images `b 3 h w` in [-1, 1]."""
        return self.contrastive.embed_images(images) * self.size

    def of_texts(self, text: TextStates) -> Tensor:
        """Embeddings `b d` of prompts: where the images that they are said of lie around."""
        return self.contrastive.embed_texts(text) * self.size

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], sampling: Sampling, generators: Sequence[Generator]) -> Tensor:
        """Embeddings of images that the prompts might be said of, `b d`, on the sphere on which images lie."""
        found = draw_embeddings(
            self.prior, *self._read(prompts), *self._read([""] * len(prompts)), sampling, generators
        )
        return nn.functional.normalize(found, dim=-1) * self.size

    def _read(self, prompts: Sequence[str]) -> tuple[TextStates, Tensor]:
        text = self.system.read(prompts)
        return text, self.of_texts(text)


def draw_embeddings(
    prior: Prior,
    text: TextStates,
    vector: Tensor,
    null_text: TextStates,
    null_vector: Tensor,
    sampling: Sampling,
    generators: Sequence[Generator],
) -> Tensor:
    """Draw vectors `b d` from a prior, one for each generator, guided away from the null prompt."""

    def estimate(said: TextStates, near: Tensor) -> Callable[[Tensor, GridPoint], Tensor]:
        def denoise(x: Tensor, point: GridPoint) -> Tensor:
            told = torch.full((len(x),), point.told, dtype=torch.float64, device=x.device)
            return prior(x, told, said, near)

        return denoise

    denoise = estimate(text, vector)
    if sampling.guidance != 1:
        denoise = guide(denoise, estimate(null_text, null_vector), Guidance(sampling.guidance))
    noise = draw_noise((prior.config.embedding,), generators).to(vector.device)
    return choose("sampler", sampling.sampler, SAMPLERS)(denoise, noise, sampling.points(), generators)


def prior_errors(prior: Prior, clean: Tensor, noise: Tensor, t: Tensor, text: TextStates, vector: Tensor) -> Tensor:
    """Mean square error of the estimate of vectors `b d` noised to times `(b,)`, for each: `(b,)`."""
    noised = add_noise(clean, noise, COSINE.alpha(t.float()), COSINE.sigma(t.float()))
    return (prior(noised, t, text, vector) - clean).square().mean(dim=1)


def images_of(batch: CaptionedClips) -> Tensor:
    """Captioned images `b 3 h w` in [-1, 1]. Raises ValueError for clips, and for what has no captions."""
    if not isinstance(batch, CaptionedClips):
        raise ValueError(f"a batch of {type(batch).__name__}: captions are needed here; give captioned images")
    if batch.video.shape[1] != 1:
        raise ValueError(
            f"captioned clips of {batch.video.shape[1]} frames: Make-A-Video reads captions of images alone; "
            "give clips of one frame, or clips without captions to its video phases"
        )
    return rearrange(to_unit(batch.video), "b c 1 h w -> b c h w")


class ContrastivePhase:
    """Train the text encoder and the contrastive encoder on captioned images."""

    def __init__(self, system: PixelSystem, batch: Callable[[int], CaptionedClips], validation: CaptionedClips) -> None:
        self.system, self.batch, self.validation, self.captions = system, batch, validation, Captions(system)
        images_of(validation)
        system.text_encoder.requires_grad_(True)
        self.captions.contrastive.requires_grad_(True)
        self.module: nn.Module = nn.ModuleDict(
            {"contrastive": self.captions.contrastive, "text_encoder": system.text_encoder}
        )

    def loss(self, batch: CaptionedClips, step: int, generator: Generator) -> dict[str, Tensor]:
        """The contrastive loss, and how often the caption of an image is found among those of the batch."""
        images = self.captions.contrastive.embed_images(images_of(batch).to(generator.device))
        texts = self.captions.contrastive.embed_texts(self.system.read(batch.captions))
        distinct = {said: number for number, said in enumerate(dict.fromkeys(batch.captions))}
        number = torch.tensor([distinct[said] for said in batch.captions], device=images.device)
        same = number[:, None] == number[None, :]
        loss = contrastive_loss(images, texts, self.captions.contrastive.scale, same)
        guess = (images @ texts.T).detach().argmax(dim=1)
        return {"loss": loss, "found": (number[guess] == number).float().mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        found = self.loss(self.validation, 0, Generator(self.system.device))
        return {name: float(value) for name, value in found.items()}

    def picture(self) -> None:
        """Nothing to see."""

    def export(self, folder: Path) -> None:
        self.system.save(Path(folder))


class PriorPhase:
    """Train the prior on captioned images; the encoders stay as they are."""

    def __init__(
        self,
        system: PixelSystem,
        batch: Callable[[int], CaptionedClips],
        validation: CaptionedClips,
        caption_dropout: float = 0.1,
    ) -> None:
        self.system, self.batch, self.validation, self.captions = system, batch, validation, Captions(system)
        images_of(validation)
        self.caption_dropout = caption_dropout
        system.text_encoder.requires_grad_(False)
        self.captions.contrastive.requires_grad_(False)
        self.captions.prior.requires_grad_(True)
        self.module: nn.Module = nn.ModuleDict({"prior": self.captions.prior})

    def loss(self, batch: CaptionedClips, step: int, generator: Generator) -> dict[str, Tensor]:
        """The mean error of the estimated embedding (Ramesh et al. 2022, eq. 2)."""
        images = images_of(batch).to(generator.device)
        times = draw_times(len(images), generator, TimeDraw(uniform=1.0))
        dropped = torch.rand(len(images), generator=generator, device=images.device) < self.caption_dropout
        said = ["" if drop else caption for caption, drop in zip(batch.captions, dropped.tolist())]
        return {"loss": self._errors(images, said, times, generator).mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The error per noise level on fixed images and fixed noise."""
        images = images_of(self.validation).to(self.system.device)
        found = {}
        for level in VALIDATION_LEVELS:
            generator = Generator(images.device).manual_seed(0)
            times = torch.full((len(images),), level, device=images.device)
            found[f"loss_at_{level:g}"] = float(self._errors(images, self.validation.captions, times, generator).mean())
        return {**found, "loss_mean": sum(found.values()) / len(found)}

    def picture(self) -> None:
        """Nothing to see."""

    def export(self, folder: Path) -> None:
        self.system.save(Path(folder))

    def _errors(self, images: Tensor, said: Sequence[str], times: Tensor, generator: Generator) -> Tensor:
        with torch.no_grad():
            text = self.system.read(said)
            clean, near = self.captions.of_images(images), self.captions.of_texts(text)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return prior_errors(self.captions.prior, clean, noise, times, text, near)
