"""Balls that move as mechanics would have it: a latent video model that continues the clips of `data/phyworld.py`.

    carrara train phyworld -o runs/phyworld
    carrara train phyworld --start pond -o runs/phyworld

The stages are those of the pond's recipe on other clips: an autoencoder, a cache of latents, a denoiser. What differs:
nearly every noise field of the denoiser has a known beginning, so that it learns to continue (Kang et al. 2024, arXiv
2411.02385, condition on three frames; here on any 1 + 2k, two frames being one latent); captions only name the kind of
scene. With `--start` a finished model goes on: its autoencoder and tokenizer stay, all else learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from carrara.autoencoders.losses import AutoencoderLossConfig
from carrara.autoencoders.video_config import VideoAutoencoderConfig, small_64
from carrara.core.config import choose, from_dict, to_dict
from carrara.core.types import VideoShape
from carrara.data.batches import indices
from carrara.data.batches import mix as mix_seed
from carrara.data.latents import LatentCache
from carrara.data.phyworld import FPS, FRAMES, KINDS, BallScene, caption, render_balls, sample_balls
from carrara.data.pond.sampling import Mix
from carrara.denoisers.dit import DiTConfig
from carrara.diffusion.fields import FieldMix
from carrara.recipes.pond import DenoiserStage, PondRecipe
from carrara.recipes.pond_autoencoder import AutoencoderStage
from carrara.recipes.pond_data import frames_per_latent
from carrara.systems.latent import Sampling
from carrara.systems.phases import CaptionedLatents, DenoiserPhase, PixelBatch
from carrara.text.tokenizer import Tokenizer, train_tokenizer
from carrara.training.config import TrainConfig


@dataclass(frozen=True)
class BallWorld:
    """Which kinds of scene are drawn, equally often."""

    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("kinds=(): name at least one kind of scene")
        for kind in self.kinds:
            choose("kind", kind, dict.fromkeys(KINDS))


class BallSource:
    """Rendered clips of balls by scene number; what `PixelSource` is for the pond."""

    def __init__(self, shape: VideoShape, fps: float, world: BallWorld, device: torch.device) -> None:
        self.shape, self.fps, self.world, self.device = shape, fps, world, device

    def scenes(self, first: int, count: int) -> list[BallScene]:
        kinds = self.world.kinds
        return [sample_balls(number, kinds[number % len(kinds)]) for number in range(first, first + count)]

    def render(self, scenes: Sequence[BallScene], frames: int, first: int = 0) -> PixelBatch:
        rendered = render_balls(scenes, replace(self.shape, frames=frames), self.fps, self.device, first)
        return PixelBatch(rendered.video, rendered.mask)

    def batch(self, first: int, count: int) -> PixelBatch:
        """Whole clips of the scenes first..first+count-1."""
        return self.render(self.scenes(first, count), self.shape.frames)

    def pieces(self, first: int, count: int, frames: int) -> PixelBatch:
        """So many frames of each scene's clip, from anywhere in it."""
        rest = self.shape.frames - frames + 1
        drawn = [
            self.render([scene], frames, mix_seed(first + index) % rest)
            for index, scene in enumerate(self.scenes(first, count))
        ]
        return PixelBatch(torch.cat([one.video for one in drawn]), torch.cat([one.actors for one in drawn]))


@dataclass(frozen=True)
class PhyWorldRecipe(PondRecipe):
    """Everything that decides the model. What the stages say of the pond (mix, crops, captions) has no effect."""

    frames: int = FRAMES
    fps: float = FPS
    width: int = 64
    height: int = 64
    world: BallWorld = field(default_factory=BallWorld)

    kind = "phyworld"

    def __post_init__(self) -> None:
        if self.denoiser.buckets.shapes:
            raise ValueError("buckets.shapes: only the pond is rendered in other shapes; leave them out")

    @property
    def example(self) -> str:
        """A prompt that the trained model understands."""
        return caption(sample_balls(0, self.world.kinds[0]))

    def source(self, mix: Mix, device: torch.device) -> BallSource:
        return BallSource(self.shape, self.fps, self.world, device)

    def denoiser_phase(
        self, trained: Path, cache: LatentCache, validation: LatentCache, device: torch.device
    ) -> DenoiserPhase:
        """The system, fresh or begun, and the data that its transformer and text encoder learn from."""
        stage = self.denoiser
        system = self.system(trained, ball_words, device)
        return DenoiserPhase(
            system,
            self.batches(cache, stage.batch),
            ball_latents(validation, stage.validation, 0)(0),
            stage.fields,
            stage.sampling,
            [caption(sample_balls(0, kind)) for kind in self.world.kinds],
            self.shape,
            times=stage.times,
        )

    def batches(self, cache: LatentCache, size: int) -> Callable[[int], CaptionedLatents]:
        return ball_latents(cache, size, self.seed)

    def on_images(self, step: int) -> bool:
        return False

    def _settings(self, stage: str) -> dict[str, Any]:
        return {**super()._settings(stage), "world": to_dict(self.world)}


