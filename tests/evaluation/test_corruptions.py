"""Damage to clips is what it says, keeps the shape, and depends only on the generator."""

import pytest
import torch
from torch import Generator

from carrara.evaluation.distribution import corruptions as c

EVERY = {
    "frozen": c.frozen,
    "shuffled": c.shuffled,
    "reversed": c.reversed_,
    "swapped": c.swapped_neighbours(0.5),
    "stuttering": c.stuttering(2),
    "noisy": c.noisy(0.1),
    "blurred": c.blurred(0.05),
    "recoloured": c.recoloured,
}


def some_clip(frames: int = 7) -> torch.Tensor:
    return torch.randint(256, (frames, 12, 16, 3), generator=Generator().manual_seed(frames), dtype=torch.uint8)


@pytest.mark.parametrize("name", EVERY)
def test_shape_type_and_seed(name):
    clip = some_clip()
    before = clip.clone()
    found = EVERY[name](clip, Generator().manual_seed(3))
    assert found.shape == clip.shape
    assert found.dtype == torch.uint8
    assert not found.equal(before)
    assert clip.equal(before)
    assert found.equal(EVERY[name](clip, Generator().manual_seed(3)))


@pytest.mark.parametrize("name", ["shuffled", "reversed", "swapped"])
def test_reordering_loses_no_frame(name):
    clip = some_clip()
    found = EVERY[name](clip, Generator().manual_seed(0))
    assert sorted(frame.sum().item() for frame in found) == sorted(frame.sum().item() for frame in clip)


def test_shuffled_is_never_the_order_it_came_in():
    clip = some_clip(2)
    for seed in range(20):
        assert c.shuffled(clip, Generator().manual_seed(seed)).equal(clip.flip(0))


def test_inverses():
    clip, generator = some_clip(), Generator()
    assert c.reversed_(c.reversed_(clip, generator), generator).equal(clip)
    swap = c.swapped_neighbours(1.0)
    assert swap(swap(clip, generator), generator).equal(clip)
    assert c.stuttering(1)(clip, generator).equal(clip)
    assert c.blurred(0.0)(clip, generator).equal(clip)
    thrice = clip
    for _ in range(3):
        thrice = c.recoloured(thrice, generator)
    assert thrice.equal(clip)


def test_noise_has_its_deviation_and_blur_takes_contrast_away():
    grey = torch.full((3, 32, 32, 3), 128, dtype=torch.uint8)
    noise = c.noisy(0.1)(grey, Generator().manual_seed(0)).float() - 128
    assert noise.std() / 255 == pytest.approx(0.1, rel=0.05)
    assert c.blurred(0.1)(grey, Generator()).equal(grey)
    spread = [c.blurred(sigma)(some_clip(), Generator()).float().std().item() for sigma in (0.0, 0.05, 0.1, 0.2)]
    assert spread == sorted(spread, reverse=True)


def test_only_actors_change_colour():
    clip, mask = some_clip(), torch.zeros(7, 12, 16, dtype=torch.uint8)
    mask[:, 3:6, 4:9] = 2
    found = c.actors_recoloured(clip, mask)
    assert found[mask == 0].equal(clip[mask == 0])
    assert found[mask > 0].equal(clip[mask > 0].roll(1, dims=-1))
