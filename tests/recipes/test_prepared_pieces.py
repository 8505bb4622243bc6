"""Pieces of prepared clips for stages of a system: what fits, what is shown, and what is advised where nothing fits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Generator

from carrara.core.types import VideoShape
from carrara.data.prepare.settings import Settings
from carrara.recipes.make_a_video import PHASES, make_a_video, make_a_video_tiny
from carrara.recipes.prepared_pieces import Wanted, how_to_prepare
from carrara.recipes.vdm import vdm, vdm_tiny

BASE = Wanted("base", VideoShape(4, 16, 24), 8.0)


@pytest.mark.parametrize(
    ("clip", "fps", "fits"),
    [
        ((4, 16, 24), 8.0, True),
        ((5, 32, 48), 8.0, True),
        ((7, 48, 72), 16.0, True),
        ((6, 48, 72), 16.0, False),  # of which every second frame is not enough
        ((9, 16, 24), 12.0, False),  # no whole number of frames for one
        ((9, 16, 24), 4.0, False),
        ((5, 32, 72), 8.0, False),  # no squares
        ((5, 24, 36), 8.0, False),
        ((5, 8, 12), 8.0, False),
        ((1, 16, 24), 8.0, False),
    ],
)
def test_clips_fit_that_are_whole_multiples_and_long_enough(clip, fps, fits):
    assert BASE.fits(VideoShape(*clip), fps) == fits
    assert BASE.still.fits(VideoShape(*clip), fps) == (clip[1] % 16 == 0 and clip[1] * 3 == clip[2] * 2)


def test_a_piece_is_every_so_manieth_frame_and_the_mean_of_squares():
    clip = torch.arange(9, dtype=torch.uint8)[:, None, None, None] * 20 + torch.zeros(9, 32, 48, 3, dtype=torch.uint8)
    clip[:, ::2, ::2] += 8  # of four pixels one: 2 in the mean
    starts = set()
    for seed in range(20):
        piece = BASE.cut(clip, 2, Generator().manual_seed(seed))
        assert (piece.shape, piece.dtype) == ((4, 16, 24, 3), torch.uint8)
        assert (piece == piece[:, :1, :1]).all()
        shown = (piece[:, 0, 0, 0].int() - 2) // 20
        assert shown.diff().tolist() == [2, 2, 2]
        starts.add(int(shown[0]))
    assert starts == {0, 1, 2}
    whole = torch.randint(256, (4, 16, 24, 3), dtype=torch.uint8)
    assert BASE.cut(whole, 1, Generator()).equal(whole)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("make", [vdm, vdm_tiny, make_a_video, make_a_video_tiny])
def test_what_is_advised_can_be_prepared_and_fits_all_stages(make, wide):
    recipe = make()
    names = PHASES if make in (make_a_video, make_a_video_tiny) else recipe.stages
    wanted = [recipe.wanted(name) for name in names]
    if wide:
        wanted = [replace(one, shape=replace(one.shape, width=3 * one.shape.width // 2)) for one in wanted]
    said = how_to_prepare(wanted)
    numbers = {name: [float(n) for n in value.split("x")] for name, value in re.findall(r"--(\w+) ([\d.x]+)", said)}
    (frames,), (fps,), (width, height) = numbers["frames"], numbers["fps"], map(int, numbers["sizes"])
    multiple = int(numbers.get("multiple", [Settings.multiple])[0])
    made = Settings(fps, (int(frames),), ((width, height),), multiple)
    for one in wanted:
        assert one.fits(next(shape for shape in made.buckets() if shape.frames > 1), fps), (one, said)
        assert one.still.fits(made.buckets()[0], fps)


def test_what_is_advised_for_the_whole_recipes():
    advised = {
        make: how_to_prepare([make().wanted(name) for name in names])
        for make, names in ((vdm, ("base", "fine")), (make_a_video, PHASES))
    }
    assert advised[vdm] == "carrara data prepare CLIPS FOLDER --sizes 64x64 --frames 61 --fps 32"
    assert advised[make_a_video] == "carrara data prepare CLIPS FOLDER --sizes 128x128 --frames 33 --fps 8"
    images = [make_a_video().wanted("image")]
    assert how_to_prepare(images) == "carrara data prepare CLIPS FOLDER --sizes 32x32"
