"""A finished model whose answers another transformer learns, and whose words it takes."""

from __future__ import annotations

from pathlib import Path

import torch

from carrara.core.weights import same_weights
from carrara.systems.find import find_model
from carrara.systems.folder import read_autoencoder
from carrara.systems.latent import LatentVideo


def check_words(teacher: str | None, train_text: bool, start: str | None) -> None:
    """Refuse (ValueError) a run whose text encoder would come from two models, or never learn, and a teacher that is
    not there. start: the model that goes on, if any."""
    if teacher:
        if start:
            raise ValueError("start, denoiser.teacher: a model that goes on reads its own words; give one of them")
        find_model(teacher)
    elif not train_text and not start:
        raise ValueError("denoiser.train_text=False: a text encoder that knows nothing yet would stay so")


def open_teacher(name: str, trained: Path, text_width: int, device: torch.device) -> LatentVideo:
    """The teacher of this name. Raises ValueError for one of another text width, or of another autoencoder than the one
    in `trained`, for it would be asked about latents that it does not know."""
    teacher = LatentVideo.load(find_model(name), torch.float32)
    if (width := teacher.text_encoder.config.d_model) != text_width:
        raise ValueError(f"denoiser.text_width={text_width}: the text encoder is the teacher's, of width {width}")
    if not same_weights(read_autoencoder(trained), teacher.autoencoder, torch.float16):
        raise ValueError(
            f"denoiser.teacher={name!r}: its autoencoder is not the one that this run's clips are encoded by; give the "
            "run a copy of it (autoencoder/model), or another teacher"
        )
    return teacher.to(device)
