"""Buckets of other shapes: scenes lie anywhere in wide frames and are whole there, and every shape takes its turn."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from carrara.core.config import from_dict, to_dict
from carrara.core.types import Stride, VideoShape
from carrara.core.weights import fingerprint
from carrara.data.batches import Turns
from carrara.data.latents import LatentCache
from carrara.data.pond.captions import caption
from carrara.data.pond.sampling import EVERYTHING, SINGLES
from carrara.data.pond.world import Scene
from carrara.recipes import RECIPES
from carrara.recipes.pond_data import NO_IMAGES, Captioning, PixelSource
from carrara.recipes.pond_shapes import Buckets, SquareSource, WideSource, bucket_batch, parse_shape, taking_turns
from carrara.systems.latent import LatentVideo

CPU = torch.device("cpu")
WIDE, OWN = VideoShape(5, 48, 96), VideoShape(5, 32, 32)
CANONICAL = Captioning(short=1.0, medium=0.0, dense=0.0, synonyms=0.0)


def columns(actors: torch.Tensor) -> torch.Tensor:
    """Mean column of what is an actor's, per clip."""
    shown = (actors > 0).float()
    return (shown * (torch.arange(shown.shape[3]) + 0.5)).sum((1, 2, 3)) / shown.sum((1, 2, 3))


def test_scenes_lie_anywhere_in_a_wide_frame_and_are_whole_there():
    source, plain = WideSource(WIDE, 8.0, SINGLES, CPU), PixelSource(WIDE, 8.0, SINGLES, CPU)
    moved, unmoved = source.scenes(0, 40), plain.scenes(0, 40)
    offsets = torch.tensor([there.actors[0].x - here.actors[0].x for there, here in zip(moved, unmoved)])
    assert offsets.abs().max() <= 0.5 + 1e-9
    assert offsets.max() > 0.35
    assert offsets.min() < -0.35
    there, here = source.batch(0, 40), plain.batch(0, 40)
    assert (columns(there.actors) - columns(here.actors) - 48 * offsets).abs().max() < 0.6
    areas = [(pixels.actors > 0).float().sum((1, 2, 3)) for pixels in (there, here)]
    assert (areas[0] / areas[1]).min() > 0.85  # nothing is cut off; small ones are a few pixels more or less


def test_what_cannot_be_moved_stays_in_the_middle():
    source, plain = (kind(WIDE, 8.0, EVERYTHING, CPU) for kind in (WideSource, PixelSource))
    pairs = [(a, b) for a, b in zip(source.scenes(0, 60), plain.scenes(0, 60)) if b.camera != "still" or b.wall]
    assert len(pairs) > 5
    assert all(a == b for a, b in pairs)
    still = PixelSource(OWN, 8.0, EVERYTHING, CPU).scenes(0, 20)
    assert WideSource(OWN, 8.0, EVERYTHING, CPU).scenes(0, 20) == still  # a square has no room


def test_captions_say_where_the_actors_are_in_the_wide_frame():
    dense = [caption(scene, "dense").text for scene in WideSource(WIDE, 8.0, SINGLES, CPU).scenes(0, 60)]
    plain = [caption(scene, "dense").text for scene in PixelSource(WIDE, 8.0, SINGLES, CPU).scenes(0, 60)]
    assert dense != plain


def test_squares_are_the_middle_and_lose_what_lies_outside():
    own = replace(OWN, height=48, width=48)
    wide, square = WideSource(WIDE, 8.0, SINGLES, CPU).batch(0, 30), SquareSource(WIDE, 8.0, SINGLES, CPU, own)
    found = square.batch(0, 30)
    assert found.video.shape == (30, 5, 48, 48, 3)
    assert torch.equal(found.video, wide.video[:, :, :, 24:72])
    assert torch.equal(found.actors, wide.actors[:, :, :, 24:72])
    kept = (found.actors > 0).float().sum((1, 2, 3)) / (wide.actors > 0).float().sum((1, 2, 3))
    assert kept.min() < 0.3
    assert (kept < 0.95).sum() >= 8
    scaled = SquareSource(WIDE, 8.0, SINGLES, CPU, OWN).batch(0, 2)
    assert scaled.video.shape == (2, 5, 32, 32, 3)
    assert scaled.actors.shape == (2, 5, 32, 32)


@pytest.mark.parametrize("text", ["96x48", "96x48x0", "axbxc", "96x48x5x1", ""])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(ValueError, match="write WIDTHxHEIGHTxFRAMES"):
        Buckets((text,))


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        (Buckets(("32x32x5",)), "32x32x5 is the recipe's own shape"),
        (Buckets(("40x32x5",)), "40x32x5: width=40: must be a multiple of"),
        (Buckets(("64x32x6",)), "64x32x6: frames=6"),
    ],
)
def test_shapes_that_the_model_cannot_take_are_refused_before_anything_runs(tmp_path, buckets, said):
    recipe = RECIPES["pond-tiny"]()
    with pytest.raises(ValueError, match=said):
        replace(recipe, denoiser=replace(recipe.denoiser, buckets=buckets)).run(tmp_path)
    assert not any(tmp_path.iterdir())


