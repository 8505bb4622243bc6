"""What tells a refiner that a clip does not look right: a discriminator, which reads the prompt too.

An absolute error answers what is open with its middle: a wing that may be up or down becomes a stump, a small star a
disc. A discriminator (Goodfellow et al. 2014, arXiv:1406.2661) asks for one that could be true. It is a copy of the
refiner that answers for every pixel (as the U-Net discriminator of Schonfeld et al. 2020, arXiv:2002.12655), so it
knows words and outlines from the start; and true clips beside captions of others are false to it, so that it reads
(Reed et al. 2016, arXiv:1605.05396). Its answers are kept smooth by what noise changes of them, without second
derivatives (Lin et al. 2025, arXiv:2501.08316). What is made need not lie where the truth is, and so the model's own
clips can teach.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import avg_pool3d, softplus

from carrara.core.types import TextStates
from carrara.systems.refiner import Refiner


@dataclass(frozen=True)
class Adversary:
    """How a refiner is told what does not look right.

    weight: of the discriminator's verdict beside the other errors, 0 for none; anchor: weight of how far mean colours
    around a place leave those of a clip that is not its truth's; anchored: side of the square they are means of;
    noise: deviation of the noise, in pixels in [-1, 1], that should not change verdicts; smooth: weight of how it does.
    """

    weight: float = 0.0
    anchor: float = 1.0
    anchored: int = 8
    noise: float = 0.05
    smooth: float = 10.0

    def __post_init__(self) -> None:
        for name in ("weight", "anchor", "noise", "smooth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
        if self.anchored < 1:
            raise ValueError(f"anchored={self.anchored}: must be at least 1 pixel")


class Discriminator(nn.Module):
    """For every pixel, whether it belongs to a true clip of this prompt."""

    def __init__(self, refiner: Refiner) -> None:
        super().__init__()
        self.network = copy.deepcopy(refiner).requires_grad_(True)
        last = self.network.unet.leave
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, clip: Tensor, text: TextStates, first: Tensor | None = None) -> Tensor:
        """Logits `b t h w` of clips `b 3 t h w` in [-1, 1]: above 0 is true."""
        verdict: Tensor = self.network(clip, text, first)[1]
        return verdict

    def deceived(self, drawn: Tensor, text: TextStates, weights: Tensor, first: Tensor | None = None) -> Tensor:
        """How much of clips is found false, for who drew them; it does not learn by it."""
        self.requires_grad_(False)
        try:
            return _mean(softplus(-self(drawn, text, first)), weights)
        finally:
            self.requires_grad_(True)

    def loss(
        self,
        true: Tensor,
        drawn: Tensor,
        text: TextStates,
        other: TextStates,
        weights: Tensor,
        config: Adversary,
        generator: Generator,
        first: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What it learns by, and its mean verdict on true clips, drawn ones, and true ones beside `other` words."""
        right, made, wrong = self(true, text, first), self(drawn.detach(), text, first), self(true, other, first)
        false = _mean(softplus(made), weights) + _mean(softplus(wrong), weights)
        noise = torch.randn(true.shape, generator=generator, device=true.device)
        rough = _mean((self(true + config.noise * noise, text, first) - right) ** 2, weights)
        total = _mean(softplus(-right), weights) + 0.5 * false + config.smooth * rough
        named = {"found_true": right, "found_drawn": made, "found_other": wrong}
        return total, {name: _mean(verdict.detach(), weights) for name, verdict in named.items()}


def strayed(drawn: Tensor, shown: Tensor, weights: Tensor, side: int) -> Tensor:
    """How far mean colours of squares of clips `b 3 t h w` leave those of what was shown, absolutely."""

    def means(x: Tensor) -> Tensor:
        return avg_pool3d(x, (1, side, side), (1, max(1, side // 2), max(1, side // 2)))

    return _mean((means(drawn) - means(shown)).abs().mean(1), means(weights[:, None])[:, 0])


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum()
