"""In which order clips are seen: pure functions of a seed, so that a loader's whole state is two integers.

Epoch e visits every clip once, in a permutation drawn from (seed, e); batches run across the border between epochs,
so no clip is dropped and every batch is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """One well-mixed seed in [0, 2^63) from several integers (the finaliser of SplitMix64, Steele et al. 2014).

    Torch's CPU generator keeps only the low 32 bits of a seed, so neighbouring steps must differ in those.
    """
    state = 0
    for number in numbers:
        state = (state + 0x9E3779B97F4A7C15 + (number & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True)
class Cursor:
    """Where a pass over the data stands: the next clip is number `position` of epoch `epoch`'s order."""

    epoch: int = 0
    position: int = 0


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The permutation `(n,)` int64 in which this epoch visits the clips."""
    return _order(seed, epoch, n).clone()


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix(seed, epoch)))


def take(cursor: Cursor, count: int, n: int, seed: int) -> tuple[Tensor, Cursor]:
    """The next `count` clips `(count,)` int64 of a set of n, and the cursor behind them."""
    if n < 1:
        raise ValueError(f"n={n}: there are no clips to draw from; write some first")
    parts, epoch, position = [], cursor.epoch, cursor.position
    while count > 0:
        part = _order(seed, epoch, n)[position : position + count]
        parts.append(part)
        count -= len(part)
        position += len(part)
        if position == n:
            epoch, position = epoch + 1, 0
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64), Cursor(epoch, position)


def cursor_at(step: int, batch: int, n: int) -> Cursor:
    """Where the data stands before this step, if every step takes `batch` clips."""
    return Cursor(*divmod(step * batch, n))


def indices(step: int, batch: int, n: int, seed: int) -> Tensor:
    """The clips `(batch,)` int64 of one training step: a pure function of the step."""
    if n < 1:
        raise ValueError(f"n={n}: there are no clips to draw from; write some first")
    return take(cursor_at(step, batch, n), batch, n, seed)[0]


def batches(cursor: Cursor, batch: int, n: int, seed: int) -> Iterator[tuple[Tensor, Cursor]]:
    """Batches without end from a cursor on, each with the cursor to store beside the work it completes."""
    while True:
        chosen, cursor = take(cursor, batch, n, seed)
        yield chosen, cursor
