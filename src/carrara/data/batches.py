"""In which order clips are seen: pure functions of a seed, so that a loader's whole state is two integers.

Epoch e visits every clip once, in a permutation drawn from (seed, e); batches run across the border between epochs,
so no clip is dropped and every batch is full. Of several sets `Turns` says which one a step draws from. A batch is the
same on any number of ranks: each takes its `part` of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor

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


def part(count: int, rank: int, ranks: int) -> slice:
    """Which rows of a batch of `count` this rank takes: all ranks' rows, joined, are the batch in its order."""
    if not 0 <= rank < ranks:
        raise ValueError(f"rank={rank} of {ranks}: ranks are counted from 0")
    if count < ranks:
        raise ValueError(f"a batch of {count} on {ranks} ranks: raise the batch to {ranks} or more, or use fewer ranks")
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


@dataclass(frozen=True)
class Turns:
    """From which of several sets each step draws, in epochs that give every set its share exactly.

    rates: steps of each set in an epoch, as fractions. Epoch e has floor((e + 1) r) - floor(e r) steps of a set with
    rate r, in an order drawn from (seed, e): after any number of epochs each set has had its steps to within one, and
    what an epoch leaves over waits for the next.
    """

    rates: tuple[Fraction, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rates, default=0) < 0 or not sum(self.rates):
            raise ValueError(
                f"rates={[str(rate) for rate in self.rates]}: none may be negative and one must be above 0"
            )

    def start(self, epoch: int) -> int:
        """The first step of an epoch."""
        return sum(floor(epoch * rate) for rate in self.rates)

    def cursor(self, step: int) -> Cursor:
        """Where the data stands before this step: the epoch, and how many of its steps are done."""
        total = sum(self.rates)
        low, high = floor(step / total), ceil((step + len(self.rates)) / total)
        epoch = low + bisect_right(range(low, high + 1), step, key=self.start) - 1
        return Cursor(epoch, step - self.start(epoch))

    def at(self, step: int) -> tuple[int, int]:
        """Which set this step draws from, and how many steps that set has had before."""
        cursor = self.cursor(step)
        sets, before = _turns(self, cursor.epoch)
        return int(sets[cursor.position]), int(before[cursor.position])


@lru_cache(maxsize=8)
def _turns(turns: Turns, epoch: int) -> tuple[Tensor, Tensor]:
    """The sets of an epoch's steps, and how many steps each had before, both `(steps,)` int64."""
    had = [floor(epoch * rate) for rate in turns.rates]
    counts = torch.tensor([floor((epoch + 1) * rate) - past for rate, past in zip(turns.rates, had)])
    sets = torch.repeat_interleave(torch.arange(len(counts)), counts)
    sets = sets[_order(turns.seed, epoch, len(sets))]
    before = torch.empty_like(sets)
    for number, past in enumerate(had):
        places = (sets == number).nonzero()[:, 0]
        before[places] = past + torch.arange(len(places))
    return sets, before
