"""The recipe for PhyWorld's balls in small: from nothing to a model that continues and scores clips."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from going_on import check_went_on

from carrara.core.types import VideoShape
from carrara.data.phyworld import caption, render_balls, sample_balls
from carrara.evaluation.physics.continuation import known_frames, measure_physics
from carrara.recipes import RECIPES
from carrara.recipes.phyworld import BallSource, BallWorld
from carrara.recipes.pond_shapes import Buckets
from carrara.systems.latent import LatentVideo
from carrara.systems.latent_scores import LatentContinues


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, RECIPES["phyworld-tiny"]().run(folder)


def test_from_nothing_to_a_model_whose_physics_can_be_measured(trained):
    folder, model = trained
    system = LatentVideo.load(model)
    assert (system.defaults.frames, system.defaults.width, system.defaults.fps) == (9, 32, 10.0)
    assert system.defaults.knows == ("levels",)  # of keyframes it was taught nothing
    assert list((folder / "denoiser/pictures").glob("*.png"))
    found = measure_physics(
        LatentContinues(system),
        VideoShape(9, 32, 32),
        clips=1,
        seed=1000,
        codec=(system.autoencoder, system.autoencoder),
        kinds=("uniform",),
        known=known_frames(system.stride.time),
    )
    assert found.sources == ("truth", "reconstruction", "model", "copy last", "constant velocity")
    assert found.shown["model", "uniform", "in"].shape == (9, 32, 32, 3)


def test_a_finished_model_goes_on_and_keeps_its_autoencoder_and_its_words(trained, tmp_path):
    _, model = trained
    went_on = replace(RECIPES["phyworld-tiny"](), start=str(model)).run(tmp_path / "run")
    before, after = LatentVideo.load(model), LatentVideo.load(went_on)
    check_went_on(before, after, tmp_path / "run")


def test_the_prompt_to_try_it_with_is_one_that_it_learned():
    recipe = RECIPES["phyworld-tiny"]()
    assert recipe.example == caption(sample_balls(0, "uniform"))
    assert replace(recipe, world=BallWorld(("parabola",))).example == caption(sample_balls(1, "parabola"))


def test_other_shapes_are_refused_before_anything_is_trained():
    recipe = RECIPES["phyworld-tiny"]()
    with pytest.raises(ValueError, match="only the pond"):
        replace(recipe, denoiser=replace(recipe.denoiser, buckets=Buckets(("32x16x5",))))


def test_what_is_no_finished_model_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        replace(RECIPES["phyworld-tiny"](), start=str(tmp_path / "nowhere")).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_world_in_the_same_folder_is_refused(trained):
    folder, _ = trained
    with pytest.raises(ValueError, match="world"):
        replace(RECIPES["phyworld-tiny"](), world=BallWorld(("parabola",))).run(folder)


def test_scenes_are_numbered_and_pieces_are_parts_of_their_clips():
    source = BallSource(VideoShape(9, 32, 32), 10.0, BallWorld(("uniform", "collision")), torch.device("cpu"))
    assert [scene.kind for scene in source.scenes(4, 3)] == ["uniform", "collision", "uniform"]
    whole, pieces = source.batch(4, 3), source.pieces(4, 3, 5)
    assert torch.equal(whole.video, render_balls(source.scenes(4, 3), source.shape).video)
    for clip, piece in zip(whole.video, pieces.video):
        assert any(torch.equal(clip[first : first + 5], piece) for first in range(5))


@pytest.mark.parametrize("kinds", [(), ("pendulum",)])
def test_a_world_without_known_kinds_is_refused(kinds):
    with pytest.raises(ValueError, match="kind"):
        BallWorld(kinds)
