"""Clips that a model draws of scenes it was shown through noise: kept, gone on with, refused for another model, learned
from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import EVERYTHING
from carrara.recipes import RECIPES, own_clips
from carrara.recipes.own_clips import OwnClips, OwnShards, make_own
from carrara.recipes.pond_data import Captioning
from carrara.recipes.pond_refiner_data import own_of
from carrara.recipes.scene_numbers import OWN_SCENES
from carrara.systems.latent import LatentVideo

OWN = OwnClips(clips=12, mix=EVERYTHING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `pond-tiny` leaves."""
    return RECIPES["pond-tiny"]().run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(own_clips, "SHARD", 8)
    monkeypatch.setattr(own_clips, "BATCH", 4)


def made(model: Path, to: Path, own: OwnClips = OWN, count: int = 12, fingerprint: str = "one") -> OwnShards:
    return make_own(to, own, Captioning(), OWN_SCENES, count, fingerprint, lambda: LatentVideo.load(model))


def never() -> LatentVideo:
    raise AssertionError("the model was asked for")


@pytest.mark.usefixtures("small_shards")
def test_clips_show_their_scenes_through_noise(folder, tmp_path):
    clear = made(folder, tmp_path / "clear", replace(OWN, levels=(0.02,), weights=(1.0,)))
    noisy = made(folder, tmp_path / "noisy", replace(OWN, levels=(0.98,), weights=(1.0,)))
    assert len(clear) == len(noisy) == 12
    rows = [11, 0, 5]
    clips, scenes, captions = clear(rows)
    defaults = LatentVideo.load(folder).defaults
    shape = VideoShape(defaults.frames, defaults.height, defaults.width)
    truth = render(scenes, shape, defaults.fps).video
    assert clips.shape == truth.shape
    assert clips.dtype == torch.uint8
    assert noisy(rows)[1:] == (scenes, captions)
    decoded = LatentVideo.load(folder).autoencoder
    with torch.no_grad():
        again = decoded.decode(decoded.encode(truth.permute(0, 4, 1, 2, 3).float() / 127.5 - 1))
    again = again.add(1).mul(127.5).permute(0, 2, 3, 4, 1)
    near, far = ((these.float() - again).abs().mean() for these in (clips, noisy(rows)[0]))
    assert near < far, "little noise leaves more of what there was"


@pytest.mark.usefixtures("small_shards")
def test_making_goes_on_where_it_stopped_and_asks_for_the_model_only_then(folder, tmp_path):
    whole = made(folder, tmp_path / "whole")
    made(folder, tmp_path / "begun", count=8)
    resumed = made(folder, tmp_path / "begun")
    assert torch.equal(whole(range(12))[0], resumed(range(12))[0])
    make_own(tmp_path / "begun", OWN, Captioning(), OWN_SCENES, 12, "one", never)
    fewer = make_own(tmp_path / "begun", OWN, Captioning(), OWN_SCENES, 8, "one", never)
    assert len(fewer) == 8
    assert len(list((tmp_path / "begun").iterdir())) == 2, "nothing else lies there"


@pytest.mark.usefixtures("small_shards")
def test_clips_of_another_model_or_of_other_settings_are_refused(folder, tmp_path):
    made(folder, tmp_path, count=8)
    cases = [
        ({"fingerprint": "two"}, "made by another model"),
        ({"own": replace(OWN, levels=(0.5,), weights=(1.0,))}, "made with other levels, weights"),
        ({"own": replace(OWN, mix=replace(EVERYTHING, two=0.0))}, "made with other mix"),
    ]
    for changed, told in cases:
        with pytest.raises(ValueError, match=told):
            made(folder, tmp_path, count=8, **changed)
    (tmp_path / "shard-00000.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"damaged .*; delete it and run again"):
        made(folder, tmp_path, count=8)


def test_wrong_settings_are_refused():
    cases = [
        ({"clips": -1}, "clips=-1"),
        ({"share": 1.5}, "share=1.5"),
        ({"levels": (0.5,)}, "1 levels and 5 weights"),
        ({"levels": (), "weights": ()}, "0 levels"),
        ({"levels": (1.0,), "weights": (1.0,)}, "noise alone"),
        ({"weights": (0.0,) * 5}, "expected numbers of at least 0"),
    ]
    for settings, told in cases:
        with pytest.raises(ValueError, match=told):
            OwnClips(**settings)


@pytest.mark.usefixtures("small_shards")
def test_truths_begin_where_the_frames_of_a_clip_do(folder, tmp_path):
    shards, device = made(folder, tmp_path), torch.device("cpu")
    fps, frames = 8.0, shards([0])[0].shape[1]
    few, captions, first = own_of(shards, [3, 7], 2, fps, torch.Generator().manual_seed(1), device)
    all_of_it, same, beginning = own_of(shards, [3, 7], frames, fps, torch.Generator().manual_seed(1), device)
    assert captions == same
    starts = torch.randint(frames - 1, (2,), generator=torch.Generator().manual_seed(1)).tolist()
    assert starts[0] != starts[1]
    assert first.tolist() == starts
    assert beginning.tolist() == [0, 0]
    for row, start in enumerate(starts):
        part = slice(start, start + 2)
        assert torch.equal(few.melted[row], all_of_it.melted[row, part])
        assert torch.equal(few.video[row], all_of_it.video[row][:, part])
        assert torch.equal(few.touched[row], all_of_it.touched[row, part])
    assert few.touched[few.actors[:, 0] > 0].all()
