"""The two trainable phases of the latent video system: first the autoencoder, then the denoiser with its text encoder.

A phase knows losses and pictures, not where batches come from: it receives functions of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Generator, Tensor, nn

from carrara.autoencoders.losses import AutoencoderLossConfig, actor_boxes, autoencoder_loss, psnr
from carrara.autoencoders.video import LatentStatistics, VideoAutoencoder
from carrara.core.types import Keyframes, VideoShape
from carrara.diffusion.fields import Field, FieldMix, TimeDraw, draw_count, draw_field, draw_step
from carrara.systems.alignment import Content, ContentHead, outputs_of
from carrara.systems.denoising import ImageContext
from carrara.systems.folder import write_autoencoder
from carrara.systems.latent import LatentVideo, Sampling

VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)


@dataclass(frozen=True)
class PixelBatch:
    """Clips for the autoencoder. video: uint8 `b t h w 3`; actors: uint8 `b t h w`, nonzero where an actor shows."""

    video: Tensor
    actors: Tensor


@dataclass(frozen=True)
class CaptionedLatents:
    """Clips for the denoiser.

    latents: `b c f h w`, normalised (f = 1 for images); captions: one text each; keyframes: `b c k h w`, frames encoded
    alone, with their times `(b, k)` in latent frames; the last of the k is the clip's last frame; content: what the
    clips truly show, where that is to be learned too; image: what an image-to-video network reads of their frames.
    """

    latents: Tensor
    captions: Sequence[str]
    keyframes: Tensor
    keyframe_times: Tensor
    content: Content | None = None
    image: ImageContext = field(default_factory=ImageContext)


def to_unit(video: Tensor) -> Tensor:
    """uint8 `b t h w 3` to float `b 3 t h w` in [-1, 1]."""
    return rearrange(video, "b t h w c -> b c t h w").to(torch.float32).div_(127.5).sub_(1.0)


def to_bytes(video: Tensor) -> Tensor:
    """Float `b 3 t h w` in [-1, 1] to uint8 `b t h w 3`."""
    levels = video.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return rearrange(levels, "b c t h w -> b t h w c").contiguous()


def film(video: Tensor, count: int = 6) -> Tensor:
    """Clips `b t h w 3` as one picture `h w 3`: a row a clip, `count` frames across it."""
    times = torch.linspace(0, video.shape[1] - 1, min(count, video.shape[1])).round().long()
    return rearrange(video[:, times], "b t h w c -> (b h) (t w) c").contiguous().cpu()


class AutoencoderPhase:
    """Train the autoencoder to reconstruct; the pixels of actors count more."""

    def __init__(
        self,
        autoencoder: VideoAutoencoder,
        batch: Callable[[int], PixelBatch],
        validation: PixelBatch,
        config: AutoencoderLossConfig,
        validation_batch: int = 4,
    ) -> None:
        self.module: nn.Module = autoencoder
        self.autoencoder = autoencoder
        self.batch = batch
        self.validation = validation
        self.config = config
        self.validation_batch = validation_batch

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        """What Muon may train: the filters inside the levels and the middle."""
        return (".levels." in name or ".middle." in name) and parameter.ndim > 3 and parameter[0].numel() > 1

    def loss(self, batch: PixelBatch, step: int, generator: Generator) -> dict[str, Tensor]:
        video = to_unit(batch.video)
        reconstruction, posterior = self.autoencoder.reconstruct(video, generator)
        return autoencoder_loss(video, reconstruction, posterior, batch.actors > 0, self.config)

    @torch.no_grad()
    def reconstruct(self, video: Tensor) -> Tensor:
        """Reconstruct clips from their mean latents; uint8 `b t h w 3` in and out."""
        parts = video.split(self.validation_batch)
        return torch.cat([to_bytes(self.autoencoder.decode(self.autoencoder.encode(to_unit(part)))) for part in parts])

    def validate(self) -> dict[str, float]:
        """PSNR in dB on the fixed clips: over the whole frame, the actors' boxes, and the actors' pixels."""
        made = to_unit(self.reconstruct(self.validation.video))
        truth = to_unit(self.validation.video)
        actors = self.validation.actors
        return {
            "psnr": float(psnr(made, truth).mean()),
            "psnr_boxes": float(psnr(made, truth, actor_boxes(actors)).nanmean()),
            "psnr_actors": float(psnr(made, truth, actors > 0).nanmean()),
        }

    def picture(self) -> Tensor:
        """Every other row a clip, below each its reconstruction."""
        few = self.validation.video[:4]
        return film(rearrange(torch.stack([few, self.reconstruct(few)]), "s b t h w c -> (b s) t h w c"))

    def export(self, folder: Path) -> None:
        """Measure the latents on the fixed clips, normalise by them from now on, and write the part's folder."""
        self.autoencoder.normalise_by(self.measure())
        write_autoencoder(self.autoencoder, Path(folder), torch.float32)

    def measure(self) -> LatentStatistics:
        """Mean and deviation of the latents, per channel, over the fixed clips."""
        return self.autoencoder.measure(to_unit(part) for part in self.validation.video.split(self.validation_batch))


