"""Melted clips: the truth beside them is the scene, and what melts are its actors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.data.pond.melting import WAYS, Melting, melt, otherwise, settled
from carrara.data.pond.render import render
from carrara.data.pond.sampling import IMAGES, SINGLES, Mix, sample_scene
from carrara.data.pond.world import Actor, Scene

SHAPE = VideoShape(5, 64, 64)
SCENES = [sample_scene(number, SINGLES) for number in range(8)]
NOTHING = Melting(hint=1, recoloured=0, ghosts=0, doubled=0, bend=0, tint=0, grain=0)


def error(made, where):
    return (made.melted.float() - made.video[:, 0].float()).abs().mean(-1)[where].mean().item()


def test_the_truth_is_the_scene_and_all_is_a_function_of_the_seed():
    made, again, other = (melt(SCENES, SHAPE, 8.0, Melting(), seed) for seed in (1, 1, 2))
    rendered = render(SCENES, SHAPE, 8.0)
    assert torch.equal(made.video[:, 0], rendered.video)
    assert torch.equal(made.actors[:, 0], rendered.mask)
    assert (made.touched | (rendered.mask == 0)).all()
    assert torch.equal(made.melted, again.melted)
    assert not torch.equal(made.melted, other.melted)
    assert made.melted.dtype == torch.uint8
    assert made.melted.shape == made.video[:, 0].shape


def test_where_nothing_melts_a_clip_is_blurred_at_most():
    made = melt(SCENES, SHAPE, 8.0, NOTHING, 0)
    true = made.video[:, 0].float()
    change = (made.melted.float() - true).abs()
    flat = torch.nn.functional.max_pool2d(true.permute(0, 1, 4, 2, 3).flatten(0, 1), 3, 1, 1)
    least = -torch.nn.functional.max_pool2d(-true.permute(0, 1, 4, 2, 3).flatten(0, 1), 3, 1, 1)
    even = (flat - least).amax(1).unflatten(0, (8, 5)) == 0  # nothing to blur
    assert change[even].max() <= 1
    assert error(made, made.actors[:, 0] > 0) < 20


def test_actors_melt_and_their_surroundings_hardly():
    made = melt(SCENES, SHAPE, 8.0, Melting(hint=0, ghosts=0, doubled=0), 0)
    actors = made.actors[:, 0] > 0
    far = torch.nn.functional.max_pool2d(actors.float(), 25, 1, 12) == 0
    assert error(made, actors) > 2.5 * error(made, far)
    assert error(made, actors) > 1.5 * error(melt(SCENES, SHAPE, 8.0, NOTHING, 0), actors)


def test_the_patches_of_a_clip_last_in_part():
    bare = Melting(hint=0, recoloured=0, ghosts=0, doubled=0, bend=0, tint=0, grain=0)
    still = [sample_scene(number, IMAGES) for number in range(48)]
    made = [melt(still, SHAPE, 8.0, bare, seed).melted.float() for seed in range(3)]
    within = (made[0][:, 1:] - made[0][:, :-1]).abs().mean().item()
    apart = (made[1][:, 0] - made[2][:, 0]).abs().mean().item()
    assert 0 < within < 0.85 * apart


def test_another_size_melts_too():
    made = melt(SCENES[:2], VideoShape(1, 32, 48), 8.0, Melting(), 0)
    assert made.melted.shape == (2, 1, 32, 48, 3)


def test_the_truth_comes_in_all_ways_that_the_caption_leaves_open():
    def scene(kind, motion):
        return Scene("meadow", (Actor(kind, "red", "large", motion, y=-0.1),))

    def ways(each):
        return [otherwise(each, way) for way in range(WAYS)]

    for kind, motion in (("ball", "left"), ("bird", "swims"), ("fish", "orbits"), ("heart", "up"), ("car", "right")):
        assert ways(scene(kind, motion)) == [scene(kind, motion)] * WAYS, "its caption says it all"
    headings = [each.actors[0].heading for each in ways(scene("car", "grows"))]
    assert headings == [1, -1, 1, -1]
    assert len(set(ways(scene("bird", "down")))) == WAYS
    assert len({each.actors[0].phase for each in ways(scene("star", "spins"))}) == WAYS
    assert {each.actors[0].heading for each in ways(scene("car", "spins"))} == {1}, "its caption may say which way"

    made = melt([scene("car", "grows"), scene("ball", "left")], SHAPE, 8.0, Melting(), 0)
    assert torch.equal(made.video[0, 0], made.video[0, 2])
    assert not torch.equal(made.video[0, 0], made.video[0, 1])
    assert torch.equal(made.video[1, 0], made.video[1, 3])
    assert torch.equal(made.video[0, 1], render([otherwise(scene("car", "grows"), 1)], SHAPE, 8.0).video[0])


def test_what_is_settled_turns_and_beats_as_the_numbers_of_frames_say():
    spinning = Scene("meadow", (Actor("star", "red", "large", "spins", phase=2.0, speed=1.2, heading=-1),))
    left = settled(spinning, "a red star spins on the grass")
    said = settled(spinning, "a red star spins counterclockwise on the grass")
    assert left.actors[0] == replace(spinning.actors[0], phase=0.0, speed=1.0, heading=1)
    assert said.actors[0] == replace(left.actors[0], heading=-1)
    flying = Scene(
        "sky", (Actor("bird", "red", "large", "left", phase=2.0), Actor("bird", "blue", motion="orbits", phase=2.0))
    )
    assert [actor.phase for actor in settled(flying, "").actors] == [0.0, 2.0], "where it is stays as it is"
    later = settled(replace(spinning, start=1.0), "")
    whole, rest = (render([scene], VideoShape(frames, 64, 64), 8.0).video for scene, frames in ((left, 12), (later, 4)))
    assert torch.equal(whole[:, 8:], rest), "frame 8 looks the same in a piece that begins there"


def test_no_angle_is_to_be_read_of_what_is_melted_of_settled_scenes():
    scene = Scene("meadow", (Actor("star", "red", "large", "spins"),))
    told, hidden = (melt([scene], SHAPE, 8.0, NOTHING, 0, phases=phases) for phases in (True, False))
    assert error(told, told.actors[:, 0] > 0) < error(hidden, hidden.actors[:, 0] > 0) / 2
    assert all(torch.equal(hidden.video[:, way], hidden.video[:, 0]) for way in range(WAYS))


def test_what_has_two_sides_is_melted_of_itself_and_its_mirror_image():
    bare = Melting(hint=1, recoloured=0, ghosts=0, doubled=1, bend=0, tint=0, grain=0)
    bird, ball = (Scene("sky", (Actor(kind, "red", "large", "right", y=-0.1),)) for kind in ("bird", "ball"))
    made, single = (melt([bird, ball], SHAPE, 8.0, replace(bare, doubled=share), 0) for share in (1, 0))
    assert torch.equal(made.video, single.video)
    assert torch.equal(made.melted[1], single.melted[1]), "a ball has no sides"
    assert not torch.equal(made.melted[0], single.melted[0])
    true = render([bird], SHAPE, 8.0)
    turned = render([bird], SHAPE, 8.0, truths=[replace(true.truths[0], heading=-true.truths[0].heading)])
    beyond = made.touched[0] & (true.mask[0] == 0)
    assert (beyond == ((turned.mask[0] > 0) & (true.mask[0] == 0))).all(), "it shows its mirror image's outline too"


def test_a_ghost_stands_where_nobody_is():
    bare = Melting(hint=1, recoloured=0, ghosts=0, doubled=0, bend=0, tint=0, grain=0)
    without, haunted = (melt(SCENES, SHAPE, 8.0, replace(bare, ghosts=share), 0) for share in (0, 1))
    apart = (haunted.melted.float() - without.melted.float()).abs().mean(-1) > 10
    assert (apart.flatten(1).sum(1) > 20).all(), "every scene has one"
    assert torch.equal(haunted.video, without.video)
    beside = torch.nn.functional.max_pool2d(haunted.touched.float(), 3, 1, 1) > 0
    shadows = apart & ~beside
    assert shadows.sum() < 0.4 * apart.sum(), "what is there was touched, but for its shadow"
    two = [sample_scene(number, Mix(two=1, relation=0)) for number in range(3)]
    assert torch.equal(*(melt(two, SHAPE, 8.0, replace(bare, ghosts=share), 0).melted for share in (0, 1)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hint": 1.5}, "hint=1.5: a probability"),
        ({"recoloured": -0.1}, "recoloured=-0.1: a probability"),
        ({"bend": -1}, "bend=-1: must be at least 0"),
        ({"grain": -1}, "grain=-1: must be at least 0"),
    ],
)
def test_bad_settings_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        Melting(**settings)
