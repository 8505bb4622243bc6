"""Melted clips: the truth beside them is the scene, and what melts are its actors."""

from __future__ import annotations

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.data.pond.melting import Melting, melt
from carrara.data.pond.render import render
from carrara.data.pond.sampling import IMAGES, SINGLES, sample_scene

SHAPE = VideoShape(5, 64, 64)
SCENES = [sample_scene(number, SINGLES) for number in range(8)]
NOTHING = Melting(hint=1, recoloured=0, bend=0, tint=0, grain=0)


def error(made, where):
    return (made.melted.float() - made.video.float()).abs().mean(-1)[where].mean().item()


def test_the_truth_is_the_scene_and_all_is_a_function_of_the_seed():
    made, again, other = (melt(SCENES, SHAPE, 8.0, Melting(), seed) for seed in (1, 1, 2))
    rendered = render(SCENES, SHAPE, 8.0)
    assert torch.equal(made.video, rendered.video)
    assert torch.equal(made.actors, rendered.mask)
    assert torch.equal(made.melted, again.melted)
    assert not torch.equal(made.melted, other.melted)
    assert made.melted.dtype == torch.uint8
    assert made.melted.shape == made.video.shape


def test_where_nothing_melts_a_clip_is_blurred_at_most():
    made = melt(SCENES, SHAPE, 8.0, NOTHING, 0)
    change = (made.melted.float() - made.video.float()).abs()
    flat = torch.nn.functional.max_pool2d(made.video.float().permute(0, 1, 4, 2, 3).flatten(0, 1), 3, 1, 1)
    least = -torch.nn.functional.max_pool2d(-made.video.float().permute(0, 1, 4, 2, 3).flatten(0, 1), 3, 1, 1)
    even = (flat - least).amax(1).unflatten(0, (8, 5)) == 0  # nothing to blur
    assert change[even].max() <= 1
    assert error(made, made.actors > 0) < 20


def test_actors_melt_and_their_surroundings_hardly():
    made = melt(SCENES, SHAPE, 8.0, Melting(hint=0), 0)
    actors = made.actors > 0
    far = torch.nn.functional.max_pool2d(actors.float(), 25, 1, 12) == 0
    assert error(made, actors) > 2.5 * error(made, far)
    assert error(made, actors) > 1.5 * error(melt(SCENES, SHAPE, 8.0, NOTHING, 0), actors)


def test_the_patches_of_a_clip_last_in_part():
    bare = Melting(hint=0, recoloured=0, bend=0, tint=0, grain=0)
    still = [sample_scene(number, IMAGES) for number in range(48)]
    made = [melt(still, SHAPE, 8.0, bare, seed).melted.float() for seed in range(3)]
    within = (made[0][:, 1:] - made[0][:, :-1]).abs().mean().item()
    apart = (made[1][:, 0] - made[2][:, 0]).abs().mean().item()
    assert 0 < within < 0.85 * apart


def test_another_size_melts_too():
    made = melt(SCENES[:2], VideoShape(1, 32, 48), 8.0, Melting(), 0)
    assert made.melted.shape == (2, 1, 32, 48, 3)


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
