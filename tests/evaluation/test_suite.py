"""The suite with a model that is the truth, one that is not, and an autoencoder that changes nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from carrara.core.media import write_video
from carrara.core.types import Stride, VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.validity import is_held_out
from carrara.evaluation.prompts import HELD_IN_START, draw_prompts
from carrara.evaluation.subject import SUITES, Subject
from carrara.evaluation.suite import evaluate

SHAPE = VideoShape(17, 64, 64)


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


def never(prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
    """A model that must not be asked, because its clips are there."""
    raise AssertionError(f"asked for {paths}")


def test_prompts_are_fixed_varied_and_never_those_of_training():
    prompts = draw_prompts(30, seed=3)
    assert prompts == draw_prompts(30, seed=3)
    assert prompts[:10] == draw_prompts(10, seed=3)
    assert {p.seed for p in prompts}.isdisjoint({p.seed for p in draw_prompts(30, seed=4)})
    assert min(p.seed for p in prompts) >= HELD_IN_START
    for prompt in prompts:
        assert is_held_out(prompt.scene) == (prompt.split == "held out")
    groups = {group for prompt in prompts for group in prompt.groups()}
    assert {"short", "medium", "dense", "one actor", "two actors", "moving camera"} <= groups
    assert sum(prompt.asked.relation is not None for prompt in prompts) >= 4


@pytest.mark.parametrize(("prompts", "seed"), [(0, 0), (10**6, 0), (10, -1)])
def test_what_lies_outside_the_range_is_refused(prompts, seed):
    with pytest.raises(ValueError, match="must be from"):
        draw_prompts(prompts, seed)


def test_a_model_that_shows_the_truth_scores_like_the_truth(tmp_path):
    codec = (Echo(), Echo())
    subject = Subject(SHAPE, 8.0, cheat(4, 1000), codec=codec, about={"model": "cheat", "weights": "the truth"})
    evaluate(subject, tmp_path, only=("adherence",), prompts=4, seed=1000, progress=False)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    scores = report["sections"]["adherence"]["data"]["scores"]
    assert scores["model"] == scores["truth"] == scores["reconstruction"]
    assert scores["model"]["everything"]["background"]["share"] == 1.0
    assert scores["frozen"]["everything"]["motion"]["right"] == 0
    assert report["about"]["model"] == "cheat"
    assert len(list((tmp_path / "model").glob("*.mp4"))) == 4
    before = (tmp_path / "report.json").read_bytes()
    for folder, again in ((tmp_path / "anew", subject), (tmp_path, replace(subject, generates=never))):
        evaluate(again, folder, only=("adherence",), prompts=4, seed=1000, progress=False)
        assert (folder / "report.json").read_bytes() == before


def test_a_model_that_always_shows_the_same_fails_and_its_failures_are_shown(tmp_path):
    first = draw_prompts(6, 1000)[0]

    def same(prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        for path in paths:
            write_video(path, render([first.scene], SHAPE).video[0], 8, overwrite=True)

    (section,) = evaluate(
        Subject(SHAPE, 8.0, same), tmp_path, only=("adherence",), prompts=6, seed=1000, progress=False
    )
    model, truth = (section.data["scores"][name]["everything"]["all"]["right"] for name in ("model", "truth"))
    assert model <= 2
    assert model < truth
    assert len(section.pictures) == 6 - model
    assert (tmp_path / "report.html").read_text("utf-8").count("<img") == 6 - model


def test_what_is_unknown_is_refused_before_anything_is_written(tmp_path):
    subject = Subject(SHAPE, 8.0)
    with pytest.raises(ValueError, match="did you mean quick"):
        evaluate(subject, tmp_path / "new", suite="quik")
    with pytest.raises(ValueError, match="did you mean adherence"):
        evaluate(subject, tmp_path / "new", only=("adherance",))
    assert set(SUITES) == {"quick", "full"}
    assert not (tmp_path / "new").exists()


def test_clips_too_short_for_a_broken_law_are_a_gap_and_the_rest_goes_on(tmp_path):
    def scores(clips, prompt, levels, seed):
        raise AssertionError("asked for what cannot be measured")

    subject, said = Subject(VideoShape(9, 64, 64), 8.0, scores_noise=scores), []
    only = ("adherence", "preference")
    sections = evaluate(subject, tmp_path, only=only, prompts=1, seed=1000, tell=said.append, progress=False)
    assert [section.name for section in sections] == ["adherence", "preference"]
    assert said == ["not measured: preference: clips of 9 frames are too short to break a law in; 11 are enough"]
