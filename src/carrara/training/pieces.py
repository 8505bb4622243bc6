"""A step's batch in pieces: equal stretches of its rows, each with a loss and random draws of its own.

The loss of a step is the mean over its pieces, each weighing what its rows do. Which process computes a piece changes
nothing, so that a run in 8 pieces is the same run on 1, 2, 4 or 8 processes; one process computes them one after the
other, in the memory of one (gradient accumulation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from carrara.core.types import Phase
from carrara.data.batches import mix, part
from carrara.training.metrics import sample_count

_OF_LOSSES = 0x6C6F7373  # no seed of anything else is mixed with it


@dataclass(frozen=True)
class Piece:
    """Some rows of a step's batch; number: which piece; weight: its loss's share in the mean over `count` pieces."""

    batch: Any
    number: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Pieces:
    """Which pieces of every step this process computes: `mine`, of `count` in all."""

    count: int = 1
    mine: range = range(1)

    @classmethod
    def of(cls, count: int, share: int, shares: int) -> Pieces:
        """The pieces of one of so many shares; count 0: as many as shares. Raises ValueError where they do not fit."""
        count = count or shares
        if count % shares:
            raise ValueError(
                f"pieces={count} on {shares} processes (those that share a sequence counted once): the pieces must "
                f"divide by them; use a divisor of {count} processes, or start a new run with other pieces"
            )
        each = count // shares
        return cls(count, range(share * each, (share + 1) * each))

    def of_step(self, phase: Phase, step: int) -> list[Piece]:
        """What this process computes of a step. Where the phase, or its source of batches, defines `piece(step, number,
        count)`, which gives a piece and how many rows the batch has, no other rows are read."""
        if self.count == 1:
            return [Piece(phase.batch(step))]
        read = getattr(phase, "piece", None) or getattr(phase.batch, "piece", None)
        whole = None if read else phase.batch(step)
        made = []
        for number in self.mine:
            batch, rows = read(step, number, self.count) if read else (None, sample_count(whole))
            kept = part(rows, number, self.count)
            batch = cut(whole, kept, rows) if batch is None else batch
            made.append(Piece(batch, number, (kept.stop - kept.start) * self.count / rows))
        return made

    def seed(self, seed: int, step: int, number: int) -> int:
        """The seed of what the loss of a piece draws: no number that the step's batch was drawn with, whose sources mix
        the same seed and step. With one for both a clip's noise would depend on which clips are shown, and how."""
        return mix(seed, step, number, _OF_LOSSES)


def cut(batch: Any, rows: slice, whole: int) -> Any:
    """The given rows of a batch of `whole`: of every tensor, and of every list as long or a multiple of it, in
    dataclasses, mappings and tuples; numbers and words belong to all rows.

    Raises ValueError for a tensor whose first axis is no multiple of the batch.
    """
    if isinstance(batch, Tensor):
        return batch if batch.ndim == 0 else batch[_scaled(rows, len(batch), whole)]
    if is_dataclass(batch) and not isinstance(batch, type):
        named = {field.name: cut(getattr(batch, field.name), rows, whole) for field in fields(batch) if field.init}
        return replace(batch, **named)
    if isinstance(batch, Mapping):
        return {key: cut(value, rows, whole) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        if any(isinstance(item, Tensor) or is_dataclass(item) for item in batch):
            return type(batch)(cut(item, rows, whole) for item in batch)
        return batch[_scaled(rows, len(batch), whole)]
    return batch


def _scaled(rows: slice, length: int, whole: int) -> slice:
    if length % whole:
        raise ValueError(
            f"a part of a batch has {length} rows and the batch {whole}: it cannot be cut into pieces; "
            "train this phase on one process with pieces=1, or let its phase define `piece`"
        )
    each = length // whole
    return slice(rows.start * each, rows.stop * each)
