"""A small contrastive text-image encoder: captions and images as unit vectors that point the same way if they match.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), at the size of a
simulated world. Not standard: the image tower keeps a 4 x 4 map of where things are, instead of their mean; captions
that are equal within a batch are all right answers, for a small world says the same of many images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from carrara.core.config import at_least
from carrara.core.types import TextStates

PLACES = 4  # rows and columns of the map that an image's embedding reads
MOST_SCALE = math.log(100.0)  # Radford et al. 2021, section 2.5


@dataclass(frozen=True)
class ContrastiveConfig:
    """Sizes. side: images are brought to side x side; dim: width of the first layer, which doubles `levels` - 1 times
    while the sides halve; text_dim: width of the text encoder's states; embedding: width of what both become."""

    side: int = 32
    dim: int = 32
    levels: int = 3
    text_dim: int = 128
    embedding: int = 64

    def __post_init__(self) -> None:
        at_least(self, 4, "side")
        at_least(self, 1, "dim", "levels", "text_dim")
        at_least(self, 2, "embedding")
        if self.side % 2**self.levels:
            raise ValueError(f"side={self.side}: must be a multiple of {2**self.levels}, to halve {self.levels} times")


class Contrastive(nn.Module):
    """The image tower, and the last layer of the text tower, which begins with the states of a `TextEncoder`."""

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        widths = [3, *(config.dim * 2**level for level in range(config.levels))]
        pairs = list(pairwise(widths))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in widths[1:])
        self.image = nn.Linear(PLACES**2 * widths[-1], config.embedding)
        self.text = nn.Linear(config.text_dim, config.embedding)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors `b d`, float32, of images `b 3 h w` in [-1, 1] of any size."""
        with torch.autocast(images.device.type, enabled=False):
            h = F.adaptive_avg_pool2d(images.float(), self.config.side)
            for convolution, norm in zip(self.convolutions, self.norms):
                h = F.silu(norm(convolution(h)))
            h = F.adaptive_avg_pool2d(h, PLACES)
            return F.normalize(self.image(rearrange(h, "b c p q -> b (c p q)")), dim=-1)

    def embed_texts(self, text: TextStates) -> Tensor:
        """Unit vectors `b d`, float32: of the mean state of a prompt's tokens (states are zero beyond its end)."""
        with torch.autocast(text.states.device.type, enabled=False):
            mean = text.states.float().sum(dim=1) / text.lengths[:, None].to(text.states.device)
            return F.normalize(self.text(mean), dim=-1)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by: the inverse of the temperature, at most 100."""
        return self.log_scale.clamp(max=MOST_SCALE).exp()

    def init_weights(self, seed: int) -> None:
        """Draw fresh weights, scaled by the number of their inputs."""
        generator = Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (*self.convolutions, self.image, self.text):
                assert isinstance(layer, nn.Conv2d | nn.Linear)
                drawn = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.copy_(drawn / layer.weight[0].numel() ** 0.5)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor | float, same: Tensor | None = None) -> Tensor:
    """The mean of both cross-entropies: which caption belongs to an image, and which image to a caption (CLIP, fig. 3).

    images, texts: unit vectors `b d`, pairs in order; same: `b b` bool, True where a caption is right for an image too
    although it was said of another; the diagonal is always right. Raises ValueError where the shapes differ.
    """
    if images.shape != texts.shape:
        raise ValueError(f"images {tuple(images.shape)}, texts {tuple(texts.shape)}: give one caption for each image")
    scores = scale * images @ texts.T
    right = torch.eye(len(scores), device=scores.device)
    if same is not None:
        right = (right.bool() | same).float()
    by_image = F.cross_entropy(scores, right / right.sum(dim=1, keepdim=True))
    by_text = F.cross_entropy(scores.T, right.T / right.T.sum(dim=1, keepdim=True))
    return (by_image + by_text) / 2
