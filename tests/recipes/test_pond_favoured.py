"""Clips that are drawn more often: which they are, and that order and resumption stay functions of the step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from carrara.core.config import to_dict
from carrara.data.latents import LatentBatch, LatentCache, write_latents
from carrara.data.pond.sampling import sample_scene
from carrara.recipes.pond_data import Captioning, latent_source
from carrara.recipes.pond_favoured import Favoured

COUNT = 40


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    """Latents that say their own number, of scenes drawn as in training."""

    def produce(start: int, stop: int) -> Iterator[LatentBatch]:
        numbers = torch.arange(start, stop).float().view(-1, 1, 1, 1, 1)
        yield LatentBatch(
            numbers.expand(-1, 1, 2, 1, 1).contiguous(),
            [{"scene": to_dict(sample_scene(number))} for number in range(start, stop)],
            torch.zeros(stop - start, 1, 1, 1, 1),
            torch.ones(stop - start, 1, dtype=torch.int64),
        )

    write_latents(tmp_path, produce, COUNT, "here", about={"frames": 3})
    return LatentCache.open(tmp_path, "here")


def test_favoured_clips_come_so_many_times_as_often(cache):
    favoured = Favoured(("star", "spins", "zoom in"), times=3)
    scenes = [sample_scene(number) for number in range(COUNT)]
    shown = {
        number
        for number, scene in enumerate(scenes)
        if scene.camera == "zoom in" or any(actor.kind == "star" or actor.motion == "spins" for actor in scene.actors)
    }
    assert 0 < len(shown) < COUNT
    source = latent_source(cache, 4, Captioning(), 5, favoured=favoured)
    epoch = COUNT + 2 * len(shown)
    drawn = torch.cat([source(step).latents[:, 0, 0, 0, 0] for step in range(-(-epoch // 4))])[:epoch]
    counts = Counter(int(number) for number in drawn)
    assert counts == {number: 3 if number in shown else 1 for number in range(COUNT)}
    again = latent_source(cache, 4, Captioning(), 5, favoured=favoured)
    assert torch.equal(again(7).latents, source(7).latents)


def test_nothing_favoured_is_every_clip_once(cache):
    assert torch.equal(Favoured().places(cache), torch.arange(COUNT))
    plain, none = (latent_source(cache, 4, Captioning(), 5, **given) for given in ({}, {"favoured": Favoured(times=9)}))
    assert torch.equal(plain(3).latents, none(3).latents)


def test_what_no_scene_can_show_is_refused():
    with pytest.raises(ValueError, match=r"unknown favoured attribute 'stars'; .*star"):
        Favoured(("stars",))
    with pytest.raises(ValueError, match="times"):
        Favoured(("star",), times=0)
