"""An evaluation that was stopped goes on: what was made for the same question by the same maker is not made again."""

import json
from dataclasses import replace

import pytest
import torch

from carrara.core.media import write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.evaluation.kept import ANSWERS, RECORD, Made, answering, digest, identity
from carrara.evaluation.prompts import draw_prompts
from carrara.evaluation.sources import make_sources
from carrara.evaluation.subject import Subject
from carrara.evaluation.suite import evaluate

SHAPE = VideoShape(11, 32, 32)
PROMPTS = draw_prompts(12, 1000)
SCENES = {prompt.seed: prompt.scene for prompt in PROMPTS}


class Counting:
    """A model that shows the truth, counts what it is asked, and may be stopped at the n-th clip or score."""

    def __init__(self, stop: int = -1) -> None:
        self.made, self.scored, self.stop = 0, 0, stop

    def make(self, prompts, seeds, paths):
        for seed, path in zip(seeds, paths):
            if self.made == self.stop:
                raise KeyboardInterrupt
            write_video(path, render([SCENES[seed]], SHAPE).video[0], 8, overwrite=True)
            self.made += 1

    def score(self, clips, prompt, levels, seed):
        if self.scored == self.stop:
            raise KeyboardInterrupt
        self.scored += 1
        return clips.double().flatten(1).mean(1)[:, None] * torch.tensor(levels)


def clips(counting: Counting, folder, by: str | None) -> list[bytes]:
    """The model's clips and the truth's, as bytes."""
    sources = make_sources(PROMPTS, folder, {"model": counting.make}, SHAPE, 8.0, None, False, by)
    return [path.read_bytes() for source in sources[:2] for path in source.paths]


def preference(counting: Counting, folder, **about: str) -> bytes:
    """The report of a measure that asks the model for losses."""
    subject = Subject(SHAPE, 8.0, scores_noise=counting.score, about=about)
    evaluate(subject, folder, only=("preference",), seed=1000, progress=False)
    return (folder / "report.json").read_bytes()


def test_clips_go_on_where_they_were_stopped(tmp_path):
    expected = clips(Counting(), tmp_path / "whole", "x")
    with pytest.raises(KeyboardInterrupt):
        clips(Counting(stop=10), tmp_path / "stopped", "x")
    rest, again = Counting(), Counting()
    assert clips(rest, tmp_path / "stopped", "x") == expected
    assert rest.made == 4  # they are made eight at a time
    assert clips(again, tmp_path / "stopped", "x") == expected
    assert again.made == 0


def test_clips_of_another_or_that_have_changed_are_made_anew(tmp_path):
    expected = clips(Counting(), tmp_path, "x")
    other, mended, lost, never = Counting(), Counting(), Counting(), Counting()
    clips(other, tmp_path, "y")
    assert other.made == 12
    (tmp_path / "model" / "0003.mp4").write_bytes(b"something else")
    (tmp_path / "model" / "0005.mp4").unlink()
    assert clips(mended, tmp_path, "y") == expected
    assert mended.made == 2
    (tmp_path / "model" / RECORD).write_text("{", "utf-8")
    clips(lost, tmp_path, "y")
    assert lost.made == 12
    clips(never, tmp_path, None)
    assert never.made == 12


def test_losses_go_on_where_they_were_stopped(tmp_path):
    whole, rest, again, other = Counting(), Counting(), Counting(), Counting()
    expected = preference(whole, tmp_path / "whole", weights="abc")
    with pytest.raises(KeyboardInterrupt):
        preference(Counting(stop=5), tmp_path / "stopped", weights="abc")
    assert preference(rest, tmp_path / "stopped", weights="abc") == expected
    assert rest.scored == whole.scored - 5
    next((tmp_path / "stopped" / ANSWERS).glob("*.npz")).write_bytes(b"PK")
    assert preference(again, tmp_path / "stopped", weights="abc") == expected
    assert again.scored == 1
    preference(other, tmp_path / "stopped", weights="def")
    assert other.scored == whole.scored


def test_a_model_whose_weights_are_not_named_is_measured_anew(tmp_path):
    first, second = Counting(), Counting()
    assert preference(first, tmp_path, model="x") == preference(second, tmp_path, model="x")
    assert first.scored == second.scored > 0
    assert not (tmp_path / ANSWERS).exists()


def test_identity_is_of_weights_settings_and_shape():
    about = {"weights": "abc", "sampling": {"steps": 20}}
    assert identity(about, 8) == identity(dict(reversed(about.items())), 8)
    assert len({identity(about, 8), identity(about, 9), identity(about | {"sampling": {"steps": 21}}, 8)}) == 3
    assert identity({"model": "x"}) is None
    subject = Subject(SHAPE, 8.0, about=about)
    assert subject.identity != replace(subject, fps=9.0).identity


def test_answers_are_the_same_tensors_for_the_same_question_only(tmp_path):
    asked = []

    def double(clip: torch.Tensor, frames: int = 1, prompt: str = "") -> torch.Tensor:
        asked.append(frames)
        return clip * 2

    kept = answering(double, tmp_path, "x")
    for clip in (torch.arange(6, dtype=torch.uint8).view(2, 3), torch.ones(2, dtype=torch.float64)):
        for _ in range(2):
            assert torch.equal(kept(clip, frames=3), clip * 2)
            assert kept(clip, frames=3).dtype == clip.dtype
        kept(clip, frames=4)
    assert asked == [3, 4, 3, 4]
    answering(double, tmp_path, "y")(torch.ones(2, dtype=torch.float64), frames=3)
    assert asked[4:] == [3]
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))


def test_a_record_that_is_not_one_is_none(tmp_path):
    (tmp_path / RECORD).write_text(json.dumps({"by": "x", "clips": 3}), "utf-8")
    assert Made(tmp_path, "x").clips == {}
