"""What covers each cell agrees with the masks that rendering gives, whatever moves, hides or is looked at how."""

from __future__ import annotations

import pytest
import torch
from einops import reduce

from carrara.core.types import VideoShape
from carrara.data.pond.coverage import coverage
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene

SHAPE = VideoShape(9, 64, 96)
WORLDS = {
    "one actor": Mix(two=0, wall=0, camera=0),
    "two actors": Mix(two=1, relation=1, camera=0),
    "walls": Mix(two=0, wall=1),
    "cameras": Mix(two=0.5, wall=0, camera=1),
    "images": Mix(still=1),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_cells_agree_with_rendered_masks(world: Mix):
    scenes = [sample_scene(seed, world) for seed in range(24)]
    found = coverage(scenes, SHAPE, 4.0, rows=4, columns=6, samples=8)
    mask = render(scenes, SHAPE, 4.0).mask
    wanted = torch.stack(
        [reduce((mask == n).float(), "b t (r p) (c q) -> b t r c", "mean", p=16, q=16) for n in (1, 2)], dim=1
    )
    assert found.shape == wanted.shape == (24, 2, 9, 4, 6)
    error = (found - wanted).abs()
    assert error.max() < 0.15
    assert error[wanted > 0].mean() < 0.02
    assert found.sum().item() == pytest.approx(wanted.sum().item(), rel=0.02)


def test_more_points_come_closer():
    scenes = [sample_scene(seed, WORLDS["one actor"]) for seed in range(16)]
    fine = coverage(scenes, SHAPE, 4.0, 4, 6, samples=24)
    errors = [float((coverage(scenes, SHAPE, 4.0, 4, 6, samples=n) - fine).abs().mean()) for n in (2, 4, 8)]
    assert errors[0] > 2 * errors[1] > 2.5 * errors[2]


def test_a_clip_does_not_depend_on_its_neighbours():
    scenes = [sample_scene(seed, WORLDS["two actors"]) for seed in range(5)]
    together = coverage(scenes, SHAPE, 4.0, 4, 6)
    alone = torch.cat([coverage([scene], SHAPE, 4.0, 4, 6) for scene in scenes])
    assert together.equal(alone)


def test_a_grid_without_cells_is_refused():
    with pytest.raises(ValueError, match="rows=0"):
        coverage([sample_scene(0)], SHAPE, 4.0, 0, 4)