class DenoiserPhase:
    """Train the transformer and the text encoder together to undo noise on encoded clips (flow matching).

    times: how noise levels are drawn; image_times: those of single frames, None for the same way; content_head: learns
    from the transformer's middle what batches truly show (see `alignment.py`). It is trained and checkpointed with the
    model, and no part of it; images: what an image-to-video network reads beside the pictured prompts; teacher: a
    transformer that reads the same text: what it says of a noised clip is learned instead of what the clip was, so that
    there is less chance to average away (Hinton et al. 2015, arXiv:1503.02531); train_text: else the text encoder stays
    as it is. levels: at which `validate` measures, always against the clips.
    """

    levels: Sequence[float] = VALIDATION_LEVELS

    def __init__(
        self,
        system: LatentVideo,
        batch: Callable[[int], CaptionedLatents],
        validation: CaptionedLatents,
        mix: FieldMix,
        sampling: Sampling,
        pictured: Sequence[str],
        shape: VideoShape,
        caption_dropout: float = 0.1,
        times: TimeDraw | None = None,
        image_times: TimeDraw | None = None,
        content_head: ContentHead | None = None,
        images: ImageContext | None = None,
        teacher: nn.Module | None = None,
        train_text: bool = True,
    ) -> None:
        parts: dict[str, nn.Module] = {"denoiser": system.denoiser}
        if train_text:
            parts["text_encoder"] = system.text_encoder
        for fixed in (teacher, None if train_text else system.text_encoder):
            if fixed is not None:
                fixed.eval().requires_grad_(False)
        if content_head is not None:
            parts["content_head"] = content_head
        self.module: nn.Module = nn.ModuleDict(parts)
        self.system = system
        self.batch = batch
        self.validation = validation
        self.mix = mix
        self.sampling = sampling
        self.pictured = pictured
        self.shape = shape
        self.caption_dropout = caption_dropout
        self.times = times
        self.image_times = image_times
        self.content_head = content_head
        self.images = images or ImageContext()
        self.teacher = teacher

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        """What Muon may train: the matrices inside the transformer's blocks."""
        return name.startswith("denoiser.blocks.") and parameter.ndim == 2

    def loss(self, batch: CaptionedLatents, step: int, generator: Generator) -> dict[str, Tensor]:
        latents = batch.latents.to(self.system.device, torch.float32)
        b, _, f, _, _ = latents.shape
        device = generator.device
        mix = draw_step(self.mix, generator) if f > 1 else self.mix
        stored = batch.keyframes.shape[2]
        count = draw_count(stored, generator)
        _, rows, columns = self.system.patch
        grid = (latents.shape[3] // rows, latents.shape[4] // columns)
        times = self.times if f > 1 or self.image_times is None else self.image_times
        field = draw_field(b, f, generator, mix, times, stored, count, grid)
        dropped = torch.rand(b, generator=generator, device=device) < self.caption_dropout
        captions = ["" if drop else text for text, drop in zip(batch.captions, dropped.tolist())]
        noise = torch.randn(latents.shape, generator=generator, device=device)
        keyframes = take_keyframes(batch, field, generator) if f > 1 and mix.keyframe == 1 else None
        levels, weights = place_levels(field, self.system.patch)
        if self.content_head is None:
            error = self._errors(latents, noise, levels, captions, keyframes, batch.image, self.teacher)
            return {"loss": _mean(error, weights)}
        if batch.content is None:
            raise ValueError("a content head but batches without content: give both or neither")
        alignment = self.content_head.alignment
        with outputs_of(self.system.denoiser.blocks[alignment.block - 1]) as features:
            error = self._errors(latents, noise, levels, captions, keyframes, batch.image, self.teacher)
        flow = _mean(error, weights)
        # Tokens are grouped by noise level inside the transformer; one after the other they are the latents' order.
        told = self.content_head.loss(features[0].flatten(1, 2), batch.content.to(latents.device))
        return {"loss": flow + alignment.weight * told, "flow": flow, "content": told}

    def _errors(
        self,
        latents: Tensor,
        noise: Tensor,
        levels: Tensor,
        captions: Sequence[str],
        keyframes: Keyframes | None,
        image: ImageContext,
        teacher: nn.Module | None = None,
    ) -> Tensor:
        """Mean square error of the flow where levels are, `(b, f)` or `(b, f, h, w)`; the target is noise - data, or
        what the teacher says."""
        placed = rearrange(levels, "b f -> b 1 f 1 1") if levels.ndim == 2 else levels[:, None]
        told = levels
        if levels.ndim > 2:
            _, rows, columns = self.system.patch
            told = rearrange(levels[:, :, ::rows, ::columns], "b f h w -> b (f h w)")
        x, image = torch.lerp(latents, noise, placed), image.to(latents.device)
        x = x if image.channels is None else torch.cat((x, image.channels), dim=1)
        text, target = self.system.read(captions), noise - latents
        if teacher is not None:
            with torch.no_grad():
                target = teacher(x, told, text, keyframes, image=image.states).float()
        flow = self.system.network(x, told, text, keyframes, image=image.states)
        error = (flow.float() - target).square()
        return error.mean(dim=(1, 3, 4)) if levels.ndim == 2 else error.mean(dim=1)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss per noise level on fixed clips and fixed noise, so that two checkpoints compare."""
        device = self.system.device
        latents = self.validation.latents.to(device, torch.float32)
        noise = torch.randn(latents.shape, generator=Generator().manual_seed(0)).to(device)
        found = {}
        for level in self.levels:
            levels = torch.full((latents.shape[0], latents.shape[2]), level, device=device)
            found[f"loss_at_{level:g}"] = float(
                self._errors(latents, noise, levels, self.validation.captions, None, self.validation.image).mean()
            )
        return {**found, "loss_mean": sum(found.values()) / len(found)}

    @torch.no_grad()
    def picture(self) -> Tensor:
        """A row of frames for each fixed prompt, from fixed seeds."""
        seeds = list(range(len(self.pictured)))
        image = self.images.to(self.system.device)
        latents = self.system.sample(self.pictured, seeds, self.shape, self.sampling, image=image)
        return film(to_bytes(self.system.autoencoder.decode(latents)))

    def export(self, folder: Path) -> None:
        """Write the whole model folder, runnable here and by diffusers."""
        system = self.system
        defaults = replace(
            system.defaults,
            frames=self.shape.frames,
            height=self.shape.height,
            width=self.shape.width,
            sampling=self.sampling,
        )
        parts = (system.autoencoder, system.denoiser, system.text_encoder, system.tokenizer, defaults)
        LatentVideo(*parts, refiner=system.refiner).save(Path(folder))


def _mean(error: Tensor, weights: Tensor) -> Tensor:
    return (error * weights).sum() / weights.sum().clamp(min=1)


def place_levels(field: Field, patch: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Levels and loss weights, per latent frame, or per latent position `(b, f, h, w)` where a region is known."""
    if field.region is None:
        return field.levels, field.weights
    known = repeat(field.region, "b h w -> b f (h p) (w q)", f=field.levels.shape[1], p=patch[1], q=patch[2])
    levels = torch.where(known, field.known_levels[:, None, None, None], field.levels[:, :, None, None])
    return levels, torch.where(known, 0.0, field.weights[:, :, None, None])


def take_keyframes(batch: CaptionedLatents, field: Field, generator: Generator) -> Keyframes:
    """The keyframes that the field gives each clip, at its level of what is known."""
    device = generator.device
    rows = torch.arange(len(field.keyframes), device=device)[:, None]
    latents = rearrange(batch.keyframes, "b c k h w -> b k c h w").to(device, torch.float32)[rows, field.keyframes]
    times = batch.keyframe_times.to(device, torch.float32)[rows, field.keyframes]
    noise = torch.randn(latents.shape, generator=generator, device=device)
    latents = torch.lerp(latents, noise, rearrange(field.known_levels, "b -> b 1 1 1 1"))
    return Keyframes(rearrange(latents, "b k c h w -> b c k h w"), times, field.known_levels[:, None].expand_as(times))
