"""Colours between matrices and ranges: against the definition by way of RGB, and what must not change at all."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from tests.data.prepare.filming import shot

from carrara.data.prepare.colours import Colours, colours_of, convert
from carrara.data.prepare.convert import Converter, luma_of, planes_of
from carrara.data.prepare.encode import encode
from carrara.data.prepare.fitting import Fit
from carrara.data.prepare.orientation import Orientation
from carrara.data.prepare.settings import Settings

WEIGHTS = {1: (0.2126, 0.0722), 4: (0.3, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
WEIGHTS[9] = (0.2627, 0.0593)


def coded(rgb, matrix, full):
    """Y, U, V of RGB in [0, 1], by the definition: Y of weights, Cb = (B - Y) / 2(1 - blue), Cr likewise."""
    red, blue = WEIGHTS[matrix]
    y = red * rgb[..., 0] + (1 - red - blue) * rgb[..., 1] + blue * rgb[..., 2]
    cb, cr = (rgb[..., 2] - y) / (2 - 2 * blue), (rgb[..., 0] - y) / (2 - 2 * red)
    if full:
        return [255 * y, 255 * cb + 128, 255 * cr + 128]
    return [219 * y + 16, 224 * cb + 128, 224 * cr + 128]


@pytest.mark.parametrize("matrix", sorted(WEIGHTS))
@pytest.mark.parametrize("full", [False, True])
def test_conversion_is_that_of_the_definition(matrix, full):
    rgb = np.random.default_rng(matrix).uniform(0.1, 0.9, (32, 32, 3))
    source = [plane.round().clip(0, 255).astype(np.uint8) for plane in coded(rgb, matrix, full)]
    made = [np.empty_like(plane) for plane in source]
    convert(Colours(matrix, full), source, made)
    for plane, wanted in zip(made, coded(rgb, 1, False)):
        assert abs(plane - wanted).max() <= 1.6  # source and result are each rounded, and colour counts in brightness
        assert abs((plane - wanted).mean()) < 0.15  # darker or brighter by nothing to speak of


def test_colour_at_half_the_resolution_counts_for_its_four_places():
    draw = np.random.default_rng(0)
    y, small = draw.integers(30, 220, (16, 24)).astype(np.uint8), draw.integers(90, 160, (2, 8, 12)).astype(np.uint8)
    large = [plane.repeat(2, axis=0).repeat(2, axis=1) for plane in small]
    half, whole = [np.empty_like(p) for p in (y, *small)], [np.empty_like(p) for p in (y, *large)]
    for full in (False, True):
        convert(Colours(5, full), [y, *small], half)
        convert(Colours(5, full), [y, *large], whole)
        assert (half[0] == whole[0]).all()
        assert (half[1].repeat(2, axis=0).repeat(2, axis=1) == whole[1]).all()


def test_what_is_right_already_stays_and_a_conversion_may_be_in_place():
    planes = [np.random.default_rng(n).integers(0, 256, (8, 8)).astype(np.uint8) for n in range(3)]
    made = [np.empty_like(plane) for plane in planes]
    convert(Colours(1, False), planes, made)
    assert all((one == other).all() for one, other in zip(planes, made))
    convert(Colours(6, True), planes, made)
    convert(Colours(6, True), planes, planes)
    assert all((one == other).all() for one, other in zip(planes, made))


def test_grey_from_black_to_white_in_both_ranges():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    neutral = np.full((8, 8), 128, np.uint8)
    made = [np.empty_like(plane) for plane in (grey, neutral, neutral)]
    convert(Colours(5, True), [grey, neutral, neutral], made)
    assert abs(made[0] - (grey * (219 / 255) + 16)).max() <= 0.6
    assert (made[1] == 128).all()
    convert(Colours(5, False), [grey, neutral, neutral], made)
    assert (made[0] == grey).all()


@pytest.mark.parametrize("form", ["yuv420p", "yuv422p", "yuvj420p", "yuv444p10le", "nv12"])
def test_pictures_are_as_those_of_the_exact_scaler(form):
    """Scaled in its own colours and then converted, against FFmpeg's exact way through RGB, on a smooth texture."""
    frame = av.VideoFrame.from_ndarray(shot(3, 1, 96, 128)[0], format="rgb24")
    ranged = 2 if form.startswith("yuvj") else 1
    frame = frame.reformat(format=form, dst_colorspace=5, dst_color_range=ranged)
    frame.colorspace, frame.color_range = 5, ranged
    assert colours_of(frame) == Colours(5, ranged == 2)
    made = Converter(Settings()).picture(frame, Fit((64, 48), (64, 48), 0, 0, 1.0), Orientation())
    exact = frame.reformat(
        64, 48, "yuv420p", src_colorspace=5, dst_colorspace=1, src_color_range=ranged, dst_color_range=1,
        interpolation="BICUBIC", threads=1,
    )  # fmt: skip
    for ours, theirs in zip(planes_of(made), planes_of(exact)):
        assert abs(ours.astype(int) - theirs).mean() < 2.5
    assert (made.colorspace, made.color_range) == (1, 1)


def test_a_frame_that_needs_nothing_is_copied_and_not_the_decoders_own():
    frame = av.VideoFrame.from_ndarray(shot(1, 1)[0], format="rgb24").reformat(
        format="yuv420p", dst_colorspace=1, dst_color_range=1
    )
    frame.colorspace, frame.color_range = 1, 1
    made = Converter(Settings()).picture(frame, Fit((64, 48), (64, 48), 0, 0, 1.0), Orientation())
    before = luma_of(frame).copy()
    luma_of(made)[:] = 0
    assert (luma_of(frame) == before).all()


def test_one_frame_may_be_shown_at_many_times(tmp_path):
    frame = Converter(Settings()).picture(
        av.VideoFrame.from_ndarray(shot(2, 1)[0], format="rgb24"), Fit((64, 48), (64, 48), 0, 0, 1.0), Orientation()
    )
    encode(tmp_path / "a.mp4", [frame] * 5, 8.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        shown = list(container.decode(video=0))
    assert [each.pts * each.time_base for each in shown] == [Fraction(n, 8) for n in range(5)]
    assert all(abs(luma_of(each).astype(int) - luma_of(frame)).mean() < 2 for each in shown)


@pytest.mark.parametrize("matrix", [1, 2, 5, 6])
def test_grey_pictures_keep_their_brightness_whatever_the_matrix(matrix):
    """By way of RGB they would come out darker by one to two levels."""
    grey = np.tile(np.linspace(16, 235, 64).astype(np.uint8), (48, 1))
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane, values in zip(planes_of(frame), (grey, 128, 128)):
        plane[:] = values
    frame.colorspace, frame.color_range = matrix, 1
    made = Converter(Settings()).picture(frame, Fit((64, 48), (64, 48), 0, 0, 1.0), Orientation())
    assert (luma_of(made) == grey).all()
