"""What the blocks read of a prompt and of an image: computed once, used at every sampling step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]
"""Keys and values, each `b h m c`."""


@dataclass(frozen=True)
class TextKeys:
    """What the blocks read of the prompts: keys and values `b h m c` per block, and the bias `b 1 1 l` of the last l.

    image: the same of the image states, per block, where the network reads an image: they have no bias.
    """

    blocks: tuple[Pair, ...]
    bias: Tensor
    image: tuple[Pair, ...] | None = None

    @property
    def batch(self) -> int:
        return self.bias.shape[0]

    @property
    def length(self) -> int:
        """The number of keys."""
        return self.blocks[0][0].shape[2]

    def of_block(self, index: int) -> tuple[Pair, Tensor, Pair | None]:
        """What one block reads: keys and values of the text, their bias, keys and values of the image."""
        return self.blocks[index], self.bias, None if self.image is None else self.image[index]

    def join(self, other: TextKeys) -> TextKeys:
        """Both in one batch. The shorter text is filled up with keys that are not there: their bias is log 0."""
        if (self.image is None) != (other.image is None):
            raise ValueError("the keys of one batch read an image and those of the other do not: give both or none")
        length = max(self.length, other.length)

        def both(a: Tensor, b: Tensor, axis: int, fill: float) -> Tensor:
            return torch.cat((_filled(a, length, axis, fill), _filled(b, length, axis, fill)))

        image = None
        if self.image is not None and other.image is not None:
            image = _zipped(self.image, other.image, lambda a, b: torch.cat((a, b)))
        blocks = _zipped(self.blocks, other.blocks, lambda a, b: both(a, b, 2, 0.0))
        if self.length == other.length and self.bias.shape[-1] == other.bias.shape[-1]:
            bias = torch.cat((self.bias, other.bias))
        else:
            bias = both(self._whole_bias(), other._whole_bias(), 3, -torch.inf)
        return TextKeys(blocks, bias, image)

    def _whole_bias(self) -> Tensor:
        """Of every key."""
        return F.pad(self.bias, (self.length - self.bias.shape[-1], 0))


def _zipped(a: tuple[Pair, ...], b: tuple[Pair, ...], join: Callable[[Tensor, Tensor], Tensor]) -> tuple[Pair, ...]:
    return tuple((join(k, l), join(v, w)) for (k, v), (l, w) in zip(a, b, strict=True))


def _filled(x: Tensor, length: int, axis: int, value: float) -> Tensor:
    """x with `value` appended along an axis up to a length."""
    shape = list(x.shape)
    shape[axis] = length - shape[axis]
    return torch.cat((x, x.new_full(shape, value)), dim=axis) if shape[axis] else x
