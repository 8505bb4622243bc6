"""A denoiser of single vectors: from a prompt to the embedding of an image that would show it.

The diffusion prior of Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents", section
2.2, which Make-A-Video takes as its only reader of text. As there, it answers the clean embedding itself. Not standard:
it is a residual perceptron told of the text by modulation, where theirs is a transformer over one token a quantity;
embeddings of a simulated world are narrow, and one query over the prompt's tokens tells it what they say.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from carrara.core.config import at_least
from carrara.core.types import TextStates
from carrara.denoisers.unet_blocks import TextPool
from carrara.nn.layers import linear32, sinusoid


@dataclass(frozen=True)
class PriorConfig:
    """Sizes. embedding: of the vectors; text_dim: of the states of prompts; dim: width; blocks: residual blocks."""

    embedding: int = 64
    text_dim: int = 128
    dim: int = 256
    blocks: int = 3

    def __post_init__(self) -> None:
        at_least(self, 1, "embedding", "text_dim", "dim", "blocks")
        if self.dim % 2:
            raise ValueError(f"dim={self.dim}: must be even")


class PriorBlock(nn.Module):
    """Norm, shift and scale by what is told, two layers; the last begins at zero."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.told = nn.Linear(dim, 2 * dim)
        self.rise, self.fall = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale = linear32(self.told, told).chunk(2, dim=-1)
        h = self.norm(x) * (1 + scale) + shift
        return x + linear32(self.fall, F.silu(linear32(self.rise, h)))


class Prior(nn.Module):
    """A denoiser over vectors of about unit variance in each component; see the module. Always in float32."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.level = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.text = TextPool(config.text_dim, dim)
        self.vector = nn.Linear(config.embedding, dim)
        self.enter, self.leave = nn.Linear(config.embedding, dim), nn.Linear(dim, config.embedding)
        self.blocks = nn.ModuleList(PriorBlock(dim) for _ in range(config.blocks))

    def forward(self, x: Tensor, t: Tensor, text: TextStates, vector: Tensor) -> Tensor:
        """The estimate of the clean vectors.

        x: noised, `b d`; t: times `(b,)` in [0, 1]; text: the prompts' states; vector: their embeddings `b d`, on the
        scale of x. Raises ValueError where shapes do not fit.
        """
        wanted = (len(x), self.config.embedding)
        for name, given in (("x", x), ("vector", vector)):
            if given.shape != wanted:
                raise ValueError(f"{name} has shape {tuple(given.shape)}: expected {wanted}")
        if text.states.shape[0] != len(x) or text.states.shape[2] != self.config.text_dim:
            expected = f"({len(x)}, tokens, {self.config.text_dim})"
            raise ValueError(f"text states have shape {tuple(text.states.shape)}: expected {expected}")
        with torch.autocast(x.device.type, enabled=False):
            past = torch.arange(text.states.shape[1], device=x.device) >= text.lengths[:, None].to(x.device)
            bias = torch.zeros(past.shape, device=x.device).masked_fill(past, -torch.inf)
            rise, _, fall = self.level.children()
            assert isinstance(rise, nn.Linear)
            assert isinstance(fall, nn.Linear)
            told = linear32(fall, F.silu(linear32(rise, sinusoid(t * 1000, self.config.dim))))
            told = F.silu(told + self.text(text.states, bias) + linear32(self.vector, vector.float()))
            h = linear32(self.enter, x.float())
            for block in self.blocks:
                h = block(h, told)
            return linear32(self.leave, h)

    def init_weights(self, seed: int) -> None:
        """Draw fresh weights, scaled by the number of their inputs; a fresh prior predicts 0."""
        generator = Generator().manual_seed(seed)
        zeros = {self.leave, *(block.fall for block in self.blocks)}
        for part in self.modules():
            if isinstance(part, nn.Linear):
                drawn = torch.randn(part.weight.shape, generator=generator) / part.in_features**0.5
                with torch.no_grad():
                    part.weight.copy_(torch.zeros_like(drawn) if part in zeros else drawn)
                    part.bias.zero_()
