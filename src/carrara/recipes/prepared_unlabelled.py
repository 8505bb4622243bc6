"""What the stages of Make-A-Video train on of a prepared folder: images, and clips at varying rates, without a word.

The folder's captions are taken away before a clip is chosen, so none can reach a video phase. Every batch is a function
of its step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, log

from carrara.data.batches import indices
from carrara.data.batches import mix as mix_seed
from carrara.recipes.pond_unlabelled import Rates
from carrara.recipes.prepared_clips import PreparedClips
from carrara.recipes.prepared_pieces import Wanted
from carrara.systems.make_a_video import FASTEST
from carrara.systems.unlabelled_phase import UnlabelledClips


def prepared_unlabelled(
    clips: PreparedClips, wanted: Wanted, numbers: Sequence[int], rates: Rates, batch: int, seed: int
) -> Callable[[int], UnlabelledClips]:
    """Batches of clips without captions: for all of a step every frame, or every second, third, ..., whichever comes
    nearest to the step's rate.

    numbers: the clips that fit what is wanted; at each rate, those that are long enough for it.
    """
    silent, fps = clips.without_captions(), clips.prepared.fps
    pools = shown_at(silent, wanted, numbers, rates, batch)
    visits: list[tuple[int, int]] = []  # of every step so far: its pool, and how many steps had that before
    counts = dict.fromkeys(pools, 0)

    def visit(step: int) -> tuple[int, int]:
        while len(visits) <= step:
            rate = rates.at(len(visits), seed)
            every = min(pools, key=lambda each: abs(log(fps / each / rate)))
            visits.append((every, counts[every]))
            counts[every] += 1
        return visits[step]

    def at(step: int) -> UnlabelledClips:
        every, before = visit(step)
        pool = pools[every]
        chosen = [pool[place] for place in indices(before, batch, len(pool), mix_seed(seed, every)).tolist()]
        told = fps / every if wanted.shape.frames > 1 else wanted.fps
        return UnlabelledClips(silent.cut(chosen, wanted, every, mix_seed(seed, step)), told)

    return at


def shown_at(
    clips: PreparedClips, wanted: Wanted, numbers: Sequence[int], rates: Rates, batch: int
) -> dict[int, list[int]]:
    """The clips that can be shown with every so-manieth frame, by that number: the wanted one, and all others at which
    there is a batch of clips at one of the rates."""
    own = wanted.every(clips.prepared.fps)
    if wanted.shape.frames == 1:
        return {own: list(numbers)}
    fps, near = clips.prepared.fps, 1e-6
    least = ceil(fps / min(rates.high, FASTEST) - near)
    pools = {own: list(numbers)}
    for every in range(max(1, least), floor(fps / rates.low + near) + 1):
        pool = [number for number in numbers if wanted.fits_at(clips.prepared.bucket(number), every)]
        if len(pool) >= batch:
            pools[every] = pool
    return dict(sorted(pools.items()))


def unlabelled_validation(clips: PreparedClips, wanted: Wanted, count: int) -> UnlabelledClips:
    """A fixed batch of at most so many clips at the wanted rate."""
    chosen, every = clips.held_out(wanted, count), wanted.every(clips.prepared.fps)
    return UnlabelledClips(clips.without_captions().cut(chosen, wanted, every, 0), wanted.fps)
