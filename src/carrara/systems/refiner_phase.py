"""Training a refiner: melted clips in, what they should have been out. The model it belongs to stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, max_pool2d

from carrara.core.types import TextStates
from carrara.systems.latent import LatentVideo
from carrara.systems.phases import film, to_bytes, to_unit
from carrara.systems.refiner import Refiner
from carrara.systems.refiner_adversary import Adversary, Discriminator, strayed
from carrara.systems.stage_phase import is_unet_matrix, read_once

AROUND = 9  # pixels of the square around each that was touched, in which errors count more


@dataclass(frozen=True)
class MeltedClips:
    """melted: uint8 `b t h w 3`, clips as they are; captions: one each; video: uint8 `b k t h w 3`, k ways in which the
    clip would be right, with its actors there, uint8 `b k t h w`, nonzero where one shows; touched: bool `b t h w`,
    where errors count more. t = 1 for single frames. others: captions of which something is not so in the video, one
    each, for a discriminator; placed: whether things are in `video` where they are in `melted`; first: which frame of
    its clip the first of each is, `(b,)`, None for 0."""

    melted: Tensor
    captions: Sequence[str]
    video: Tensor
    actors: Tensor
    touched: Tensor
    others: Sequence[str] = ()
    placed: bool = True
    first: Tensor | None = None


@dataclass(frozen=True)
class RefinerLoss:
    """actors: how much more an error counts around an actor, beside 1 everywhere; outline: weight of telling where
    actors are, beside 1 of the colours. caption_dropout: how often the null caption stands for a caption."""

    actors: float = 6.0
    outline: float = 0.5
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.actors, self.outline) < 0:
            raise ValueError(f"actors={self.actors}, outline={self.outline}: must be at least 0")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout={self.caption_dropout}: expected at least 0 and less than 1")


class RefinerPhase:
    """Train a system's refiner by absolute errors, to the nearest of the ways in which a clip would be right: the mean
    of a bird that faces left and one that faces right is none, and one is drawn.

    With an adversary, a discriminator's verdict is added to them; clips that are not where their truth is are then held
    to their own colours instead of to it. Both networks learn by one step: what one is told by never moves the other.
    """

    def __init__(
        self,
        system: LatentVideo,
        batch: Callable[[int], MeltedClips],
        validation: MeltedClips,
        config: RefinerLoss,
        teacher: Refiner | None = None,
        adversary: Adversary | None = None,
    ) -> None:
        if system.refiner is None:
            raise ValueError("this model has no refiner: give it one before it is trained")
        for part in (system.denoiser, system.autoencoder, system.text_encoder):
            part.requires_grad_(False)
        self.system, self.batch, self.validation, self.config = system, batch, validation, config
        self.refiner: Refiner = system.refiner
        self.refiner.requires_grad_(True)
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.module: nn.Module = self.refiner
        self.adversary = adversary if adversary is not None and adversary.weight else None
        if self.adversary is not None:
            self.discriminator = Discriminator(self.refiner)
            self.module = nn.ModuleDict({"refiner": self.refiner, "discriminator": self.discriminator})

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        """What Muon may train."""
        return is_unet_matrix(name, parameter)

    def loss(self, batch: MeltedClips, step: int, generator: Generator) -> dict[str, Tensor]:
        """Also the error of the colours where clips were touched, and how often the first way was the nearest; with an
        adversary, its verdicts."""
        device = generator.device
        dropped = torch.rand(len(batch.captions), generator=generator, device=device) < self.config.caption_dropout
        captions = ["" if drop else text for text, drop in zip(batch.captions, dropped.tolist())]
        melted, text = to_unit(batch.melted).to(device), self.read(captions)
        drawn, outline = self.refiner(melted, text, batch.first)
        near = around(batch.touched.to(device))
        weights = 1 + self.config.actors * near
        losses, errors = [], []
        for video, actors in self.ways(batch, melted, text):
            error = (drawn - video).abs().mean(1)
            told = binary_cross_entropy_with_logits(outline, actors, reduction="none")
            losses.append((weights * (error + self.config.outline * told)).mean((1, 2, 3)))
            errors.append((near * error).detach().sum((1, 2, 3)))
        each, nearest = torch.stack(losses).min(0)
        loss = each.mean()
        told_of: dict[str, Tensor] = {}
        if self.adversary is not None:
            if not batch.placed and self.teacher is None:
                loss = self.adversary.anchor * strayed(drawn, melted, weights, self.adversary.anchored)
            opposed, told_of = self.opposed(batch, drawn, text, weights, generator)
            loss = loss + opposed
        return {
            "loss": loss,
            "around": torch.stack(errors).gather(0, nearest[None]).sum() / near.sum().clamp(min=1),
            "first": (nearest == 0).float().mean(),
            **told_of,
        }

    def opposed(
        self, batch: MeltedClips, drawn: Tensor, text: TextStates, weights: Tensor, generator: Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What refiner and discriminator learn of each other, and the latter's mean verdicts."""
        assert self.adversary is not None
        if len(batch.others) != len(batch.captions):
            raise ValueError(
                f"{len(batch.others)} other captions for {len(batch.captions)} clips: a discriminator needs one each"
            )
        true = to_unit(batch.video[:, 0]).to(drawn.device)
        loss, told = self.discriminator.loss(
            true, drawn, text, self.read(batch.others), weights, self.adversary, generator, batch.first
        )
        return loss + self.adversary.weight * self.discriminator.deceived(drawn, text, weights, batch.first), told

    @torch.no_grad()
    def ways(self, batch: MeltedClips, melted: Tensor, text: TextStates) -> Iterator[tuple[Tensor, Tensor]]:
        """In which ways a batch would be right: video `b 3 t h w` and how surely an actor is where, `b t h w`."""
        if self.teacher is not None:
            drawn, outline = self.teacher(melted, text, batch.first)
            yield drawn.clamp(-1, 1), outline.sigmoid()
            return
        for way in range(batch.video.shape[1]):
            actors = (batch.actors[:, way] > 0).to(melted.device, torch.float32)
            yield to_unit(batch.video[:, way]).to(melted.device), actors

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> TextStates:
        """Encode captions, equal ones once."""
        return read_once(self.system.read, captions)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """On the fixed clips: the error around actors, and the share of intersection in union of the true outlines and
        those that are told; that once more with the captions of other clips, so that what words do can be seen."""
        captions = list(self.validation.captions)
        error, overlap = self._compared(captions)
        return {
            "error": error,
            "overlap": overlap,
            "overlap_of_other_words": self._compared([*captions[1:], captions[0]])[1],
        }

    def _compared(self, captions: Sequence[str]) -> tuple[float, float]:
        errors, overlaps, clips = [], [], self.validation
        device = self.system.device
        for row, caption in enumerate(captions):
            melted = to_unit(clips.melted[row : row + 1]).to(device)
            first = None if clips.first is None else clips.first[row : row + 1]
            drawn, outline = self.refiner(melted, self.read([caption]), first)
            near, found = around(clips.touched[row : row + 1].to(device)), outline[0] > 0
            ways = to_unit(clips.video[row]).to(device)
            error = (near * (drawn - ways).abs().mean(1)).sum((1, 2, 3)) / near.sum().clamp(min=1)
            actors = clips.actors[row].to(device) > 0
            overlap = (found & actors).sum((1, 2, 3)) / (found | actors).sum((1, 2, 3)).clamp(min=1)
            errors.append(float(error.min()))
            overlaps.append(float(overlap.max()))
        return sum(errors) / len(errors), sum(overlaps) / len(overlaps)

    @torch.no_grad()
    def picture(self) -> Tensor:
        """Of each of some fixed clips three rows: melted, drawn again, and as it should be."""
        few = min(4, len(self.validation.captions))
        melted = self.validation.melted[:few]
        text = self.read(self.validation.captions[:few])
        drawn = to_bytes(self.refiner.refine(to_unit(melted).to(self.system.device), text)).cpu()
        rows = torch.stack((melted.cpu(), drawn, self.validation.video[:few, 0].cpu()))
        return film(rearrange(rows, "s b t h w c -> (b s) t h w c"))

    def export(self, folder: Path) -> None:
        """Write the whole model folder, with the refiner in it."""
        self.system.save(Path(folder))


def around(touched: Tensor) -> Tensor:
    """Where `b t h w` is true, and within half of `AROUND` of it, 1; elsewhere 0."""
    return max_pool2d(touched.float(), AROUND, 1, AROUND // 2)
