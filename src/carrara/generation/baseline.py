"""The frame-by-frame baseline: every frame of a clip made alone, as a clip of one frame.

The control that shows what attention across time buys: same weights, prompt, sampler and size, but no frame sees
another. Two ways to draw the noise:

- fresh: every frame has its own. Each frame answers the prompt, and they have nothing else in common: flicker.
- shared: all frames have the same. Then nothing at all tells them apart, prompt and noise being the same and rotary
  positions relative, so every frame is the same picture, and the picture is computed once: perfect consistency, no
  motion.

Neither says how a network trained on single images would do: this one was trained on whole clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from carrara.core.config import choose
from carrara.core.media import write_video
from carrara.core.types import VideoShape
from carrara.generation.request import Plan, Request
from carrara.generation.run import GenerationError, Model
from carrara.systems.phases import to_bytes

NOISES = {"fresh": "its own for every frame", "shared": "one for all frames"}
_BATCH = 8  # frames at a time: no more memory for a longer clip


def frame_seeds(seed: int, frames: int, noise: str) -> list[int]:
    """The seed of every frame's noise. The first frame's is the clip's own, so both kinds begin with one picture."""
    choose("noise", noise, NOISES)
    if noise == "shared":
        return [seed] * frames
    others = [np.random.SeedSequence((seed, frame)).generate_state(1, np.uint64) for frame in range(1, frames)]
    return [seed, *(int(drawn[0] >> np.uint64(1)) for drawn in others)]


@torch.inference_mode()
def frame_by_frame(model: Model, plan: Plan, noise: str) -> Tensor:
    """The plan's clip with every frame made alone: uint8 `t h w 3`. noise: "fresh" or "shared".

    Raises ValueError for another noise, GenerationError where latents are not finite.
    """
    seeds = frame_seeds(plan.seed, plan.shape.frames, noise)
    distinct = list(dict.fromkeys(seeds))
    shape = VideoShape(1, plan.shape.height, plan.shape.width)
    pictures = []
    for start in range(0, len(distinct), _BATCH):
        part = distinct[start : start + _BATCH]
        latents = model.system.sample([plan.prompt] * len(part), part, shape, plan.sampling, plan.negative)
        if not latents.isfinite().all():
            raise GenerationError(f"frame by frame, {noise} noise: the denoiser's output is not finite")
        video = model.system.finish(model.system.autoencoder.decode(latents), [plan.prompt] * len(part))
        pictures.append(rearrange(to_bytes(video), "b 1 h w c -> b h w c").cpu())
    return torch.cat(pictures)[[distinct.index(seed) for seed in seeds]]


@dataclass(frozen=True)
class FrameByFrame:
    """Writes clips made frame by frame; called as the evaluation calls whatever it measures.

    request: from a prompt and a seed to what the model itself would be asked, so that only attention differs.
    """

    model: Model
    request: Callable[[str, int], Request]
    noise: str

    def __post_init__(self) -> None:
        choose("noise", self.noise, NOISES)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        """Write `paths[i]`, replacing what is there, from `prompts[i]` and `seeds[i]`."""
        for prompt, seed, path in zip(prompts, seeds, paths):
            plan = self.model.plan(self.request(prompt, seed))
            about = {"frame by frame": f"{self.noise} noise", "prompt": prompt, "seed": str(seed)}
            write_video(path, frame_by_frame(self.model, plan, self.noise), plan.fps, about, overwrite=True)


def baselines(model: Model, request: Callable[[str, int], Request]) -> dict[str, FrameByFrame]:
    """Both kinds by the name of their row in a table."""
    return {f"frame by frame, {noise} noise": FrameByFrame(model, request, noise) for noise in NOISES}
