"""The latents of a prepared folder: each clip encoded once, each bucket in a cache of its own, keyed and resumable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.data.prepared_folder import Clip, mixed, write_prepared
from torch import Tensor

from carrara.data.clip_latents import cache_folder, captions_of, encode_prepared, open_latents
from carrara.data.clip_pixels import draw_view, view_shape
from carrara.data.prepared import Prepared


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(write_prepared(tmp_path_factory.mktemp("data") / "prepared", mixed()))


class Encoder:
    """Averages of 8 x 8 pixels of every other frame: real pixels in, a latent for each place out."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.clips, self.fail_after = 0, fail_after

    def __call__(self, video: Tensor) -> Tensor:
        if video.shape[1] > 1:
            self.clips += len(video)
        if self.clips > self.fail_after:
            raise KeyboardInterrupt
        b, t, h, w, _ = video.shape
        places = video[:, ::2].float().reshape(b, (t + 1) // 2, h // 8, 8, w // 8, 8, 3)
        return places.mean(dim=(3, 5)).movedim(-1, 1) / 255


def encoded(prepared: Prepared, folder: Path, encoder: Encoder | None = None, **settings: int) -> Encoder:
    encoder = encoder or Encoder()
    encode_prepared(prepared, folder, encoder, "enc", channels=3, **settings)
    return encoder


def test_every_bucket_has_its_cache_and_every_clip_its_place(prepared, tmp_path):
    told: list[tuple[str, int, int]] = []
    encode_prepared(prepared, tmp_path, Encoder(), "enc", 3, report=lambda *said: told.append(said))
    caches = open_latents(prepared, tmp_path, "enc")
    assert [cache.shape for cache in caches] == [(3, 5, 4, 6), (3, 3, 6, 4), (3, 1, 4, 6)]
    assert [cache.keyframes for cache in caches] == [4, 4, 0]
    assert told == [("9 frames of 48x32", 6, 6), ("5 frames of 32x48", 3, 3), ("images of 48x32", 3, 3)]
    for bucket, (cache, numbers) in enumerate(zip(caches, prepared.members)):
        assert cache.about["frames"] == prepared.buckets[bucket].frames
        for place, number in enumerate(numbers):
            one = cache[place]
            assert torch.equal(one.latents, Encoder()(prepared.frames(number)[None]).half())
            row = prepared.rows[number]
            assert one.records[0] == {"key": row.key, "caption": row.caption, "source": row.source}
            for column, frame in enumerate(one.frames[0].tolist() if one.frames is not None else []):
                alone = Encoder()(prepared.frames(number)[None, frame : frame + 1])[:, :, 0]
                assert torch.equal(one.keyframes[:, column], alone.half())
    assert caches[0][0].frames[0, -1] == 8


def test_batches_do_not_change_what_is_encoded(prepared, tmp_path):
    encoded(prepared, tmp_path / "one", pixels=1)
    encoded(prepared, tmp_path / "all", pixels=10**9)
    made = [open_latents(prepared, tmp_path / name, "enc") for name in ("one", "all")]
    for one, other in zip(*made):
        assert torch.equal(one[:].latents, other[:].latents)


def test_a_finished_cache_is_left_alone_and_needs_no_shards(tmp_path):
    prepared = Prepared(write_prepared(tmp_path / "data", mixed()))
    encoded(prepared, tmp_path / "latents")
    for shard in (tmp_path / "data").glob("*.tar"):
        shard.unlink()
    assert encoded(prepared, tmp_path / "latents").clips == 0
    assert len(open_latents(Prepared(tmp_path / "data"), tmp_path / "latents", "enc")[0]) == 6


def test_an_interrupted_encoding_goes_on_with_the_bucket_that_lacks(prepared, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encoded(prepared, tmp_path, Encoder(fail_after=7), pixels=1)
    with pytest.raises(ValueError, match="not finished"):
        open_latents(prepared, tmp_path, "enc")
    assert encoded(prepared, tmp_path).clips == 3
    open_latents(prepared, tmp_path, "enc")


def test_latents_of_another_encoder_or_of_other_clips_are_refused(prepared, tmp_path):
    encoded(prepared, tmp_path / "latents")
    with pytest.raises(ValueError, match="another encoder"):
        encode_prepared(prepared, tmp_path / "latents", Encoder(), "other", 3)
    with pytest.raises(ValueError, match="another encoder"):
        open_latents(prepared, tmp_path / "latents", "other")
    with pytest.raises(ValueError, match="made with keyframes=4, now it is 2"):
        encoded(prepared, tmp_path / "latents", keyframes=2)
    clips = mixed()
    clips[0] = Clip(clips[0].shape, 1, None)
    changed = Prepared(write_prepared(tmp_path / "changed", clips))
    with pytest.raises(ValueError, match="of other clips than the prepared folder holds now"):
        encoded(changed, tmp_path / "latents")
    with pytest.raises(ValueError, match="of other clips"):
        open_latents(changed, tmp_path / "latents", "enc")


def test_latents_that_are_not_there_are_asked_for(prepared, tmp_path):
    with pytest.raises(ValueError, match="no latents here yet"):
        open_latents(prepared, tmp_path, "enc")


def test_a_damaged_shard_stops_the_encoding_before_its_bucket_and_keeps_the_others(tmp_path):
    prepared = Prepared(write_prepared(tmp_path / "data", mixed()))
    shard = tmp_path / "data/shard-00002.tar"  # of the second bucket
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00002\.tar: damaged"):
        encoded(prepared, tmp_path / "latents")
    first, second = (cache_folder(tmp_path / "latents", prepared.buckets[bucket]) for bucket in (0, 1))
    assert json.loads((first / "cache.json").read_text())["count"] == 6
    assert not second.exists()


def test_a_source_whose_name_is_no_text_is_encoded_like_any_other(tmp_path):
    prepared = Prepared(write_prepared(tmp_path / "data", [Clip((1, 16, 16), 0, source="caf\udce9.png")]))
    encoded(prepared, tmp_path / "latents")
    assert open_latents(prepared, tmp_path / "latents", "enc")[0].records(0)[0]["source"] == "caf\\udce9.png"


def test_captions_are_listed_once(prepared):
    captions = captions_of(prepared)
    assert len(captions) == len(set(captions)) == 10
    assert None not in captions


def test_views_lie_within_the_clip_and_reach_every_place(prepared):
    shape = prepared.buckets[0]
    found = set()
    for seed in range(200):
        times, rows, columns = draw_view(shape, 5, 16, torch.Generator().manual_seed(seed))
        view = prepared.frames(0)[times, rows, columns]
        assert tuple(view.shape[:3]) == (5, 16, 16)
        found.add((times.start, rows.start, columns.start))
    assert {start for start, _, _ in found} == set(range(5))
    assert min(row for _, row, _ in found) == 0
    assert max(row for _, row, _ in found) == 16
    assert {column for _, _, column in found} >= {0, 32}
    whole = draw_view(shape, 99, 0, torch.Generator())
    assert prepared.frames(0)[whole].shape == (9, 32, 48, 3)
    assert view_shape(shape, 99, 40) == type(shape)(9, 32, 40)
