"""The systems of pixels on a prepared folder: trained, resumed, refused, and who is told which words."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tests.data.prepared_folder import Clip, write_prepared

from carrara.cli import run
from carrara.core.types import VideoShape
from carrara.recipes import RECIPES, prepared_words
from carrara.recipes.make_a_video import PHASES, MakeAVideoRecipe
from carrara.recipes.make_a_video_data import captioned_images, unlabelled_clips
from carrara.recipes.pond_unlabelled import Rates
from carrara.recipes.prepared_clips import PreparedClips, captioned_clips, opened
from carrara.recipes.prepared_unlabelled import prepared_unlabelled, shown_at
from carrara.recipes.scoreboard import _deciding
from carrara.recipes.systems import contest_tiny
from carrara.recipes.vdm import VDMRecipe
from carrara.systems.make_a_video import FASTEST, STAGES
from carrara.systems.registry import load_system
from carrara.systems.unlabelled_phase import UnlabelledClips, UnlabelledPhase
from carrara.training.loop import Stopped
from carrara.training.metrics import read_metrics

CPU = torch.device("cpu")
RATE = 16.0
MOVING = [Clip((13, 64, 64), n, None if n % 3 == 2 else "") for n in range(6)]  # two of them without a caption
IMAGES = [Clip((1, 64, 64), 6 + n) for n in range(3)]
OTHERS = [Clip((5, 48, 32), 9 + n) for n in range(2)]  # which fit no stage


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", [*MOVING, *IMAGES, *OTHERS], fps=RATE)


def tiny_vdm(data: Path | str, **settings: object) -> VDMRecipe:
    recipe = RECIPES["vdm-tiny"]()
    assert isinstance(recipe, VDMRecipe)
    return replace(recipe, data=str(data), held_out=0.0, threads=1, **settings)


def tiny_make_a_video(data: Path | str, **settings: object) -> MakeAVideoRecipe:
    recipe = RECIPES["make-a-video-tiny"]()
    assert isinstance(recipe, MakeAVideoRecipe)
    return replace(recipe, data=str(data), held_out=0.0, threads=1, **settings)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]


@pytest.fixture
def clips(data: Path):
    with opened(str(data), 0.0, 0, 1, 1.0, []) as found:
        assert found is not None
        yield found


def test_a_vdm_trains_on_a_folder_and_knows_its_words(data, tmp_path, capsys):
    arguments = ["--data", str(data), "--held-out", "0.3", "--threads", "1"]
    assert run(["train", "vdm-tiny", "-o", str(tmp_path / "run"), *arguments]) == 0
    said = capsys.readouterr().out
    assert f"{data}: 11 clips, 9 with captions, " in said
    assert "fine learns 3 frames of 32x32 at 16 fps: " in said
    assert 'fine/model "a red square number 0"' in said
    system = load_system(tmp_path / "run/fine/model")
    assert system.unknown_words("a green square number 4") == []
    assert system.unknown_words("a frog") == ["frog"]
    recorded = json.loads((tmp_path / "run/fine/config.json").read_text())["recipe"]
    assert (len(recorded["data"]), recorded["held_out"]) == (3, 0.3)
    assert not {"threads", "memory"} & set(recorded)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    recipe = tiny_vdm(data, only_base=True)
    config = replace(recipe.base.train, steps=5, log_every=1, picture_every=0, validate_every=0)
    recipe = replace(recipe, base=replace(recipe.base, train=config))
    recipe.run(tmp_path / "whole")
    cut, cuts = PreparedClips.cut, []

    def interrupted(self: PreparedClips, *arguments: object):
        cuts.append(1)
        if len(cuts) == 9:  # the fixed batch, that of the count, three of two each, and then the fourth
            raise KeyboardInterrupt
        return cut(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PreparedClips, "cut", interrupted)
        with pytest.raises(Stopped):
            recipe.run(tmp_path / "parts")
    assert 0 < len(losses(tmp_path / "parts/base")) < 5
    with pytest.raises(ValueError, match="held_out"):
        replace(recipe, held_out=0.2).run(tmp_path / "parts")
    recipe.run(tmp_path / "parts")
    assert losses(tmp_path / "parts/base") == losses(tmp_path / "whole/base")
    assert len(losses(tmp_path / "whole/base")) == 5


def test_a_run_stays_with_its_clips_even_where_a_stage_is_finished(data, tmp_path):
    recipe = tiny_vdm(data, only_base=True)
    model = recipe.run(tmp_path / "run")
    assert recipe.run(tmp_path / "run") == model
    other = write_prepared(tmp_path / "other", [Clip((13, 64, 64), n) for n in range(4)], fps=RATE)
    with pytest.raises(ValueError, match=r"run/base: was trained on other clips than those of --data; give the same"):
        replace(recipe, data=str(other)).run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run/base: was trained on a prepared folder; give the same --data to go on"):
        replace(recipe, data="").run(tmp_path / "run")
    path = tmp_path / "pond/base/config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"train": {}, "recipe": {"seed": 0}}))
    with pytest.raises(ValueError, match=r"pond/base: was trained on the pond; leave --data out to go on, or train in"):
        recipe.run(tmp_path / "pond")


def test_runs_on_the_pond_record_what_they_always_did():
    vdm, make_a_video = RECIPES["vdm-tiny"](), RECIPES["make-a-video-tiny"]()
    names = {"base", "settings", "mix", "captioning", "text_width", "text_layers", "seed"}
    assert set(vdm._settings("base")) == names
    of_folders = {"data", "held_out", "threads", "memory"}
    assert not of_folders & set(make_a_video._kept("image"))
    for recipe in (vdm, make_a_video):
        assert not of_folders & set(_deciding(recipe))  # of a scoreboard
    latent = _deciding(RECIPES["pond-tiny"]())
    assert not {"buckets", "favoured"} & set(latent["denoiser"])  # which came later, and are not asked for
    with pytest.raises(ValueError, match=r"vdm\.data='mine': systems are compared on the same world, the pond"):
        replace(contest_tiny(), vdm=tiny_vdm("mine"))


def test_batches_are_a_function_of_the_step_and_captions_are_those_of_their_clips(clips):
    recipe = tiny_vdm("")
    for stage in ("base", "fine"):
        plan, wanted = recipe.plan(stage), recipe.wanted(stage)
        numbers = clips.trained(wanted)
        assert numbers == list(range(6))
        at = captioned_clips(clips, wanted, numbers, 3, 2, 0)
        first, again, next_ = at(4), at(4), at(5)
        assert first.video.equal(again.video)
        assert first.images.equal(again.images)
        assert first.captions == again.captions
        assert not first.video.equal(next_.video)
        assert first.video.shape == (3, plan.frames, plan.height, plan.width, 3)
        assert first.images.shape == (3, 2, plan.height, plan.width, 3)
        seen = [at(step) for step in range(4)]
        assert {said for batch in seen for said in batch.captions} == {clip.text or "" for clip in MOVING}
        behind = {said for batch in seen for said in batch.image_captions}
        assert behind == {clip.text or "" for clip in (*MOVING, *IMAGES)}


def test_what_is_held_out_is_validated_on_and_shown_to_no_stage(data):
    recipe = tiny_vdm(data)
    with opened(str(data), 0.4, 1, 1, 1.0, []) as clips:
        assert clips is not None
        held = clips.split.held_out
        assert held
        wanted = recipe.wanted("base")
        for one in (wanted, wanted.still):
            assert not held & set(clips.trained(one))
            fits = [n for n in sorted(held) if one.fits(clips.prepared.bucket(n), RATE)]
            assert clips.held_out(one, 99) == fits != []
            assert len(clips.held_out(one, 1)) == 1


def test_make_a_video_trains_on_a_folder_in_which_everything_has_a_caption(tmp_path):
    data = write_prepared(tmp_path / "data", [*(replace(clip, caption="") for clip in MOVING), *IMAGES], fps=RATE)
    model = tiny_make_a_video(data).run(tmp_path / "run")
    system = load_system(model)
    assert tuple(system.networks) == STAGES
    assert system.unknown_words("a white square number 3") == []
    recorded = json.loads((tmp_path / "run/decoder/config.json").read_text())["recipe"]
    assert (len(recorded["data"]), recorded["held_out"]) == (2, 0.0)
    assert not {"threads", "memory"} & set(recorded)


def test_words_reach_images_and_no_video_phase(clips):
    recipe = tiny_make_a_video("")
    system = recipe.fresh(clips)
    told = {clip.text for clip in (*MOVING, *IMAGES) if clip.text}
    for name in PHASES:
        system = recipe.grown(system, name)
        phase = recipe.phase(name, system, CPU, clips)
        batches = [phase.batch(step) for step in range(6)]
        if name in ("contrastive", "prior"):
            assert {batch.video.shape for batch in batches} == {(2, 1, 16, 16, 3)}
            assert {said for batch in batches for said in batch.captions} <= told
            continue
        assert isinstance(phase, UnlabelledPhase)
        for batch in (*batches, phase.validation):
            assert type(batch) is UnlabelledClips
            assert {field.name for field in fields(batch)} == {"video", "fps"}
        side = {"space_time": 32, "space": 64}.get(name, 16)
        frames = 1 if name in ("image", "space") else 4
        assert batches[0].video.shape == (2, frames, side, side, 3)


@pytest.mark.parametrize("tiny", [tiny_vdm, tiny_make_a_video])
def test_the_tokenizer_whose_captions_are_checked_is_the_one_that_is_trained_with(data, tiny, monkeypatch):
    made, train_words = [], prepared_words.train_tokenizer
    monkeypatch.setattr(prepared_words, "train_tokenizer", lambda *given: made.append(train_words(*given)) or made[-1])
    with opened(str(data), 0.0, 0, 1, 1.0, []) as clips:
        assert clips is not None
        recipe = tiny("")
        recipe.check(clips)
        assert recipe.fresh(clips).tokenizer is clips.words is made[0]
        assert len(made) == 1
        assert clips.without_captions().words is made[1]  # where nothing is left of them
        assert made[1].known_words() == []


def test_nothing_is_left_of_captions_where_video_phases_read(clips, monkeypatch):
    assert any(clips.captions(range(11)))
    assert clips.without_captions().captions(range(11)) == [""] * 11
    assert any(clips.captions(range(11)))  # of a copy they were taken away
    seen, cut = [], PreparedClips.cut

    def watched(self: PreparedClips, *arguments: object):
        seen.append(any(row.caption for row in self.prepared.rows))
        return cut(self, *arguments)

    monkeypatch.setattr(PreparedClips, "cut", watched)
    recipe = tiny_make_a_video("")
    for name in PHASES:
        seen.clear()
        unlabelled = name not in ("contrastive", "prior")
        data = (unlabelled_clips if unlabelled else captioned_images)(recipe, name, CPU, clips)
        data.batch(0)
        assert seen == [not unlabelled] * 2, name  # the fixed batch, and that of a step


def test_rates_are_those_that_frames_left_out_give(clips):
    wanted = tiny_make_a_video("").wanted("decoder")
    numbers = clips.trained(wanted)
    assert sorted(shown_at(clips, wanted, numbers, Rates(2.0, 30.0), 2)) == [1, 2, 3, 4]  # 13 frames are no fifth of 2
    assert sorted(shown_at(clips, wanted, numbers, Rates(2.0, 8.0), 2)) == [2, 3, 4]
    assert sorted(shown_at(clips, wanted, numbers, Rates(2.0, 30.0), 7)) == [4]  # fewer clips than a batch
    rates = Rates(2.0, 30.0, 10)
    at = prepared_unlabelled(clips, wanted, numbers, rates, 2, 0)
    told = [at(step).fps for step in range(40)]
    assert told[0] == RATE  # the highest first
    assert set(told) == {RATE, RATE / 2, RATE / 3, RATE / 4}
    assert max(told) <= FASTEST
    assert at(7).video.equal(at(7).video)
    still = prepared_unlabelled(clips, wanted.still, numbers, rates, 2, 0)
    assert still(3).video.shape[1] == 1
    fast, slow = (
        torch.stack([_moved(at(step)) for step in range(40) if at(step).fps == rate]).mean() for rate in (16.0, 4.0)
    )
    assert fast < slow


def test_each_rate_shows_every_clip_once_before_any_twice(clips, monkeypatch):
    wanted = tiny_make_a_video("").wanted("decoder")
    numbers, chosen = clips.trained(wanted), {}
    cut = PreparedClips.cut

    def watched(self: PreparedClips, numbers: list[int], wanted: object, every: int, seed: int):
        chosen.setdefault(every, []).extend(numbers)
        return cut(self, numbers, wanted, every, seed)

    monkeypatch.setattr(PreparedClips, "cut", watched)
    pools, rates = shown_at(clips, wanted, numbers, Rates(2.0, 30.0), 2), Rates(2.0, 30.0, 10)
    at = prepared_unlabelled(clips, wanted, numbers, rates, 2, 0)
    for step in range(60):
        at(step)
    assert set(chosen) == set(pools)
    for every, seen in chosen.items():
        whole = len(pools[every])
        assert len(seen) > whole
        for start in range(0, len(seen) - whole + 1, whole):
            assert sorted(seen[start : start + whole]) == sorted(pools[every])
    again = prepared_unlabelled(clips, wanted, numbers, rates, 2, 0)
    assert again(37).video.equal(at(37).video)  # a run that is resumed there


def _moved(batch: UnlabelledClips) -> torch.Tensor:
    return batch.video.float().diff(dim=1).abs().mean()


@pytest.mark.parametrize(
    ("recipe", "clips", "said"),
    [
        ("vdm-tiny", None, "nowhere: not a prepared folder, for it has no prepared.json; make one"),
        (
            "vdm-tiny",
            [Clip((5, 48, 32), n) for n in range(3)] + [Clip((1, 64, 64), 3)],
            "none of its clips fits base, which learns 4 frames of 16x16 at 8 fps: it has 5 frames of 32x48, images of "
            "64x64 at 16 fps; prepare clips that fit all stages: "
            "carrara data prepare CLIPS FOLDER --sizes 32x32 --frames 9 --fps 16",
        ),
        ("vdm-tiny", [Clip((5, 64, 64), n) for n in range(3)], "none of its clips fits base, which learns 4 frames"),
        ("vdm-tiny", [Clip((9, 16, 16), n) for n in range(3)], "none of its clips fits fine, which learns 3 frames of"),
        ("vdm-tiny", [Clip((9, 32, 32), n, None) for n in range(3)], "none of the clips that fit base, which learns 4"),
        (
            "vdm-tiny",
            [Clip((9, 32, 32))],
            "1 of its clips that are not held out fit base, which learns 4 frames of 16x1",
        ),
        ("vdm-tiny", [Clip((9, 32, 32))], "and a batch takes 2; prepare more, or set --base.batch 1"),
        ("vdm-tiny", [Clip((9, 32, 32), n, "red " * 600) for n in range(2)], "the caption of clip 000000000 is too lo"),
        ("make-a-video-tiny", None, "nowhere: not a prepared folder"),
        (
            "make-a-video-tiny",
            [Clip((13, 64, 64), n, None) for n in range(3)],
            "none of the clips that fit contrastive, whi",
        ),
        (
            "make-a-video-tiny",
            [Clip((1, 64, 64), n) for n in range(3)],
            "none of its clips fits decoder, which learns 4 frames of 16x16 at 4 fps: it has images of 64x64",
        ),
        ("make-a-video-tiny", [Clip((13, 32, 32), n) for n in range(3)], "none of its clips fits space, which learns"),
        (
            "make-a-video-tiny",
            [Clip((5, 64, 64)), Clip((5, 64, 64), 1)],
            "--sizes 64x64 --frames 9 --fps 8",
        ),
        (
            "make-a-video-tiny",
            [Clip((1, 64, 64), n) for n in range(3)] + [Clip((13, 64, 64), 3)],
            "1 of its clips that are not held out fit decoder, which learns 4 frames of 16x16 at 4 fps, and a batch t",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused_before_anything_runs(recipe, clips, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = "nowhere" if clips is None else str(write_prepared(tmp_path / "data", clips, fps=RATE))
    assert run(["train", recipe, "-o", "run", "--data", folder, "--held-out", "0"]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_damaged_shards_and_bad_shares_are_told_before_the_first_step(data, tmp_path):
    with pytest.raises(ValueError, match="held_out=1: must be a share"):
        replace(tiny_vdm(data), held_out=1).run(tmp_path / "run")
    with pytest.raises(ValueError, match="leaves none of the 11 clips"):
        replace(tiny_make_a_video(data), held_out=0.99999).run(tmp_path / "run")
    damaged = write_prepared(tmp_path / "data", MOVING, fps=RATE)
    shard = next(damaged.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    for recipe in (tiny_vdm(damaged), tiny_make_a_video(damaged)):
        with pytest.raises(ValueError, match=r"shard-0000\d\.tar: damaged"):
            recipe.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_base_of_single_frames_learns_from_images_too(clips):
    recipe = tiny_vdm("")
    wanted = replace(recipe.wanted("base"), shape=VideoShape(1, 64, 64))
    assert clips.trained(wanted) == list(range(9))
