"""The first stage of a model of the pond: an autoencoder of its clips, which begins as copies of one of its frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from carrara.autoencoders.inflation import image_config, inflate
from carrara.autoencoders.losses import AutoencoderLossConfig
from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.config import at_least
from carrara.data.pond.sampling import Mix
from carrara.recipes.pond_data import ClipSource
from carrara.recipes.pond_pixels import PixelBatches
from carrara.recipes.scene_numbers import AUTOENCODER_SCENES, IMAGE_SCENES, VALIDATION_SCENES
from carrara.systems.folder import read_autoencoder
from carrara.systems.phases import AutoencoderPhase, PixelBatch
from carrara.training.checkpoint import checkpoints
from carrara.training.config import TrainConfig
from carrara.training.loop import load_ema, train


@dataclass(frozen=True)
class AutoencoderStage(PixelBatches):
    """How the autoencoder is trained: its shape, its loss, the world's mix, and what it is shown in which order.

    images: so many steps on single frames train an image model first, whose copies the autoencoder begins as (see
    `autoencoders/inflation.py`; 0: it learns from clips alone); image_rates: learning rates of that, as multiples of
    those of `train`; validation: clips of the fixed validation batch; start: a training folder whose averaged weights
    it begins from instead.
    """

    model: VideoAutoencoderConfig
    train: TrainConfig
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    mix: Mix = field(default_factory=Mix)
    images: int = 0
    image_rates: float = 1.0
    validation: int = 48
    start: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "validation")
        at_least(self, 0, "images")
        if self.images:
            image_config(self.model)


def train_autoencoder(
    stage: AutoencoderStage,
    source: ClipSource,
    seed: int,
    folder: Path,
    settings: Mapping[str, Any],
    device: torch.device,
) -> Path:
    """Train below `folder` and return the autoencoder's folder. settings: what must be the same at a resumption."""
    autoencoder = VideoAutoencoder(stage.model)
    autoencoder.initialise(torch.Generator().manual_seed(seed))
    validation = source.batch(VALIDATION_SCENES, stage.validation)
    if stage.start:
        load_ema(Path(stage.start), autoencoder)
    elif stage.images and not checkpoints(folder):
        image = train_image_model(stage, source, seed, validation, folder / "images", settings, device)
        inflate(image, autoencoder, torch.Generator().manual_seed(seed))
    batches = stage.of(source, seed, AUTOENCODER_SCENES)
    phase = AutoencoderPhase(autoencoder.to(device), batches, validation, stage.loss)
    return train(phase, stage.train, folder, settings)


def train_image_model(
    stage: AutoencoderStage,
    source: ClipSource,
    seed: int,
    clips: PixelBatch,
    folder: Path,
    settings: Mapping[str, Any],
    device: torch.device,
) -> VideoAutoencoder:
    """The model of single frames whose copies the autoencoder begins as, trained in its folder or found there.

    clips: of whose middle frames it is validated on.
    """
    image = VideoAutoencoder(image_config(stage.model))
    image.initialise(torch.Generator().manual_seed(seed)).to(device)
    middle = clips.video.shape[1] // 2
    validation = PixelBatch(clips.video[:, middle : middle + 1], clips.actors[:, middle : middle + 1])
    phase = AutoencoderPhase(image, stage.of(source, seed, IMAGE_SCENES, images=True), validation, stage.loss)
    budget = replace(
        stage.train,
        steps=stage.images,
        minutes=None,
        decay_at=None,
        learning_rate=stage.image_rates * stage.train.learning_rate,
        matrix_learning_rate=stage.image_rates * stage.train.matrix_learning_rate,
    )
    train(phase, budget, folder, settings)
    load_ema(folder, image)
    return image.cpu()


def with_decoder(autoencoder: VideoAutoencoder, folder: Path) -> VideoAutoencoder:
    """The autoencoder of this folder. Raises ValueError unless it encodes as `autoencoder` does, to the bit."""
    other = read_autoencoder(folder)
    ours, theirs = autoencoder.state_dict(), other.state_dict()
    encoding = [name for name in ours if not name.startswith(("decoder.", "from_latents."))]
    same = other.config == autoencoder.config and all(torch.equal(ours[name], theirs[name]) for name in encoding)
    if not same:
        raise ValueError(f"{folder}: its encoder is not this run's; train its decoder from this run's autoencoder")
    return other
