"""Training a stage of a system of pixels: clips with independent images behind them, noised and predicted.

Joint training is that of Ho et al. 2022, "Video Diffusion Models", section 3: a batch has more images than its clips
show, and the layers that every frame passes learn from all of them. Which weights a phase trains is said when it is
made; the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from carrara.core.types import TextStates, VideoShape
from carrara.denoisers.unet3d import Conditions
from carrara.systems.latent import Sampling
from carrara.systems.phases import film, to_bytes, to_unit
from carrara.systems.pixel_system import PixelSystem
from carrara.systems.stage import Stage, draw_levels
from carrara.systems.step_flops import loss_flops

VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)


@dataclass(frozen=True)
class CaptionedClips:
    """Clips for a stage. video: uint8 `b t h w 3`; captions: one a clip; images: uint8 `b k h w 3`, with captions of
    their own in the order of `b k`; k may be 0."""

    video: Tensor
    captions: Sequence[str]
    images: Tensor
    image_captions: Sequence[str]

    def __post_init__(self) -> None:
        clips, images = len(self.video), self.images.shape[0] * self.images.shape[1]
        if len(self.captions) != clips or len(self.images) != clips or len(self.image_captions) != images:
            raise ValueError(
                f"{clips} clips with {len(self.captions)} captions and {images} images with "
                f"{len(self.image_captions)}: give one caption each, and the same number of images with every clip"
            )

    @property
    def alone(self) -> int:
        return self.images.shape[1]

    def frames(self) -> Tensor:
        """Clips with their images behind them, `b 3 (t + k) h w` in [-1, 1]."""
        return to_unit(torch.cat((self.video, self.images), dim=1))

    def texts(self) -> list[str]:
        """Captions in the order of `Conditions.text`: of a clip, of its images, of the next clip, ..."""
        k = self.alone
        each = [self.image_captions[i * k : i * k + k] for i in range(len(self.captions))]
        return [text for caption, images in zip(self.captions, each) for text in (caption, *images)]


def is_unet_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Which weights of a U-Net Muon may train: filters and matrices of layers, not of the embeddings and the ends."""
    inside = any(part in name for part in (".down.", ".up.", ".middle."))
    return inside and parameter.ndim >= 2 and "distances" not in name and ".told." not in name


def read_once(read: Callable[[Sequence[str]], TextStates], texts: Sequence[str]) -> TextStates:
    """Encode prompts, equal ones once."""
    distinct = list(dict.fromkeys(texts))
    found = read(distinct)
    rows = torch.tensor([distinct.index(text) for text in texts], device=found.states.device)
    return TextStates(found.states[rows], found.lengths.to(rows.device)[rows], found.padded_length)


class StagePhase:
    """Train one network of a system, and with `text` the text encoder too.

    stage: the name of the network; batch: clips of a step; validation: fixed clips; sampling, shape, pictured: what
    `picture` draws; caption_dropout: how often the null caption stands for a caption, so that guidance can compare.
    """

    def __init__(
        self,
        system: PixelSystem,
        stage: str,
        batch: Callable[[int], CaptionedClips],
        validation: CaptionedClips,
        sampling: Sampling,
        shape: VideoShape,
        pictured: Sequence[str],
        text: bool = True,
        caption_dropout: float = 0.1,
    ) -> None:
        if stage not in system.networks:
            raise ValueError(f"stage={stage!r}: this system has {', '.join(system.networks)}")
        network = system.networks[stage]
        system.text_encoder.requires_grad_(text)
        network.requires_grad_(True)
        parts: dict[str, nn.Module] = {stage: network} | ({"text_encoder": system.text_encoder} if text else {})
        self.module: nn.Module = nn.ModuleDict(parts)
        self.system, self.stage, self.batch, self.validation = system, stage, batch, validation
        self.sampling, self.shape, self.pictured = sampling, shape, pictured
        self.caption_dropout = caption_dropout

    def process(self) -> Stage:
        return Stage(self.system.networks[self.stage], self.system.settings.process)

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        """What Muon may train."""
        return is_unet_matrix(name, parameter)

    def loss(self, batch: CaptionedClips, step: int, generator: Generator) -> dict[str, Tensor]:
        """The mean over all frames of the error of the prediction; also that of clips and images by themselves."""
        device = generator.device
        frames = batch.frames().to(device)
        levels = draw_levels(len(frames), batch.alone, frames.shape[2], generator)
        texts = batch.texts()
        dropped = torch.rand(len(texts), generator=generator, device=device) < self.caption_dropout
        read = self.read(["" if drop else text for text, drop in zip(texts, dropped.tolist())])
        noise = torch.randn(frames.shape, generator=generator, device=device)
        error = self.process().errors(frames, noise, levels, Conditions(read), batch.alone)
        found = {"loss": error.mean()}
        if batch.alone:
            clip, images = error.detach().split((frames.shape[2] - batch.alone, batch.alone), dim=1)
            found |= {"clip": clip.mean(), "images": images.mean()}
        return found

    def read(self, texts: Sequence[str]) -> TextStates:
        """Encode prompts, equal ones once: the null caption is most frequent."""
        return read_once(self.system.read, texts)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Error per noise level on the fixed clips and fixed noise, so that two checkpoints compare."""
        device = self.system.device
        clips = to_unit(self.validation.video).to(device)
        noise = torch.randn(clips.shape, generator=Generator().manual_seed(0)).to(device)
        conditions = Conditions(self.read(self.validation.captions))
        found = {}
        for level in VALIDATION_LEVELS:
            t = torch.full((len(clips),), level, device=device)
            found[f"loss_at_{level:g}"] = float(self.process().errors(clips, noise, t, conditions).mean())
        return {**found, "loss_mean": sum(found.values()) / len(found)}

    @torch.no_grad()
    def picture(self) -> Tensor:
        """A row of frames for each fixed prompt, drawn by this stage from text alone, from fixed seeds."""
        size = (3, self.shape.frames, self.shape.height, self.shape.width)
        generators = [Generator().manual_seed(seed) for seed in range(len(self.pictured))]
        null = Conditions(self.system.read([""] * len(self.pictured)))
        conditions = Conditions(self.system.read(self.pictured))
        clips = self.process().draw(size, conditions, null, self.sampling, generators)
        return film(to_bytes(clips), 8)

    def export(self, folder: Path) -> None:
        """Write the system's folder as it is by now."""
        self.system.save(Path(folder))

    def step_flops(self) -> int:
        """The compute of one training step, forward and backward: that of the first clip, times the clips of a step."""
        batch = self.batch(0)
        one = CaptionedClips(batch.video[:1], batch.captions[:1], batch.images[:1], batch.image_captions[: batch.alone])
        return loss_flops(self, one) * len(batch.video)
