"""Batches from clips of many shapes and kinds: which clips a step is on, as a pure function of the step.

Clips of one shape and one kind (captioned video, captioned images, unlabelled) are a set; a batch comes from one set,
so it has one shape. Within a set clips follow `batches.indices`. Without weights, sets take turns in proportion to the
batches that they fill, so that each clip is seen equally often; weights are shares of steps instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from carrara.data.batches import Cursor, Turns, indices, mix, part

KINDS = ("video", "images", "unlabelled")


@dataclass(frozen=True)
class Weights:
    """Shares of steps on captioned video, on captioned images and on what has no caption, in any unit.

    All 0: by number, so that each clip is seen equally often. Else a kind of weight 0 is left out.
    """

    video: float = 0.0
    images: float = 0.0
    unlabelled: float = 0.0

    def __post_init__(self) -> None:
        for kind in KINDS:
            if not 0 <= getattr(self, kind) < float("inf"):
                raise ValueError(f"{kind}={getattr(self, kind)}: a weight is at least 0; all 0 mixes by number")

    @property
    def by_number(self) -> bool:
        return not any(getattr(self, kind) for kind in KINDS)


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips of one shape and kind, from which whole batches are drawn.

    bucket: number of the shape; clips: `(n,)` int64, their places among the bucket's; batch: how many a step takes.
    """

    bucket: int
    kind: str
    clips: Tensor
    batch: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a step is on. bucket: number of the shape; clips: places among the bucket's, this rank's part of the batch;
    first: the row of the batch at which this part begins; whole: rows of the batch."""

    bucket: int
    kind: str
    clips: Tensor
    first: int = 0
    whole: int = 0


class Mixture:
    """Sets that take turns; `at(step)` is the batch of a step, the same for any number of ranks that share it."""

    def __init__(self, sets: Sequence[ClipSet], seed: int, weights: Weights | None = None) -> None:
        weights = weights or Weights()
        self.seed = seed
        self.sets = [one for one in sets if weights.by_number or getattr(weights, one.kind) > 0]
        if not self.sets:
            raise ValueError(f"no clips to draw from with {weights}; give a kind that is there a weight above 0")
        for kind in KINDS:
            if getattr(weights, kind) and all(one.kind != kind for one in sets):
                raise ValueError(
                    f"{kind}={getattr(weights, kind)}: there are no clips of this kind; set its weight to 0"
                )
        self.turns = Turns(_rates(self.sets, weights), mix(seed, len(KINDS)))

    def __len__(self) -> int:
        """How many clips are drawn from; those of weight 0 are not."""
        return sum(len(one.clips) for one in self.sets)

    def cursor(self, step: int) -> Cursor:
        """The state before a step: (epoch, steps of it that are done)."""
        return self.turns.cursor(step)

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Drawn:
        """What this rank is given at a step."""
        number, before = self.turns.at(step)
        one = self.sets[number]
        chosen = indices(before, one.batch, len(one.clips), mix(self.seed, number))
        rows = part(one.batch, rank, ranks)
        return Drawn(one.bucket, one.kind, one.clips[chosen[rows]], rows.start, one.batch)


def _rates(sets: Sequence[ClipSet], weights: Weights) -> tuple[Fraction, ...]:
    """Steps of each set in an epoch: as many in all as clips that are seen once each fill."""
    natural = [Fraction(len(one.clips), one.batch) for one in sets]
    if weights.by_number:
        return tuple(natural)
    whole: Mapping[str, Fraction] = {
        kind: sum((rate for one, rate in zip(sets, natural) if one.kind == kind), Fraction(0)) for kind in KINDS
    }
    shares = {kind: Fraction(getattr(weights, kind)).limit_denominator(10**6) for kind in KINDS}
    total, every = sum(natural, Fraction(0)), sum(shares.values())
    return tuple(total * shares[one.kind] / every * rate / whole[one.kind] for one, rate in zip(sets, natural))


def clip_sets(buckets: Sequence[Sequence[str | None]], batches: Sequence[int]) -> list[ClipSet]:
    """The sets of some buckets: of each the kinds of its clips in their order, None for a clip that is not drawn, and
    how many make a batch."""
    return [
        ClipSet(number, kind, torch.tensor(places), batch)
        for number, (clips, batch) in enumerate(zip(buckets, batches, strict=True))
        for kind in KINDS
        if (places := [place for place, its in enumerate(clips) if its == kind])
    ]


def equal_work(costs: Sequence[float], batch: int) -> list[int]:
    """How many clips of each bucket cost as much as `batch` of the dearest; costs are per clip, in any unit."""
    return [max(1, int(batch * max(costs) / cost)) for cost in costs]


def kind_of(frames: int, caption: str | None) -> str:
    """The kind of a clip: without a caption it is unlabelled, whether it moves or not."""
    if not caption:
        return "unlabelled"
    return "video" if frames > 1 else "images"


def is_held_out(source: str, share: float, seed: int) -> bool:
    """Whether what comes from this source is kept for validation: a function of its name (or hash), so that all pieces
    of a video fall on one side, and a clip's side does not change when others are added."""
    digest = hashlib.sha256(f"{seed}:{source}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
