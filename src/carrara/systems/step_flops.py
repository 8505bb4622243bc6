"""What one training step of any phase takes, counted by taking it."""

from __future__ import annotations

from typing import Any

from torch import Generator

from carrara.core.types import Phase
from carrara.nn.flops import count_flops


def loss_flops(phase: Phase, batch: Any, step: int = 0, seed: int = 0) -> int:
    """FLOP of the loss of a batch and of its gradients; step, seed: as the training loop would have them."""
    parameters = list(phase.module.parameters())
    generator = Generator(parameters[0].device).manual_seed(seed)
    return count_flops(lambda: phase.loss(batch, step, generator)["loss"], parameters)
