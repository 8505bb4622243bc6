"""A refiner: a U-Net that draws a finished clip again as its prompt says, in pixels and in one evaluation.

Where things are, how they move and what colour they have, a small latent transformer decides well. Outlines of a few
pixels it melts, for it sees them as parts of patches, never twice at the same place of one. A convolution sees all
places alike. As the super-resolution of Imagen Video (Ho et al. 2022, arXiv:2210.02303) the refiner reads the prompt,
and the clip that is there; what is not standard: the size stays, and nothing is drawn at random, for once place, size
and words are known there is little left to choose. It learns to undo melting (`data/pond/melting.py`), and so belongs
to a world in which what melts can be rendered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from carrara.core.precision import computing_in
from carrara.core.types import TextStates, check_multiple
from carrara.denoisers.unet3d import Conditions, UNet3D
from carrara.denoisers.unet_config import UNetConfig

PLANES = 4  # red, green, blue, and where an actor is
_SURE = 3.0  # what the network says of actors is multiplied by this


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of a refiner. fold: so many pixels each way are one place of the network; unet: the network, whose channels
    are `4 fold^2`; numbered: after so many frames their numbers, which it is told, begin again, so that what turns or
    beats by itself, and of which a melted clip shows nothing, can be drawn turning; 0 tells it none."""

    unet: UNetConfig = field(default_factory=lambda: unet_of(64))
    fold: int = 2
    numbered: int = 0

    def __post_init__(self) -> None:
        if self.fold < 1:
            raise ValueError(f"fold={self.fold}: must be at least 1")
        if self.numbered < 0:
            raise ValueError(f"numbered={self.numbered}: must be at least 0")
        if self.unet.channels != PLANES * self.fold**2:
            raise ValueError(
                f"unet.channels={self.unet.channels}: with fold={self.fold} they are {PLANES * self.fold**2}"
            )
        if self.unet.text != "cross" or self.unet.given_channels or self.unet.vector_dim or self.unet.scalars:
            raise ValueError("unet: a refiner is told of a clip and of text alone, to which it attends (text='cross')")


def unet_of(text_dim: int, fold: int = 2, dim: int = 32, multipliers: tuple[int, ...] = (1, 2, 3)) -> UNetConfig:
    """A refiner's network: one block a level, and attention, along time too, below the finest."""
    return UNetConfig(
        channels=PLANES * fold**2,
        dim=dim,
        multipliers=multipliers,
        blocks=1,
        attention=tuple(range(1, len(multipliers))),
        text="cross",
        text_dim=text_dim,
    )


class Refiner(nn.Module):
    """See the module. With fresh weights (`init_weights`) every clip is its own refinement."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet3D(config.unet)

    def init_weights(self, seed: int | Generator) -> None:
        """Draw fresh weights."""
        self.unet.init_weights(seed)

    @property
    def side_step(self) -> int:
        """Rows and columns come in multiples of this."""
        return self.config.fold * self.config.unet.side_step

    def check_fits(self, text_dim: int, sides: int) -> None:
        """Refuse a model (ValueError) whose text states have another width, or whose sides come in other steps."""
        if self.config.unet.text_dim != text_dim:
            raise ValueError(
                f"the refiner reads text states of width {self.config.unet.text_dim} and the text encoder's have "
                f"{text_dim}; these parts do not belong together"
            )
        if sides % self.side_step:
            raise ValueError(
                f"the refiner takes sides in steps of {self.side_step} and the model makes them in steps of {sides}; "
                "use one with a smaller fold or fewer multipliers"
            )

    def forward(self, clip: Tensor, text: TextStates, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clips `b 3 t h w` in [-1, 1], one prompt each, drawn again, and where actors are: logits `b t h w`.

        first: which frame of its clip the first of each is, `(b,)`, None for 0: only a numbered refiner is told.
        What is drawn may leave [-1, 1]. Raises ValueError for sides that are no multiples of `side_step`.
        """
        for name, side in zip(("height", "width"), clip.shape[3:]):
            check_multiple(name, side, self.side_step)
        p = self.config.fold
        planes = torch.cat((clip, torch.zeros_like(clip[:, :1])), dim=1)
        folded = rearrange(planes, "b c t (h p) (w q) -> b (c p q) t h w", p=p, q=p)
        made = self.unet(folded, self._levels(clip, first), Conditions(text))
        made = rearrange(made.float(), "b (c p q) t h w -> b c t (h p) (w q)", p=p, q=p)
        return clip + made[:, :3], _SURE * made[:, 3]

    def _levels(self, clip: Tensor, first: Tensor | None) -> Tensor:
        """What the network is told instead of noise levels: 1, less a thousandth for each number below a frame's."""
        certain = torch.ones(len(clip), device=clip.device)
        if not self.config.numbered:
            return certain
        begins = torch.zeros_like(certain) if first is None else first.to(certain)
        numbers = begins[:, None] + torch.arange(clip.shape[2], device=clip.device)
        return 1 - numbers % self.config.numbered / 1000

    @torch.no_grad()
    def refine(self, clip: Tensor, text: TextStates, precision: str = "", first: int = 0) -> Tensor:
        """Clips `b 3 t h w` in [-1, 1], of whose videos they show the frames from `first` on, drawn again, in [-1, 1].

        precision: what the network computes in, "" for that of its weights.
        """
        with computing_in(precision, clip.device):
            begins = torch.full((len(clip),), float(first), device=clip.device)
            return self(clip.float(), text, begins)[0].clamp(-1, 1)
