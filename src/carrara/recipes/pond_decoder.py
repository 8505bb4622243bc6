"""A finished autoencoder's decoder, trained further while its encoder, and so every cached latent, stays as it is.

    carrara train pond-decoder --model runs/pond/denoiser/model -o runs/pond-decoder

The model is a whole model folder, which is written anew with the better decoder, or an autoencoder's folder
(`runs/pond/autoencoder/model`), so that the decoder can go on learning while a denoiser is trained on the latents. The
result ends up in `runs/pond-decoder/decoder/model`; `carrara train pond --decoder FOLDER` puts such a decoder into the
model that it writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from carrara.autoencoders.losses import AutoencoderLossConfig
from carrara.core.config import to_dict
from carrara.core.types import VideoShape
from carrara.core.weights import fingerprint
from carrara.data.pond.sampling import EVERYTHING, Mix
from carrara.recipes.device import chosen_device
from carrara.recipes.pond_data import PixelSource
from carrara.recipes.pond_pixels import PixelBatches
from carrara.recipes.runs import Recipe
from carrara.recipes.scene_numbers import DECODER_SCENES, VALIDATION_SCENES
from carrara.systems.decoder_phase import DecoderPhase
from carrara.systems.folder import read_autoencoder
from carrara.systems.latent import LatentVideo
from carrara.training.config import TrainConfig
from carrara.training.loop import train


@dataclass(frozen=True)
class DecoderRecipe(Recipe):
    """Everything that decides the decoder, beside the model it comes from.

    model: a model folder or an autoencoder's; shown: what the decoder learns from, in clips of `frames` frames of
    `width` x `height` at `fps`; validation: clips of the fixed validation batch. device: "cpu", "cuda" or "auto".
    """

    train: TrainConfig
    model: str = "runs/pond/autoencoder/model"
    loss: AutoencoderLossConfig = field(
        default_factory=lambda: AutoencoderLossConfig(l1=0, squared=4, gradient=0, kl=0)
    )
    mix: Mix = EVERYTHING
    shown: PixelBatches = field(
        default_factory=lambda: PixelBatches(batch=2, crop=32, crop_batch=8, piece_batch=16, image_every=4)
    )
    width: int = 64
    height: int = 64
    frames: int = 17
    fps: float = 8.0
    validation: int = 48
    seed: int = 0
    device: str = "auto"

    kind = "pond-decoder"

    def __post_init__(self) -> None:
        if self.validation < 1:
            raise ValueError(f"validation={self.validation}: must be at least 1")

    def _run(self, folder: Path) -> Path:
        settings = to_dict(self)
        kept = {name: settings[name] for name in ("loss", "mix", "shown", "width", "height", "frames", "fps", "seed")}
        phase, made_by = self.phase()
        return train(phase, self.train, folder / "decoder", {**kept, "model": made_by})

    def phase(self) -> tuple[DecoderPhase, str]:
        """What is trained, and the fingerprint of the weights it starts from."""
        folder, device, system = Path(self.model), torch.device(chosen_device(self.device)), None
        if (folder / "model_index.json").is_file():
            system = LatentVideo.load(folder)
            autoencoder, made_by = system.autoencoder, system.fingerprint
        elif (folder / "config.json").is_file():
            autoencoder, made_by = read_autoencoder(folder), fingerprint(sorted(folder.iterdir()))
        else:
            raise ValueError(
                f"{folder}: neither a model folder nor an autoencoder's; give what `carrara train pond` leaves, "
                "such as runs/pond/denoiser/model"
            )
        shape = VideoShape(self.frames, self.height, self.width)
        shape.latent(autoencoder.stride)
        source = PixelSource(shape, self.fps, self.mix, device)
        batches = self.shown.of(source, self.seed, DECODER_SCENES)
        validation = source.batch(VALIDATION_SCENES, self.validation)
        return DecoderPhase(autoencoder.to(device), batches, validation, self.loss, system), made_by


def pond_decoder() -> DecoderRecipe:
    """A finished autoencoder's decoder, trained further while the latents stay as they are."""
    return DecoderRecipe(
        TrainConfig(
            minutes=40,
            warmup=50,
            decay_share=0.5,
            optimizer="muon",
            weight_decay=0.0,
            prefetch=False,
            validate_every=500,
            picture_every=1000,
        )
    )
