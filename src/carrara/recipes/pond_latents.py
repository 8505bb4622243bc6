"""The second stage of a model of the pond: clips of its scenes, of its own shape and of others, encoded once."""

from __future__ import annotations

from functools import cache as once
from pathlib import Path

import torch

from carrara.core.types import VideoShape
from carrara.core.weights import fingerprint
from carrara.data.latents import LatentCache
from carrara.recipes.pond_data import ClipSource, encode_clips
from carrara.recipes.pond_denoiser import DenoiserStage
from carrara.recipes.pond_shapes import bucket_source
from carrara.recipes.scene_numbers import CACHED_SCENES, VALIDATION_SCENES
from carrara.systems.folder import read_autoencoder
from carrara.training.parallel import alone_first


class ClipCaches:
    """The caches of a run, in its folder: of clips encoded by its trained autoencoder, which is read where one lacks
    clips, and not otherwise."""

    def __init__(self, folder: Path, trained: Path, stage: DenoiserStage, device: torch.device) -> None:
        self.folder, self.stage, self.device = folder, stage, device
        self.made_by = fingerprint(sorted(trained.iterdir()))
        self.encoder = once(lambda: read_autoencoder(trained).to(device))

    def trained_on(self, source: ClipSource) -> LatentCache:
        """Clips of the recipe's own shape."""
        return self._filled("latents", source, CACHED_SCENES, self.stage.clips)

    def validated_on(self, source: ClipSource) -> LatentCache:
        """Clips of other scenes."""
        return self._filled("latents-validation", source, VALIDATION_SCENES, self.stage.validation)

    def of_buckets(self, own: VideoShape, fps: float) -> list[LatentCache]:
        """Clips of the other shapes, of the scenes that are trained on."""
        buckets, caches = self.stage.buckets, []
        for name, shape in buckets.parsed().items():
            source = bucket_source(shape, own, buckets, fps, self.stage.mix, self.device)
            home = f"latents-{name}{'-cropped' if buckets.crop else ''}"
            caches.append(self._filled(home, source, CACHED_SCENES, buckets.clips or self.stage.clips))
        return caches

    def _filled(self, name: str, source: ClipSource, first: int, count: int) -> LatentCache:
        """One of them, with so many clips from the first scene on."""
        folder = self.folder / name
        with alone_first():
            encode_clips(folder, source, self.encoder, first, count, self.made_by, self.stage.shard)
        return LatentCache.open(folder, self.made_by, self.device)