def test_buckets_go_with_no_counting_and_each_only_once():
    stage = RECIPES["pond-tiny"]().denoiser
    with pytest.raises(ValueError, match=r"flops and buckets\.shapes"):
        replace(stage, buckets=Buckets(("64x32x5",)), flops=1e15)
    with pytest.raises(ValueError, match="name every shape once"):
        Buckets(("64x32x5", "064x32x5"))


def test_batches_have_about_as_many_tokens():
    own, stride = VideoShape(17, 64, 64), Stride(2, 8)
    sizes = {text: bucket_batch(64, own, parse_shape(text), stride) for text in ("64x64x17", "96x48x17", "64x64x1")}
    assert sizes == {"64x64x17": 64, "96x48x17": 57, "64x64x1": 576}
    assert bucket_batch(1, own, parse_shape("256x256x33"), stride) == 1


@pytest.mark.parametrize("share", [0.24, 0.5, 0.9])
def test_a_share_of_the_steps_is_on_other_shapes(share):
    turns = Turns(Buckets(("64x32x5", "32x32x9"), share=share).weights(), 3)
    counts = Counter(turns.at(step)[0] for step in range(2000))
    assert counts[0] == pytest.approx(2000 * (1 - share), abs=2)
    assert counts[1] == pytest.approx(1000 * share, abs=2)
    assert counts[2] == pytest.approx(1000 * share, abs=2)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, float("nan")])
def test_a_share_lies_between_none_and_all(share):
    with pytest.raises(ValueError, match=r"buckets\.share=.*between 0 and 1"):
        Buckets(("64x32x5",), share=share)


def test_without_a_share_turns_are_equal():
    assert Buckets(("64x32x5", "32x32x9")).weights() == (1, 1, 1)
    assert Buckets().weights() == (1,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = RECIPES["pond-tiny"]()
    stage = replace(recipe.denoiser, buckets=Buckets(("64x32x5", "32x32x9", "32x32x1"), clips=6), batch=2)
    return folder, replace(recipe, denoiser=stage).run(folder)


def test_a_model_is_trained_on_shapes_in_turns_and_runs(trained):
    folder, model = trained
    names = [path.name for path in folder.iterdir() if path.name.startswith("latents-")]
    assert sorted(names) == ["latents-32x32x1", "latents-32x32x9", "latents-64x32x5", "latents-validation"]
    system = LatentVideo.load(model)
    assert (system.defaults.frames, system.defaults.width) == (5, 32)
    kept = json.loads((folder / "denoiser/config.json").read_text())
    assert kept["recipe"]["denoiser"]["buckets"]["shapes"] == ["64x32x5", "32x32x9", "32x32x1"]


def test_a_run_from_before_there_were_buckets_goes_on():
    recipe = RECIPES["pond-tiny"]()
    assert "buckets" not in recipe._settings("denoiser")["denoiser"]


def test_every_cache_has_its_turn_and_every_clip_its_visit(trained):
    folder, _ = trained
    made_by = fingerprint(sorted((folder / "autoencoder/model").iterdir()))
    caches = [LatentCache.open(folder / name, made_by) for name in ("latents", "latents-64x32x5", "latents-32x32x1")]
    at = taking_turns(caches, (4, 2, 3), (1, 1, 1), CANONICAL, 7, NO_IMAGES)
    batches = [at(step) for step in range(36)]
    turns = Counter(tuple(batch.latents.shape[2:]) for batch in batches)
    assert turns == {tuple(cache.shape[1:]): 12 for cache in caches}
    wide = [batch.latents for batch in batches if batch.latents.shape[4] > batch.latents.shape[3]]
    assert {len(latents) for latents in wide} == {2}
    stored = caches[1].latents(slice(None))
    visits = Counter(int((stored == one).flatten(1).all(1).nonzero()[0]) for latents in wide for one in latents)
    assert visits == dict.fromkeys(range(6), 4)  # 24 rows of 6 clips
    assert at(5).latents.equal(batches[5].latents)


def test_images_are_told_as_pictures(trained):
    folder, _ = trained
    made_by = fingerprint(sorted((folder / "autoencoder/model").iterdir()))
    cache = LatentCache.open(folder / "latents-32x32x1", made_by)
    batch = taking_turns([cache], [4], [1], CANONICAL, 7, NO_IMAGES)(0)
    assert batch.latents.shape[2] == 1
    assert batch.keyframes.shape[2] == 0
    scenes = [from_dict(Scene, record["scene"], "scene") for record in cache.records(slice(None))]
    pictures = {caption(replace(scene, still=True), "short", 0, True).text for scene in scenes}
    assert set(batch.captions) <= pictures
    assert to_dict(scenes[0])["still"] is False
