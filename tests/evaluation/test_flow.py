"""Optical flow: what was moved is found where it was moved to, and what was not moved rests."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from carrara.evaluation.consistency.camera import camera_flow, moving_pixels
from carrara.evaluation.consistency.flow import closed, optical_flow, sample, smooth, warp
from carrara.evaluation.consistency.halfway import halfway, splat


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    rough = smooth(smooth(noise, 5), 5)
    return 255 * (rough - rough.min()) / (rough.max() - rough.min())


def shifted(picture: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """What moves by (x, y): the new picture shows at p what the old one shows at p - (x, y)."""
    flow = -torch.tensor([x, y], dtype=torch.float32)[None, :, None, None].expand(1, 2, *picture.shape[2:])
    return warp(picture, flow)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (3.0, -2.0), (0.4, 0.7), (-8.0, 5.0)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97)])
def test_a_shift_is_found_below_the_pixel(x, y, height, width):
    picture = texture(height, width)
    flow = optical_flow(picture, shifted(picture, x, y))
    inner = flow[..., 12:-12, 12:-12]
    goal = torch.tensor([x, y])[None, :, None, None]
    assert (inner - goal).abs().mean() < 0.1


def test_a_small_thing_that_moves_further_than_its_width_is_found():
    first = texture(64, 64) / 4
    second = first.clone()
    thing = 255 - texture(8, 8, seed=1) / 2
    first[..., 20:28, 10:18], second[..., 20:28, 20:28] = thing, thing
    flow = optical_flow(first, second)[0]
    assert (flow[0, 22:26, 12:16] - 10).abs().median() < 0.5
    assert flow[:, 45:, 40:].abs().max() == 0


def test_equal_pictures_and_noise_on_them_rest():
    picture = texture(64, 80)
    assert optical_flow(picture, picture).abs().max() == 0
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(3))
    assert optical_flow(picture, picture + noise).abs().mean() < 0.02


def test_a_batch_is_its_pictures_one_by_one():
    first = torch.cat([texture(32, 40, seed) for seed in range(34)])
    second = first.roll((1, 2), (-2, -1))
    whole = optical_flow(first, second)
    for index in (0, 33):
        alone = optical_flow(first[index : index + 1], second[index : index + 1])
        torch.testing.assert_close(whole[index : index + 1], alone, atol=1e-4, rtol=1e-4)


def test_unequal_pictures_are_refused():
    with pytest.raises(ValueError, match="two equal"):
        optical_flow(texture(32, 32), texture(32, 33))


def test_no_pairs_have_no_flow():
    assert optical_flow(torch.zeros(0, 3, 20, 30), torch.zeros(0, 3, 20, 30)).shape == (0, 2, 20, 30)


def test_sampling_at_pixels_gives_the_pixels():
    picture = texture(9, 12)
    points = torch.tensor([[[0.0, 11.0, 4.0], [0.0, 8.0, 5.0]]])
    expected = picture[:, :, [0, 8, 5], [0, 11, 4]]
    torch.testing.assert_close(sample(picture, points), expected, atol=1e-3, rtol=1e-4)


def test_closing_fills_holes_and_keeps_the_rest():
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., 0:20, 0:20] = True
    ring = mask.clone()
    ring[..., 7:13, 7:13] = False
    assert (closed(ring) == mask).all()


def test_splatting_loses_nothing_inside_and_inverts_whole_shifts():
    picture = texture(20, 30)
    flow = torch.tensor([2.0, -1.0])[None, :, None, None].expand(1, 2, 20, 30)
    moved = splat(picture, flow)
    torch.testing.assert_close(moved[..., :-1, 2:], picture[..., 1:, :-2])
    inward = torch.zeros(1, 2, 20, 30)
    inward[..., 5:15, 5:25] = 0.3
    torch.testing.assert_close(splat(picture, inward).sum(), picture.sum())


def test_halfway_of_a_shift_is_half_the_shift():
    picture = texture(64, 64)
    middle = halfway(picture, shifted(picture, 6, 0))
    error = (middle - shifted(picture, 3, 0))[..., 10:-10, 10:-10].abs().mean()
    faded = ((picture + shifted(picture, 6, 0)) / 2 - shifted(picture, 3, 0))[..., 10:-10, 10:-10].abs().mean()
    assert error < faded / 4


def test_the_camera_is_what_most_shares_and_the_rest_moves_by_itself():
    first = texture(64, 96)
    zoom = torch.eye(2, 3)[None] * 0.97
    second = F.grid_sample(first, F.affine_grid(zoom, list(first.shape), align_corners=False), align_corners=False)
    thing = texture(16, 16, seed=5)
    first[..., 30:46, 30:46], second[..., 30:46, 36:52] = thing, thing
    flow = optical_flow(first, second)
    camera = camera_flow(flow, first)
    expected = (torch.arange(96) - 47.5) * (1 / 0.97 - 1)
    assert (camera[0, 0, 5] - expected).abs().max() < 0.4
    moving = moving_pixels(first, second, flow, camera)[0]
    assert moving[33:43, 33:43].float().mean() > 0.9
    assert moving[:20].float().mean() < 0.05
