"""Trials: settings by name, what a run must have, truth beside its latents, and curves read back from folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange

from carrara.core.config import from_dict
from carrara.core.types import VideoShape
from carrara.data.pond.coverage import coverage
from carrara.data.pond.world import ACTORS, BACKGROUNDS, COLOURS, MOTIONS, Scene
from carrara.recipes import RECIPES
from carrara.recipes.pond_truth import TruthTable, actor_labels
from carrara.recipes.trials import (
    Curve,
    Point,
    changed,
    equal_clips,
    for_clips,
    for_minutes,
    open_run,
    read_curve,
    train_trial,
)
from carrara.systems.latent import LatentVideo

ALIGNED = {"denoiser.alignment.weight": 0.5, "denoiser.alignment.block": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What trials need of a run: the first two stages, still scenes and pairs of actors among the clips."""
    folder = tmp_path_factory.mktemp("run")
    recipe = RECIPES["pond-tiny"]()
    trained = recipe.train_autoencoder(folder / "autoencoder", torch.device("cpu"))
    recipe.cache_latents(folder, trained, torch.device("cpu"))
    return folder


def test_settings_are_changed_by_the_names_of_the_command_line():
    recipe = RECIPES["pond-tiny"]()
    assert changed(recipe, {}) == recipe
    other = changed(recipe, {"denoiser.train.optimizer": "muon", "denoiser.times.uniform": 1.0, "seed": 3})
    assert (other.denoiser.train.optimizer, other.denoiser.times.uniform, other.seed) == ("muon", 1.0, 3)
    assert other.autoencoder == recipe.autoencoder
    for settings, named in (
        ({"denoiser.times.unifrom": 1.0}, "uniform"),
        ({"denoyser.times.uniform": 1.0}, "denoiser"),
        ({"denoiser.batch": "many"}, "batch='many'"),
        ({"denoiser.times.uniform": 2.0}, r"uniform=2\.0"),
        ({"denoiser.alignment.weight": 1.0}, r"alignment\.block=4: the transformer has 2"),
    ):
        with pytest.raises(ValueError, match=named):
            changed(recipe, settings)


def test_budgets_are_whole_steps_at_a_constant_rate():
    recipe = for_clips(RECIPES["pond-tiny"](), [10, 20, 40])
    plan = recipe.denoiser.train
    assert (plan.keep, plan.steps, plan.decay_share, plan.minutes) == ((3, 5, 10), 10, 0.0, None)
    with pytest.raises(ValueError, match="budgets="):
        for_clips(recipe, [])
    assert for_minutes(recipe, 3).denoiser.train.steps is None


def test_a_run_without_an_autoencoder_or_of_another_recipe_is_refused(run, tmp_path):
    recipe = RECIPES["pond-tiny"]()
    with pytest.raises(ValueError, match="no trained autoencoder"):
        open_run(recipe, tmp_path)
    with pytest.raises(ValueError, match="name the recipe"):
        open_run(replace(recipe, width=64), run)


def test_a_trial_leaves_the_run_alone_and_aligned_ones_learn_what_is_there(run, tmp_path):
    recipe = for_clips(changed(RECIPES["pond-tiny"](), ALIGNED), [8, 40])
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    model = train_trial(recipe, open_run(recipe, run), tmp_path)
    after = sorted(path.relative_to(run) for path in run.rglob("*"))
    assert [str(path) for path in after if path not in before] == ["latents/content.safetensors"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step-00000002", "step-00000010"]
    LatentVideo.load(model)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line["content"] for line in lines if line["kind"] == "train"]
    assert told[-1] < told[0]
    curve = read_curve(tmp_path, recipe.denoiser.batch)
    assert [point.clips for point in curve.points] == [8, 40]
    assert curve.constant == 40


