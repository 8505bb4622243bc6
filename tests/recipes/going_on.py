"""What holds wherever a recipe goes on from a finished model."""

from __future__ import annotations

from pathlib import Path

import torch

from carrara.systems.latent import LatentVideo


def check_went_on(before: LatentVideo, after: LatentVideo, run: Path) -> None:
    """The autoencoder and the words stayed, and the transformer moved by no more than a few steps."""
    assert after.tokenizer.vocab_size == before.tokenizer.vocab_size
    for name, weight in before.autoencoder.state_dict().items():
        assert torch.equal(weight, after.autoencoder.state_dict()[name]), name
    moved = [
        float((weight - after.denoiser.state_dict()[name]).abs().max())
        for name, weight in before.denoiser.state_dict().items()
    ]
    assert 0 < max(moved) < 0.1, max(moved)  # four steps of the learning rate's size, not other weights
    assert not (run / "autoencoder").exists()
