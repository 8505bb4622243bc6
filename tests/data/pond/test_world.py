"""Laws of the pond's vocabulary, its validity and its sampling."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from carrara.core.config import from_dict, to_dict
from carrara.data.pond import world
from carrara.data.pond.sampling import EVERYTHING, IMAGES, SINGLES, Mix, sample_scene
from carrara.data.pond.validity import HELD_OUT, is_held_out, validity
from carrara.data.pond.world import ACTORS, BACKGROUNDS, COLOURS, MOTIONS, SIZES, Actor, Scene


def test_colours_are_far_apart() -> None:
    assert len(COLOURS) == 10
    for a, b in combinations(COLOURS.values(), 2):
        assert world.colour_distance(a, b) >= 25


def test_lab_of_known_colours() -> None:
    assert world.lab((255, 255, 255)) == pytest.approx([100, 0, 0], abs=0.02)
    assert world.lab((255, 0, 0)) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_scenes_survive_json(seed: int) -> None:
    scene = sample_scene(seed)
    assert from_dict(Scene, to_dict(scene), "scene") == scene


def test_sampling_is_a_function_of_the_seed() -> None:
    assert [sample_scene(s) for s in range(30)] == [sample_scene(s) for s in range(30)]
    assert len({sample_scene(s) for s in range(30)}) == 30


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("mix", [IMAGES, SINGLES, EVERYTHING, Mix(two=1.0, relation=1.0, camera=0.5), Mix(wall=1.0)])
def test_every_sampled_scene_is_valid_and_in_its_split(mix: Mix, split: str) -> None:
    for seed in range(150):
        scene = sample_scene(seed, mix, split)
        assert validity(scene) is None, scene
        assert is_held_out(scene) == (split == "held_out")


def test_every_single_value_is_seen_in_training() -> None:
    scenes = [sample_scene(seed) for seed in range(1500)]
    actors = [actor for scene in scenes for actor in scene.actors]
    assert {actor.kind for actor in actors} == set(ACTORS)
    assert {actor.colour for actor in actors} == set(COLOURS)
    assert {actor.size for actor in actors} == set(SIZES)
    assert {actor.motion for actor in actors} == set(MOTIONS)
    assert {actor.stilts for actor in actors} == {False, True}
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.relation for scene in scenes} == {None, *world.RELATIONS}
    assert {scene.wall for scene in scenes} == {None, *world.WALLS}
    assert {scene.camera for scene in scenes} == set(world.CAMERAS)


def test_held_out_pairs_leave_most_of_every_value() -> None:
    values = {value for pair in HELD_OUT for value in pair}
    assert values <= {*ACTORS, *COLOURS, *MOTIONS, *BACKGROUNDS}
    for colour in COLOURS:
        assert sum(pair[0] == colour for pair in HELD_OUT) <= 1
    for motion in MOTIONS:
        assert sum(pair[1] == motion for pair in HELD_OUT) <= 3


@pytest.mark.parametrize(
    "scene",
    [
        Scene("meadow", (Actor("ball", "red", "small", "bounces", y=-0.2),)),
        Scene("pond", (Actor("frog", "green", "small", "jumps", x=-0.25),)),
        Scene("sky", (Actor("bird", "red", "large", "flies", x=-0.2),)),
    ],
)
def test_plain_wishes_can_be_seen_and_are_trained_on(scene: Scene) -> None:
    assert validity(scene) is None
    assert not is_held_out(scene)


@pytest.mark.parametrize(
    ("scene", "why"),
    [
        (Scene("night", (Actor("bird", "black"),)), "too close"),
        (Scene("sky", (Actor("fish", "red", motion="swims"),)), "does not swim"),
        (Scene("sky", (Actor("car", "red", motion="left", stilts=True),)), "stilts"),
        (Scene("sky", (Actor("car", "red"), Actor("car", "red"))), "told apart"),
        (Scene("sky", (Actor("car", "red", motion="spins"),), wall="hides"), "wall"),
        (Scene("sky", (Actor("car", "red", motion="grows"),), camera="zoom in"), "zoom in"),
        (Scene("sky", (Actor("car", "red", motion="spins", x=0.49),)), "in sight"),
        (Scene("sky", (Actor("car", "red", motion="left", x=0.3, speed=0.3),)), "0.25 is needed"),
    ],
)
def test_what_cannot_be_seen_is_refused_with_a_reason(scene: Scene, why: str) -> None:
    assert why in (validity(scene) or "")


def test_an_image_has_no_motion_to_hold_out() -> None:
    scene = Scene("meadow", (Actor("box", "red", motion="up"),))
    assert is_held_out(scene)
    assert not is_held_out(replace(scene, still=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Actor("bal", "red"), "did you mean ball"),
        (lambda: Actor("ball", "redd"), "did you mean red"),
        (lambda: Scene("medow", (Actor("ball", "red"),)), "did you mean meadow"),
        (lambda: Scene("sky", ()), "one or two"),
        (lambda: Scene("sky", (Actor("ball", "red"),), relation="follows"), "two actors"),
        (lambda: Actor("ball", "red", speed=0.0), "above 0"),
        (lambda: Mix(two=1.5), "between 0 and 1"),
        (lambda: sample_scene(0, split="test"), "unknown split"),
    ],
)
def test_wrong_values_are_refused_by_name(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
