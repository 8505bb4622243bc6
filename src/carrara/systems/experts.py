"""Two experts behind one denoiser: one for high noise levels, one for low ones (Wan 2.2 A14B).

Which one answers is decided by the level alone, so a sampler needs not know. Their text keys are computed once each,
and each may be guided by a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from carrara.core.types import Keyframes, TextStates
from carrara.denoisers.dit import DiT
from carrara.denoisers.dit_config import DiTConfig
from carrara.denoisers.first_block import FirstBlock
from carrara.denoisers.text_keys import TextKeys
from carrara.diffusion.grids import Denoise, GridPoint

Expert = DiT | FirstBlock


@dataclass(frozen=True)
class ExpertKeys:
    """What both experts read of the same prompts."""

    high: TextKeys
    low: TextKeys

    @property
    def batch(self) -> int:
        return self.high.batch

    def join(self, other: ExpertKeys) -> ExpertKeys:
        """Both prompts in one batch."""
        return ExpertKeys(self.high.join(other.high), self.low.join(other.low))


class Experts(nn.Module):
    """`high` answers at levels t >= boundary, `low` below it; a field counts as noisy as its noisiest position."""

    def __init__(self, high: Expert, low: Expert, boundary: float) -> None:
        super().__init__()
        if not 0 < boundary < 1:
            raise ValueError(f"boundary={boundary}: expected a noise level between 0 and 1, such as 0.875")
        for name in ("in_channels", "out_channels", "patch", "text_dim", "image_dim", "image_positions"):
            ours, theirs = getattr(high.config, name), getattr(low.config, name)
            if ours != theirs:
                raise ValueError(
                    f"the expert of high noise has {name}={ours!r}, that of low noise {theirs!r}; "
                    "these parts do not belong together"
                )
        self.high, self.low, self.boundary = high, low, boundary

    @property
    def config(self) -> DiTConfig:
        """The expert's of high noise; the other may differ in depth and width."""
        return self.high.config

    def read_text(self, text: TextStates, image: Tensor | None = None) -> ExpertKeys:
        """As `DiT.read_text`, for both."""
        return ExpertKeys(self.high.read_text(text, image), self.low.read_text(text, image))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: TextStates | ExpertKeys,
        keyframes: Keyframes | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """As `DiT.forward`. Where a batch lies on both sides of the boundary, both experts see all of it."""
        keys = text if isinstance(text, ExpertKeys) else self.read_text(text, image)
        noisy = t.flatten(1).amax(1) >= self.boundary if t.ndim > 1 else t >= self.boundary
        if noisy.all():
            return self.high(x, t, keys.high, keyframes)
        low = self.low(x, t, keys.low, keyframes)
        if not noisy.any():
            return low
        return torch.where(rearrange(noisy, "b -> b 1 1 1 1"), self.high(x, t, keys.high, keyframes), low)


def split_at(boundary: float, high: Denoise, low: Denoise) -> Denoise:
    """`high` where the network is told a level of at least the boundary, else `low`."""

    def denoise(x: Tensor, point: GridPoint) -> Tensor:
        return (high if point.told >= boundary else low)(x, point)

    return denoise
