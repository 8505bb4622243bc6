"""How the states of an image tower become what the blocks read: CLIP's ViT-H in Wan 2.1's image-to-video models.

Not standard here: its GELU is the exact one, where the rest of the network has the tanh form, and its norms have an
epsilon of their own, 1e-5. Norms run in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.nn.fused import layer_norm
from carrara.nn.layers import Linear, compute_dtype


class ImageEmbedding(nn.Module):
    """Norm, two layers, norm; with `positions`, states of a first and a last image get learned positions before."""

    def __init__(self, image_dim: int, dim: int, positions: int | None = None) -> None:
        super().__init__()
        self.positions = None if positions is None else nn.Parameter(torch.zeros(1, positions, image_dim))
        self.norm_in = nn.LayerNorm(image_dim)
        self.rise = Linear(image_dim, image_dim)
        self.fall = Linear(image_dim, dim)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, states: Tensor) -> Tensor:
        """`b m i` -> `b m d`. Raises ValueError where the states are not of the images that the network reads."""
        width = self.rise.in_features
        if states.ndim != 3 or states.shape[-1] != width:
            raise ValueError(
                f"image states have shape {tuple(states.shape)}: this model reads (clips, states, {width})"
            )
        if self.positions is not None:
            if states.shape[1] != self.positions.shape[1]:
                raise ValueError(
                    f"{states.shape[1]} image states: this model reads {self.positions.shape[1]}, those of a first and "
                    "of a last image together; give both"
                )
            states = states.float() + self.positions.float()
        dtype = compute_dtype(self.rise.weight)
        h = F.gelu(self.rise(layer_norm(self.norm_in, states, dtype)))
        return layer_norm(self.norm_out, self.fall(h), dtype)
