"""Watching a model work without changing it: every evaluation of the sampler, and what its attention weighs.

The sampler is watched through the function it is given, the network through hooks that are there for one evaluation:
neither knows of it, and a watched clip is the same clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carrara.diffusion.grids import GridPoint
from carrara.generation.request import Plan
from carrara.generation.run import Model
from carrara.systems.latent import LatentVideo


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of the denoiser: where on the grid, the noisy latents x, and the (guided) estimate of the data,
    both `1 c f h w`."""

    point: GridPoint
    x: Tensor
    denoised: Tensor


def sample_watched(model: Model, plan: Plan, progress: bool | None = None) -> tuple[Tensor, list[Evaluation]]:
    """The plan's latents `1 c f h w`, and every evaluation that led to them, in order."""
    seen: list[Evaluation] = []
    latents = model.sample(plan, progress, lambda point, x, denoised: seen.append(Evaluation(point, x, denoised)))
    return latents, seen


@torch.inference_mode()
def attention_weights(system: LatentVideo, prompt: str, evaluation: Evaluation, queries: Tensor) -> Tensor:
    """What the tokens `queries` (n indices) take in from every token of the clip: `(blocks, heads, n, m)` float32.

    Rows sum to 1. It is the network's answer to the prompt that is looked into, not the one to the negative prompt:
    the evaluation is made once more, with a hook before every block's self-attention that computes the weights of
    these rows from the same input.
    """
    found: list[Tensor] = []
    queries = queries.to(system.device)

    def look(layer: Any, inputs: tuple[Any, ...]) -> None:
        x, turns = inputs[:2]  # behind them, how a sequence is split over processes: it is whole here
        found.append(layer.weights(x, turns, queries)[0].float().cpu())

    hooks = [block.self_attention.register_forward_pre_hook(look) for block in system.denoiser.blocks]
    try:
        told = torch.full((1,), evaluation.point.told, dtype=torch.float64, device=system.device)
        system.denoiser(evaluation.x, told, system.read([prompt]))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found)
