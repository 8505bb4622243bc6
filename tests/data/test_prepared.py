"""A prepared folder is read clip by clip, in any order, and what is wrong with it is said before it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.data.prepared_folder import Clip, mixed, write_prepared

from carrara.core.types import VideoShape
from carrara.data.clip_pixels import ClipReader
from carrara.data.prepared import Prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", mixed())


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_every_clip_is_found_and_decodes_to_what_was_written(folder):
    prepared, clips = Prepared(folder), mixed()
    assert len(prepared) == len(clips) == 12
    assert [row.caption for row in prepared.rows] == [clip.text for clip in clips]
    assert prepared.buckets == (VideoShape(9, 32, 48), VideoShape(5, 48, 32), VideoShape(1, 32, 48))
    assert [len(numbers) for numbers in prepared.members] == [6, 3, 3]
    prepared.verify()
    for number in (11, 0, 7):  # any order
        found, wanted = prepared.frames(number).numpy(), clips[number].frames()
        assert found.shape == wanted.shape
        error = np.abs(found.astype(int) - wanted)
        # H.264 at 4:2:0 blurs colours at edges only; images are exact
        assert error.mean() < (6 if clips[number].shape[0] > 1 else 1e-9), number


def test_a_shape_belongs_to_each_clip(folder):
    prepared = Prepared(folder)
    assert all(tuple(prepared.frames(n).shape[:3]) == _sides(prepared.bucket(n)) for n in range(len(prepared)))


def test_what_is_not_prepared_is_told_how_to_become_so(tmp_path, copy):
    with pytest.raises(ValueError, match=r"not a prepared folder.*carrara data prepare"):
        Prepared(tmp_path)
    (copy / "manifest.jsonl").unlink()
    with pytest.raises(ValueError, match=r"manifest\.jsonl: missing; prepare"):
        Prepared(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.update(format=2), "format 2, expected 1"),
        (lambda index: index.pop("fps"), "lacks 'fps'"),
        (lambda index: index["shards"].pop(), "said to be in shard-00003.tar, which prepared.json does not know"),
        (lambda index: index["shards"][0].pop("bucket"), "lacks 'bucket'"),
    ],
)
def test_an_index_that_cannot_be_right_is_refused(copy, change, said):
    index = json.loads((copy / "prepared.json").read_text())
    change(index)
    (copy / "prepared.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=said):
        Prepared(copy)


def test_a_folder_of_which_nothing_was_kept_is_refused(tmp_path):
    write_prepared(tmp_path / "empty", [])
    with pytest.raises(ValueError, match=r"holds no clips; its report/index\.html says why"):
        Prepared(tmp_path / "empty")


def test_a_missing_shard_costs_its_own_clips_alone(copy):
    prepared = Prepared(copy)
    (copy / "shard-00001.tar").unlink()
    with pytest.raises(ValueError, match=r"shard-00001\.tar: missing; prepare the folder again, or copy the shard"):
        prepared.check()
    with pytest.raises(ValueError, match=r"shard-00001\.tar: missing"):
        prepared.frames(3)
    assert prepared.frames(0).shape == (9, 32, 48, 3)
    prepared.check(1)


def test_a_shard_that_is_cut_short_is_refused(copy):
    shard = copy / "shard-00000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"has {len(whole) // 2} bytes, {len(whole)} were written"):
        Prepared(copy).check()
    opened = Prepared(copy)
    shard.write_bytes(whole)
    opened.frames(0)  # the places of its members are known from now on
    shard.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"shard-00000\.tar: 000000000\.mp4 is cut short"):
        opened.frames(0)


def test_damage_of_equal_size_is_found_by_verify_and_by_decoding(copy):
    shard = copy / "shard-00000.tar"
    data = bytearray(shard.read_bytes())
    data[512:2000] = bytes(1488)  # the beginning of the first member
    shard.write_bytes(data)
    prepared = Prepared(copy)
    prepared.check()
    with pytest.raises(ValueError, match=r"shard-00000\.tar: damaged, its contents are not what was written"):
        prepared.verify()
    with pytest.raises(ValueError, match=r"000000000\.mp4 cannot be decoded"):
        prepared.frames(0)
    data[:512] = b"x" * 512
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="damaged, not a whole tar"):
        Prepared(copy).frames(0)


def test_the_identity_of_a_bucket_is_that_of_its_clips(folder, copy, tmp_path):
    prepared = Prepared(folder)
    identities = [prepared.identity(bucket) for bucket in range(3)]
    assert len(set(identities)) == 3
    assert [Prepared(copy).identity(bucket) for bucket in range(3)] == identities
    other = mixed()
    other[7] = Clip(other[7].shape, 7, "another caption")
    changed = Prepared(write_prepared(tmp_path / "other", other))
    assert [changed.identity(b) == identities[b] for b in range(3)] == [True, False, True]


@pytest.mark.parametrize("memory", [0, 100_000, 1 << 30])
def test_a_reader_gives_the_same_clips_whatever_it_keeps(folder, memory):
    prepared = Prepared(folder)
    with ClipReader(prepared, threads=3, memory=memory) as reader:
        for numbers in ([3, 0, 3], [11, 2], [0, 1, 2, 3, 4, 5], []):
            for number, clip in zip(numbers, reader.clips(numbers), strict=True):
                assert (clip == prepared.frames(number)).all()
        ahead = list(reader.ahead([[1, 2], [6], [9, 10]]))
    assert [len(clips) for clips in ahead] == [2, 1, 2]
    assert (ahead[1][0] == prepared.frames(6)).all()
    assert sum(clip.nbytes for clip in reader._kept.values()) <= memory


def _sides(shape: VideoShape) -> tuple[int, int, int]:
    return shape.frames, shape.height, shape.width