def ball_words() -> Tokenizer:
    """A tokenizer that has every word of the balls' captions as one token."""
    return train_tokenizer([caption(sample_balls(0, kind)) for kind in KINDS])


def ball_latents(cache: LatentCache, batch: int, seed: int) -> Callable[[int], CaptionedLatents]:
    """Batches of a cache as a function of the step, every clip with its plain caption."""

    stride = frames_per_latent(cache)

    def at(step: int) -> CaptionedLatents:
        clips = cache[indices(step, batch, len(cache), seed)]
        assert clips.keyframes is not None
        assert clips.frames is not None
        said = [caption(from_dict(BallScene, record["scene"], "scene")) for record in clips.records]
        keyframes = rearrange(clips.keyframes, "b k c h w -> b c k h w")
        return CaptionedLatents(clips.latents, said, keyframes, clips.frames.float() / stride)

    return at


CONTINUING = FieldMix(equal=0.1, prefix=0.9, keyframe=0.0, independent=0.0, region=0.0)


def phyworld() -> PhyWorldRecipe:
    """PhyWorld's balls at 64 x 64 and 33 frames, on two CPU cores: 10,000 clips of each kind.

    The smallest published training has 30,000 of one kind, 22.5 million parameters and 100,000 steps of 256 on 32
    GPUs; a GPU goes further with `--denoiser.clips 90000 --denoiser.model.heads 6 --denoiser.model.layers 12
    --denoiser.model.ffn-dim 1536 --denoiser.batch 256 --denoiser.train.minutes 240`.
    """
    return PhyWorldRecipe(
        AutoencoderStage(
            small_64(),
            TrainConfig(
                minutes=45,
                warmup=50,
                decay_share=0.4,
                learning_rate=2e-4,
                matrix_learning_rate=4e-4,
                optimizer="muon",
                weight_decay=0.0,
                prefetch=False,
                validate_every=500,
                picture_every=1000,
            ),
            AutoencoderLossConfig(l1=0, squared=4, gradient=0, kl=3e-5),
            batch=4,
            piece_batch=12,
            images=2000,
            image_rates=5,
            image_batch=32,
        ),
        DenoiserStage(
            DiTConfig(heads=4, head_dim=64, layers=8, ffn_dim=1024),
            TrainConfig(
                minutes=60,
                warmup=100,
                optimizer="muon",
                matrix_learning_rate=2e-3,
                prefetch=False,
                validate_every=500,
                picture_every=1000,
            ),
            clips=30_000,
            batch=48,
            text_width=64,
            text_layers=1,
            fields=CONTINUING,
            sampling=Sampling(steps=30, guidance=1.0, shift=1.0),
        ),
    )


def phyworld_tiny() -> PhyWorldRecipe:
    """Every stage in seconds at 32 x 32, to see that training works on a machine; what it makes is noise."""
    steps = TrainConfig(steps=4, warmup=1, precision="float32", log_every=2, validate_every=2, picture_every=4)
    return PhyWorldRecipe(
        AutoencoderStage(
            VideoAutoencoderConfig(8, 8, 8, (1, 2, 2, 2), 1, patch=2),
            steps,
            batch=2,
            piece_batch=2,
            piece_frames=5,
            images=2,
            image_batch=4,
            validation=4,
        ),
        DenoiserStage(
            DiTConfig(heads=2, head_dim=16, layers=2, ffn_dim=64),
            steps,
            clips=6,
            shard=3,
            batch=4,
            validation=3,
            text_width=32,
            text_layers=1,
            fields=CONTINUING,
            sampling=Sampling(steps=2, guidance=1.0, shift=1.0),
        ),
        width=32,
        height=32,
        frames=9,
    )
