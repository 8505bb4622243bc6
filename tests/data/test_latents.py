from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from carrara.data.latents import LatentBatch, LatentCache, write_latents

SHAPE = (3, 2, 4, 4)


def clip(i: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)).half()


class Producer:
    """Clip i is a function of i; counts what it is asked for, and may fail at a clip."""

    def __init__(self, fail_at: int | None = None, keyframes: bool = False) -> None:
        self.made: list[int] = []
        self.fail_at = fail_at
        self.keyframes = keyframes

    def __call__(self, start: int, stop: int) -> Iterator[LatentBatch]:
        for first in range(start, stop, 3):
            numbers = range(first, min(first + 3, stop))
            if self.fail_at in numbers:
                raise KeyboardInterrupt
            self.made += numbers
            frames = torch.tensor([[i % 5, i % 7 + 5] for i in numbers])
            yield LatentBatch(
                torch.stack([clip(i) for i in numbers]),
                [{"caption": f"clip {i}, böse", "scene": {"actors": [i]}} for i in numbers],
                torch.stack([clip(i)[:, :1].transpose(0, 1).expand(2, -1, -1, -1) for i in numbers])
                if self.keyframes
                else None,
                frames if self.keyframes else None,
            )


def check(cache: LatentCache, count: int) -> None:
    chosen = torch.tensor([count - 1, 0, count // 2, 0])
    batch = cache[chosen]
    assert len(cache) == count
    assert cache.shape == SHAPE
    assert torch.equal(batch.latents.cpu(), torch.stack([clip(int(i)) for i in chosen]))
    assert [record["scene"]["actors"] for record in batch.records] == [[int(i)] for i in chosen]
    assert batch.records[1]["caption"] == "clip 0, böse"


@pytest.mark.parametrize("device", [None, "cpu"])
def test_what_is_written_is_read(tmp_path: Path, device: str | None):
    write_latents(tmp_path, Producer(keyframes=True), 11, "enc", shard=4, about={"world": 1})
    cache = LatentCache.open(tmp_path, "enc", device)
    check(cache, 11)
    batch = cache[[9, 2]]
    assert batch.keyframes is not None
    assert batch.frames is not None
    assert cache.keyframes == 2
    assert batch.frames.tolist() == [[4, 7], [2, 7]]
    assert torch.equal(batch.keyframes[0, 1], clip(9)[:, 0])
    assert torch.equal(cache.latents(slice(4, 9)), torch.stack([clip(i) for i in range(4, 9)]))
    assert cache.about == {"world": 1}


def test_clips_without_keyframes(tmp_path: Path):
    write_latents(tmp_path, Producer(), 5, "enc", shard=4)
    batch = LatentCache.open(tmp_path, "enc")[3]
    assert batch.keyframes is None
    assert batch.frames is None
    assert batch.latents.shape == (1, *SHAPE)


def test_an_interrupted_encoding_goes_on_at_its_shard(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        write_latents(tmp_path, Producer(fail_at=9), 14, "enc", shard=4)
    with pytest.raises(ValueError, match="not finished"):
        LatentCache.open(tmp_path, "enc")
    check(LatentCache.open(tmp_path, "enc", partial=True), 8)
    again = Producer()
    write_latents(tmp_path, again, 14, "enc", shard=4)
    assert again.made == list(range(8, 14))
    check(LatentCache.open(tmp_path, "enc"), 14)
    assert not list(tmp_path.glob("*.partial"))


def test_a_larger_count_extends_the_cache(tmp_path: Path):
    write_latents(tmp_path, Producer(), 6, "enc", shard=4)
    more = Producer()
    write_latents(tmp_path, more, 9, "enc", shard=4)
    assert more.made == list(range(4, 9))
    check(LatentCache.open(tmp_path, "enc"), 9)


def test_a_half_written_shard_is_made_again(tmp_path: Path):
    write_latents(tmp_path, Producer(), 8, "enc", shard=4)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors: damaged"):
        LatentCache.open(tmp_path, "enc")
    again = Producer()
    write_latents(tmp_path, again, 8, "enc", shard=4)
    assert again.made == [4, 5, 6, 7]
    check(LatentCache.open(tmp_path, "enc"), 8)


def test_another_encoder_is_refused(tmp_path: Path):
    write_latents(tmp_path, Producer(), 4, "a" * 64, shard=4)
    with pytest.raises(ValueError, match=r"another encoder.*aaaaaaaaaaaa.*bbbbbbbbbbbb.*new folder"):
        LatentCache.open(tmp_path, "b" * 64)
    with pytest.raises(ValueError, match="another encoder"):
        write_latents(tmp_path, Producer(), 4, "b" * 64, shard=4)


def test_other_data_is_refused(tmp_path: Path):
    write_latents(tmp_path, Producer(), 4, "enc", shard=4, about={"size": 64})
    with pytest.raises(ValueError, match="about"):
        write_latents(tmp_path, Producer(), 4, "enc", shard=4, about={"size": 128})
    with pytest.raises(ValueError, match="dtype"):
        write_latents(tmp_path, Producer(), 4, "enc", shard=4, dtype=torch.bfloat16, about={"size": 64})


def test_a_shard_of_another_cache_is_refused(tmp_path: Path):
    write_latents(tmp_path / "a", Producer(), 4, "one", shard=4)
    write_latents(tmp_path / "b", Producer(), 4, "two", shard=4)
    (tmp_path / "b" / "shard-00000.safetensors").replace(tmp_path / "a" / "shard-00000.safetensors")
    with pytest.raises(ValueError, match="another cache"):
        LatentCache.open(tmp_path / "a", "one")


def test_bad_producers_are_named(tmp_path: Path):
    def few(start: int, stop: int) -> Iterator[LatentBatch]:
        yield LatentBatch(torch.zeros(stop - start - 1, *SHAPE), [{}] * (stop - start - 1))

    def wild(start: int, stop: int) -> Iterator[LatentBatch]:
        latents = torch.zeros(stop - start, *SHAPE)
        latents[1] = 1e6  # more than float16 holds
        yield LatentBatch(latents, [{}] * (stop - start))

    with pytest.raises(ValueError, match="gave 3 instead of 4"):
        write_latents(tmp_path, few, 4, "enc", shard=4)
    with pytest.raises(ValueError, match=r"clip 1: its latents are not finite as torch\.float16"):
        write_latents(tmp_path, wild, 4, "enc", shard=4)
    with pytest.raises(ValueError, match="2 clips but 1 records"):
        LatentBatch(torch.zeros(2, *SHAPE), [{}])
    assert not list(tmp_path.glob("shard*"))


def test_missing_records_and_clips_out_of_range_are_refused(tmp_path: Path):
    write_latents(tmp_path, Producer(), 8, "enc", shard=4)
    with pytest.raises(ValueError, match="the cache holds 0 to 7"):
        LatentCache.open(tmp_path, "enc")[[2, 8]]
    lines = tmp_path / "shard-00001.jsonl"
    lines.write_text("".join(lines.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    with pytest.raises(ValueError, match="holds 3 records, its shard 4 clips"):
        LatentCache.open(tmp_path, "enc")