def test_a_trial_of_shapes_whose_clips_are_not_there_is_refused(run, tmp_path):
    recipe = changed(RECIPES["pond-tiny"](), {"denoiser.buckets.shapes": ["32x16x5"]})
    with pytest.raises(ValueError, match="0 caches"):
        train_trial(recipe, open_run(recipe, run), tmp_path / "trial")
    assert not (tmp_path / "trial").exists()


def test_the_table_tells_what_the_cached_scenes_show(run):
    cache = open_run(RECIPES["pond-tiny"](), run).latents
    table = TruthTable.open(cache, moments=4, rows=2, columns=2)
    written = (run / "latents/content.safetensors").stat().st_mtime_ns
    again = TruthTable.open(cache, moments=4, rows=2, columns=2)
    assert (run / "latents/content.safetensors").stat().st_mtime_ns == written
    assert again.covered.equal(table.covered)
    chosen = torch.tensor([5, 1])
    scenes = [from_dict(Scene, record["scene"], "scene") for record in cache.records(chosen)]
    content = table(chosen)
    covered = coverage(scenes, VideoShape(5, 32, 32), 8.0, 2, 2)
    cells = rearrange(content.covered, "b a (f r c) s -> b a f s r c", f=2, r=2)
    torch.testing.assert_close(cells[:, :, 0], covered[:, :, :1].expand_as(cells[:, :, 0]), atol=0.002, rtol=0)
    torch.testing.assert_close(cells[:, :, 1], covered[:, :, 1:], atol=0.002, rtol=0)
    for scene, labels, place in zip(scenes, content.actors.tolist(), content.clip.tolist()):
        assert tuple(BACKGROUNDS)[place[0]] == scene.background
        for actor, (kind, colour, motion) in zip(scene.actors, labels):
            assert (ACTORS[kind], tuple(COLOURS)[colour], MOTIONS[motion]) == (actor.kind, actor.colour, actor.motion)
        assert all(label == [-1, -1, -1] for label in labels[len(scene.actors) :])
    images = table.stills(chosen, torch.tensor([[0, 4], [3, 1]]))
    for row, (clip, frame) in enumerate([(0, 0), (0, 4), (1, 3), (1, 1)]):
        shown = covered[clip, :, frame].flatten(1)[:, :, None].expand(-1, -1, 4)
        torch.testing.assert_close(images.covered[row], shown, atol=0.002, rtol=0)
        assert images.actors[row, :, :2].equal(content.actors[clip, :, :2])
        assert images.clip[row].equal(content.clip[clip])
    assert (images.actors[..., 2] == -1).all()
    assert actor_labels(replace(scenes[0], still=True))[0][2] == -1


def test_an_outdated_table_is_made_again(run):
    cache = open_run(RECIPES["pond-tiny"](), run).latents
    assert TruthTable.open(cache, 4, 4, 4).covered.shape == (8, 2, 5, 4, 4)
    assert TruthTable.open(cache, 4, 2, 2).covered.shape == (8, 2, 5, 2, 2)


def test_curves_follow_power_laws_between_validations():
    points = [Point(clips, {"loss_mean": 3 * clips**-0.5}) for clips in (100, 400, 900)]
    curve = Curve(points, rate=10.0, constant=900)
    for clips in (100, 250, 400, 899):
        assert curve.at(clips)["loss_mean"] == pytest.approx(3 * clips**-0.5)
    with pytest.raises(ValueError, match="clips=50"):
        curve.at(50)


def test_equal_clips_lie_before_every_decay():
    def curve(*clips: int, constant: int) -> Curve:
        return Curve([Point(n, {"loss_mean": 1.0}) for n in clips], 1.0, constant)

    fast, slow = curve(100, 200, 300, 400, constant=320), curve(120, 240, 360, constant=290)
    assert equal_clips([fast, slow]) == 240
    assert equal_clips([fast]) == 300
    assert equal_clips([fast, curve(500, 600, constant=600)]) is None


def test_a_folder_without_validation_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no validation"):
        read_curve(tmp_path, 4)
