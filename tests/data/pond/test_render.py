"""Laws of the pond's pixels: they agree with the truth, at any size, in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import EVERYTHING, SINGLES, Mix, sample_scene
from carrara.data.pond.simulate import to_pixels
from carrara.data.pond.world import ACTORS, BACKGROUNDS, COLOURS, Actor, Scene

SMALL, LARGE = VideoShape(9, 64, 64), VideoShape(9, 128, 128)
SCENES = [sample_scene(seed, Mix(camera=0.4, wall=0.3)) for seed in range(24)]
PLAIN = [sample_scene(seed, SINGLES) for seed in range(40)]


def test_rendering_is_deterministic() -> None:
    first, second = render(SCENES, SMALL), render(SCENES, SMALL)
    assert torch.equal(first.video, second.video)
    assert torch.equal(first.mask, second.mask)


def test_frames_do_not_depend_on_the_batch() -> None:
    together = render(SCENES, SMALL)
    for index in (0, 5, 11, 23):
        alone = render([SCENES[index]], SMALL)
        assert (alone.video[0].int() - together.video[index].int()).abs().max() <= 1
        assert torch.equal(alone.mask[0], together.mask[index])


def test_layout_of_the_result() -> None:
    result = render(SCENES[:2], VideoShape(5, 32, 48), fps=12.0)
    assert result.video.shape == (2, 5, 32, 48, 3)
    assert result.mask.shape == (2, 5, 32, 48)
    assert result.video.dtype == result.mask.dtype == torch.uint8
    assert result.truths[0].times == pytest.approx(np.arange(5) / 12)


def test_sizes_show_the_same_picture() -> None:
    small, large = render(SCENES, SMALL), render(SCENES, LARGE)
    for a, b in zip(small.truths, large.truths):
        assert a.position == pytest.approx(b.position)
        assert a.box == pytest.approx(b.box)
    frames = large.video.flatten(0, 1).permute(0, 3, 1, 2).float()
    difference = (avg_pool2d(frames, 2).permute(0, 2, 3, 1) - small.video.flatten(0, 1).float()).abs()
    assert difference.mean() < 2.5
    assert (difference.amax(dim=-1) > 60).float().mean() < 0.01


def test_wider_frames_show_more_of_the_same_world() -> None:
    square, wide = render(PLAIN[:8], VideoShape(3, 64, 64)), render(PLAIN[:8], VideoShape(3, 64, 96))
    middle = wide.video[:, :, :, 16:80]
    assert (middle.int() - square.video.int()).abs().float().mean() < 0.5


@pytest.mark.parametrize("kind", ["ball", "box", "star", "ring", "triangle"])
@pytest.mark.parametrize("motion", ["left", "orbits", "spins", "shrinks"])
def test_the_masks_centroid_is_the_position(kind: str, motion: str) -> None:
    scene = Scene("plain", (Actor(kind, "red", "small", motion, x=0.1 if motion == "left" else 0.0, y=0.02),))
    result = render([scene], LARGE)
    rows, columns = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    for mask, centre in zip(result.mask[0] > 0, to_pixels(result.truths[0].screen[0], 128, 128)):
        assert float(columns[mask].mean()) == pytest.approx(centre[0], abs=1)
        assert float(rows[mask].mean()) == pytest.approx(centre[1], abs=1)


@pytest.mark.parametrize("kind", ACTORS)
def test_the_masks_bounds_are_the_box(kind: str) -> None:
    for size, motion in (("small", "grows"), ("large", "spins")):
        result = render([Scene("plain", (Actor(kind, "blue", size, motion),))], LARGE)
        for mask, box in zip(result.mask[0] > 0, to_pixels(result.truths[0].box[0], 128, 128)):
            rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
            seen = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
            assert seen == pytest.approx(list(box), abs=1.6)  # sharp corners cover little of their pixels


def test_visibility_is_the_share_of_the_masks_area() -> None:
    mix = Mix(two=0.0, wall=1.0)
    scenes = [scene for seed in range(30) if (scene := sample_scene(seed, mix)).wall == "hides"][:6]
    assert len(scenes) == 6
    result = render(scenes, LARGE)
    for scene, masks, truth in zip(scenes, result.mask, result.truths):
        whole = render([Scene(scene.background, scene.actors)], LARGE).mask[0]
        area = (masks > 0).sum(dim=(1, 2)) / (whole > 0).sum(dim=(1, 2))
        assert area.numpy() == pytest.approx(truth.visible[0], abs=0.08)
        assert (area[truth.visible[0] == 0] == 0).all()


def test_the_mask_holds_no_absent_actor() -> None:
    result = render(SCENES, SMALL)
    for scene, mask, truth in zip(SCENES, result.mask, result.truths):
        assert int(mask.max()) <= len(scene.actors)
        for index in range(len(scene.actors)):
            present = (mask == index + 1).flatten(1).any(dim=1).numpy()
            assert present[truth.visible[index] > 0.1].all()
            assert not present[truth.visible[index] == 0].any()


def test_actors_have_their_colours() -> None:
    for colour, rgb in COLOURS.items():
        scene = Scene("pond", (Actor("box", colour, "large", "spins", x=0.0, y=0.0),))
        result = render([scene], LARGE)
        inside = result.video[0][result.mask[0] > 0].float()
        assert inside.median(dim=0).values.numpy() == pytest.approx(np.array(rgb), abs=20)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_have_their_colours_and_show_a_pan(name: str) -> None:
    actor = (Actor("ball", "red", "small", "spins", y=0.2),)
    still = render([Scene(name, actor)], LARGE).video[0]
    top, bottom = BACKGROUNDS[name]
    middle = still[0, 40:90, :].float().flatten(0, 1).median(dim=0).values.numpy()
    assert middle == pytest.approx((np.array(top) + np.array(bottom)) / 2, abs=22)
    assert torch.equal(still[0, :60], still[-1, :60])
    pan = render([Scene(name, actor, camera="pan left")], LARGE).video[0]
    assert (pan[0].int() - pan[-1].int()).abs().float().mean() > 1.5


def test_still_scenes_are_still() -> None:
    video = render([sample_scene(3, Mix(still=1.0))], SMALL).video[0]
    assert torch.equal(video[0], video[-1])


def test_every_motion_shows_in_pixels() -> None:
    for scene, video in zip(PLAIN, render(PLAIN, SMALL).video):
        changed = (video[0].int() - video[4].int()).abs().amax(dim=-1) > 40
        assert changed.sum() > 12, scene


def test_nothing_to_render_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        render([], SMALL)
    with pytest.raises(ValueError, match="too small"):
        render(PLAIN[:1], VideoShape(1, 8, 8))
    assert EVERYTHING.two > 0
