"""Batches of many shapes and kinds: one shape each, every clip in its turn, the same on any number of ranks."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch

from carrara.data.mixture import KINDS, Mixture, Weights, clip_sets, equal_work, is_held_out, kind_of

BUCKETS = [
    ["video"] * 7 + ["unlabelled"] * 4 + [None],
    ["video"] * 3,
    ["images"] * 20 + ["unlabelled"],
    [],
]
BATCHES = [4, 6, 9, 5]


def mixture(weights: Weights | None = None, seed: int = 5) -> Mixture:
    return Mixture(clip_sets(BUCKETS, BATCHES), seed, weights)


def drawn(mixed: Mixture, steps: range, rank: int = 0, ranks: int = 1) -> list[tuple[int, list[int]]]:
    return [(one.bucket, one.clips.tolist()) for one in (mixed.at(step, rank, ranks) for step in steps)]


def test_a_batch_is_of_one_shape_and_kind_and_full():
    mixed = mixture()
    for step in range(60):
        one = mixed.at(step)
        assert len(one.clips) == BATCHES[one.bucket]
        assert {BUCKETS[one.bucket][place] for place in one.clips.tolist()} == {one.kind}


def test_without_weights_every_clip_is_seen_equally_often():
    mixed = mixture()
    epochs = 50
    steps = mixed.turns.start(epochs)
    seen = Counter((bucket, clip) for bucket, clips in drawn(mixed, range(steps)) for clip in clips)
    wanted = {(b, c) for b, kinds in enumerate(BUCKETS) for c, kind in enumerate(kinds) if kind}
    assert set(seen) == wanted  # no clip is dropped, and what is held out is never drawn
    assert len(mixed) == len(wanted)
    for one in mixed.sets:
        counts = [seen[one.bucket, clip] for clip in one.clips.tolist()]
        assert max(counts) - min(counts) <= 1
        # what the last batch of an epoch would lack waits for the next: less than a batch behind
        assert epochs * len(one.clips) - one.batch < sum(counts) <= epochs * len(one.clips)


def test_weights_are_shares_of_steps():
    mixed = mixture(Weights(video=6, images=3, unlabelled=1))
    steps = 3000
    kinds = Counter(mixed.at(step).kind for step in range(steps))
    assert [kinds[kind] / steps for kind in KINDS] == pytest.approx([0.6, 0.3, 0.1], abs=0.01)
    within = Counter(mixed.at(step).bucket for step in range(steps) if mixed.at(step).kind == "video")
    assert within[0] / within[1] == pytest.approx((7 / 4) / (3 / 6), rel=0.05)  # by the batches that they fill


def test_a_kind_of_weight_0_is_left_out_and_one_that_is_not_there_is_refused():
    mixed = mixture(Weights(video=1))
    assert {mixed.at(step).kind for step in range(40)} == {"video"}
    assert len(mixed) == 10
    with pytest.raises(ValueError, match=r"images=1.*there are no clips of this kind; set its weight to 0"):
        Mixture(clip_sets([["video"]], [2]), 0, Weights(video=1, images=1))
    with pytest.raises(ValueError, match="no clips to draw from"):
        Mixture(clip_sets([["video"]], [2]), 0, Weights(unlabelled=1))
    with pytest.raises(ValueError, match="video=-1: a weight is at least 0"):
        Weights(video=-1)
    with pytest.raises(ValueError, match="images=nan"):
        Weights(images=float("nan"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_global_order_does_not_depend_on_the_number_of_ranks(ranks):
    steps = range(90)
    whole = drawn(mixture(), steps)
    parts = [drawn(mixture(), steps, rank, ranks) for rank in range(ranks)]
    for step, (bucket, clips) in enumerate(whole):
        assert {part[step][0] for part in parts} == {bucket}
        assert list(chain(*(part[step][1] for part in parts))) == clips


def test_a_part_knows_at_which_row_of_the_batch_it_begins():
    for step in range(20):
        rows = [mixture().at(step, rank, 3) for rank in range(3)]
        whole = mixture().at(step).clips
        for one in rows:
            assert torch.equal(whole[one.first : one.first + len(one.clips)], one.clips)


def test_more_ranks_than_clips_in_a_batch_are_refused():
    with pytest.raises(ValueError, match="a batch of 4 on 5 ranks: raise the batch to 5"):
        drawn(mixture(), range(9), 0, 5)


def test_a_batch_is_a_function_of_seed_and_step_alone():
    forward = drawn(mixture(), range(50))
    assert drawn(mixture(), range(30, 50)) == forward[30:]  # a loader that begins in the middle
    again = mixture()
    assert [drawn(again, range(step, step + 1))[0] for step in reversed(range(50))] == forward[::-1]
    assert drawn(mixture(seed=6), range(50)) != forward


def test_the_state_is_two_integers():
    mixed = mixture()
    for step in (0, 1, 17, 300):
        cursor = mixed.cursor(step)
        assert mixed.turns.start(cursor.epoch) + cursor.position == step


def test_few_clips_in_large_batches_are_still_seen_in_proportion():
    mixed = Mixture(clip_sets([["video"] * 3, ["video"]], [16, 16]), 0)
    seen = Counter((bucket, clip) for bucket, clips in drawn(mixed, range(200)) for clip in clips)
    assert max(seen.values()) / min(seen.values()) < 1.05


def test_equal_work():
    assert equal_work([1000, 500, 110], 4) == [4, 8, 36]
    assert equal_work([3, 7], 1) == [2, 1]


def test_kinds():
    assert [kind_of(9, "a"), kind_of(1, "a"), kind_of(9, None), kind_of(1, None), kind_of(9, "")] == [
        "video",
        "images",
        "unlabelled",
        "unlabelled",
        "unlabelled",
    ]


def test_sources_are_held_out_by_share_and_stay_so():
    names = [f"video {number}.mp4" for number in range(4000)]
    held = {name for name in names if is_held_out(name, 0.05, 0)}
    assert 0.035 < len(held) / len(names) < 0.065
    assert held <= {name for name in names if is_held_out(name, 0.1, 0)}
    assert held != {name for name in names if is_held_out(name, 0.05, 1)}
    assert not any(is_held_out(name, 0, 0) for name in names)
