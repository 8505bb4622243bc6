"""Middle features that must tell what is truly there: an auxiliary loss beside the denoiser's own.

In the spirit of REPA (Yu et al., arXiv:2410.06940), which draws a transformer's middle features towards those of a
pretrained network. Not standard: here a simulator knows the truth, so a small head reads it off the features after a
chosen block, token by token: where something is and when, what it is, and in what surroundings. The head is trained
beside the model and left out of what is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Alignment:
    """weight: of the auxiliary loss beside the denoiser's, 0 for none; block: after how many blocks it looks."""

    weight: float = 0.0
    block: int = 4

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight}: must be at least 0; 0 leaves features alone")
        if self.block < 1:
            raise ValueError(f"block={self.block}: must be at least 1, the first block")


@dataclass(frozen=True)
class Content:
    """What clips truly show, cut like their latents into n = f x h x w tokens.

    covered: `b a n s` float in [0, 1], the share of each token in which actor a is seen at each of s moments;
    actors: `b a k` int64, k labels of each actor (such as its kind), -1 where there is none to be told;
    clip: `b m` int64, m labels of the whole clip (such as its background).
    """

    covered: Tensor
    actors: Tensor
    clip: Tensor

    def to(self, device: torch.device) -> Content:
        return Content(self.covered.to(device), self.actors.to(device), self.clip.to(device))


class ContentHead(nn.Module):
    """Reads `Content` off features: a norm, one hidden layer, and a classifier for each label.

    actor_sizes, clip_sizes: how many values each label of an actor and of a clip can have; moments: s of `Content`.
    Its weights come from the seed alone, so that a model with it begins as one without.
    """

    def __init__(
        self,
        dim: int,
        actor_sizes: Sequence[int],
        clip_sizes: Sequence[int],
        moments: int,
        alignment: Alignment,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.alignment = alignment
        self.actor_sizes, self.clip_sizes, self.moments = tuple(actor_sizes), tuple(clip_sizes), moments
        self.norm = nn.LayerNorm(dim)
        self.rise = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, moments + sum(self.actor_sizes) + sum(self.clip_sizes))
        generator = Generator().manual_seed(seed)
        for layer in (self.rise, self.out):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Features `b n d` to logits, float32: of being covered `b n s`, of each actor label and each clip label."""
        hidden = torch.nn.functional.silu(self.rise(self.norm(features)))
        sizes = (self.moments, *self.actor_sizes, *self.clip_sizes)
        covered, *labels = self.out(hidden).float().split(sizes, dim=-1)
        count = len(self.actor_sizes)
        return covered, tuple(labels[:count]), tuple(labels[count:])

    def loss(self, features: Tensor, content: Content) -> Tensor:
        """The mean of the cross-entropies, each a mean over what it is about.

        Whether a token is covered counts at every token and moment; an actor's labels count where, and as much as, it
        covers (tokens are mostly empty, so a mean over all would drown them); a clip's labels at every token.
        features: `b n d` with the tokens of `content` first; what follows (keyframe tokens) is not asked.
        """
        tokens = content.covered.shape[2]
        covered, actors, clips = self(features[:, :tokens])
        some = content.covered.sum(1).clamp(max=1)
        parts = [binary_cross_entropy_with_logits(covered, some)]
        share = rearrange(content.covered.mean(-1), "b a n -> b n a")
        for logits, labels in zip(actors, content.actors.unbind(-1)):
            weight = share * (labels >= 0)[:, None]
            parts.append((weight * _surprise(logits, labels)).sum() / weight.sum().clamp(min=1e-6))
        for logits, labels in zip(clips, content.clip.unbind(-1)):
            parts.append(_surprise(logits, labels[:, None]).mean())
        return torch.stack(parts).mean()


def _surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of labels `b a` under logits `b n k`: `b n a`; a label of -1 gets that of label 0, to be weighted by 0."""
    chosen = labels.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
    return -logits.log_softmax(-1).gather(-1, chosen)


@contextmanager
def outputs_of(block: nn.Module) -> Iterator[list[Tensor]]:
    """What a block returns while this is open, call by call; its code knows nothing of it."""
    kept: list[Tensor] = []
    handle = block.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()
