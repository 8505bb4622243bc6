"""Clips that are wrong in time and right in every frame: what a measure of motion must tell from the truth.

A measure that scores these like the truth does not measure motion, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Control = Callable[[Frames, int], Frames]


def frozen(frames: Frames, seed: int = 0) -> Frames:
    """The first frame for all: `t h w 3` of the same shape. The seed changes nothing."""
    return np.repeat(frames[:1], len(frames), axis=0)


def shuffled(frames: Frames, seed: int = 0) -> Frames:
    """The same frames in another order, drawn from the seed; a clip of one frame has no other."""
    order, draw = np.arange(len(frames)), np.random.default_rng(seed)
    while len(order) > 1 and (order == np.arange(len(order))).all():
        order = draw.permutation(len(frames))
    return frames[order]


CONTROLS: Mapping[str, Control] = {"frozen": frozen, "shuffled": shuffled}
