"""The suite with a model that is the truth, one that is not, and an autoencoder that changes nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from carrara.core.media import write_video
from carrara.core.types import Stride, VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.validity import is_held_out
from carrara.evaluation.suite import HELD_IN_START, draw_prompts, evaluate

SHAPE = VideoShape(17, 96, 96)


class Echo:
    """An autoencoder that is the identity."""

    stride = Stride(1, 1)

    def encode(self, video):
        return video

    def decode(self, latents):
        return latents

    def decode_chunks(self, latents):
        yield latents


def cheat(number: int, seed: int):
    """A model that shows the scenes of an evaluation, those of `number` prompts from `seed`."""
    scenes = {prompt.seed: prompt.scene for prompt in draw_prompts(number, seed)}

    def make(prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        for noise, path in zip(seeds, paths):
            write_video(path, render([scenes[noise]], SHAPE).video[0], 8, overwrite=True)

    return make


def test_prompts_are_fixed_varied_and_never_those_of_training():
    prompts = draw_prompts(24, seed=3)
    assert prompts == draw_prompts(24, seed=3)
    assert prompts[:10] == draw_prompts(10, seed=3)
    assert {p.seed for p in prompts}.isdisjoint({p.seed for p in draw_prompts(24, seed=4)})
    assert min(p.seed for p in prompts) >= HELD_IN_START
    for prompt in prompts:
        assert is_held_out(prompt.scene) == (prompt.split == "held out")
    assert len({p.level for p in prompts}) == 3


@pytest.mark.parametrize(("prompts", "seed"), [(0, 0), (10**6, 0), (10, -1)])
def test_what_lies_outside_the_range_is_refused(prompts, seed):
    with pytest.raises(ValueError, match="must be from"):
        draw_prompts(prompts, seed)


def test_a_model_that_shows_the_truth_scores_like_the_truth(tmp_path, capsys):
    make = cheat(4, 0)
    report = evaluate(
        make, tmp_path, prompts=4, shape=SHAPE, codec=(Echo(), Echo()), about={"name": "cheat"}, progress=False
    )
    scores = report["scores"]
    assert scores["model"] == scores["truth"] == scores["reconstruction"]
    assert scores["model"]["everything"]["background"]["share"] == 1.0
    assert json.loads((tmp_path / "adherence.json").read_text("utf-8")) == report
    assert report["protocol"]["model"] == {"name": "cheat"}
    assert (tmp_path / "failures.png").is_file()
    assert len(list((tmp_path / "model").glob("*.mp4"))) == 4
    assert "background" in capsys.readouterr().out


def test_a_model_that_always_shows_the_same_does_not(tmp_path):
    first = draw_prompts(6)[0]

    def same(prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        for path in paths:
            write_video(path, render([first.scene], SHAPE).video[0], 8, overwrite=True)

    report = evaluate(same, tmp_path, prompts=6, shape=SHAPE, progress=False)
    assert report["scores"]["model"]["everything"]["all"]["right"] <= 2
    assert (
        report["scores"]["model"]["everything"]["all"]["right"]
        < report["scores"]["truth"]["everything"]["all"]["right"]
    )
