"""The latents of a prepared folder: every clip encoded once, one cache (`data/latents.py`) for each bucket.

    latents/17-frames-96x64/      cache.json, shards; its clips are the bucket's, in the manifest's order
    latents/1-frame-96x64/        images

A cache belongs to one encoder, named by its fingerprint, and to the clips of its bucket, named by their identity: it is
refused where either differs. Each record has key, source and caption (None: unlabelled). What a model reads of a clip
beside its latents (`Beside`) is kept with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from carrara.core.config import read_json
from carrara.core.types import VideoShape
from carrara.data.batches import mix
from carrara.data.clip_pixels import ClipReader
from carrara.data.latents import LatentBatch, LatentCache, write_latents
from carrara.data.prepared import Prepared, describe

Encode = Callable[[Tensor], Tensor]
"""Pixels uint8 `b t h w 3` to normalised latents `b c f h w`, a pure function."""
Report = Callable[[str, int, int], None]
"""Told the bucket in words, how many of its clips are encoded, and how many there are."""


@dataclass(frozen=True)
class Beside:
    """What is kept of each clip beside its latents.

    read: from its pixels uint8 `t h w 3` to tensors `1 ...` by name, a pure function; about: JSON values that define
    it; channels: how many channels of a latent's size that are, values: and how many numbers besides.
    """

    read: Callable[[Tensor], Mapping[str, Tensor]]
    about: Mapping[str, Any]
    channels: int = 0
    values: int = 0


def cache_folder(folder: Path, shape: VideoShape) -> Path:
    """Where the cache of a bucket lies."""
    return folder / f"{shape.frames}-frame{'s' * (shape.frames > 1)}-{shape.width}x{shape.height}"


def encode_prepared(
    prepared: Prepared,
    folder: Path,
    encode: Encode,
    made_by: str,
    channels: int,
    keyframes: int = 4,
    pixels: int = 1 << 20,
    threads: int = 0,
    report: Report | None = None,
    beside: Beside | None = None,
) -> None:
    """Encode every bucket into its cache below `folder`, or go on where that was interrupted.

    made_by: the encoder's fingerprint; channels: of its latents; keyframes: frames of each clip that are encoded alone
    as well, the last one and others (0: none; images have none); pixels: of a batch for the encoder, as places in space
    and time; threads: that decode, as `ClipReader` has them; beside: what else is kept. Raises ValueError for a cache
    of another encoder or other clips, and for shards that are missing or damaged; what is encoded by then stays.
    """
    for bucket, numbers in enumerate(prepared.members):
        if not numbers or is_encoded(prepared, bucket, folder, made_by, keyframes, beside):
            continue
        prepared.verify(bucket)
        shape = prepared.buckets[bucket]
        with ClipReader(prepared, threads, memory=0) as clips:
            write_latents(
                cache_folder(folder, shape),
                _producer(prepared, bucket, clips, encode, keyframes, pixels, beside),
                len(numbers),
                made_by,
                shard=_clips_per_file(shape, channels, beside),
                about=_about(prepared, bucket, keyframes, beside),
                report=partial(report, describe(shape)) if report else None,
            )


def open_latents(
    prepared: Prepared,
    folder: Path,
    made_by: str,
    keyframes: int = 4,
    device: torch.device | str | None = None,
    beside: Beside | None = None,
) -> list[LatentCache | None]:
    """The cache of each bucket, in the order of `prepared.buckets`, None for one without clips. device: as
    `LatentCache.open` has it. Raises ValueError where one is missing, unfinished, or of another encoder or other clips.
    """
    caches: list[LatentCache | None] = []
    for bucket, numbers in enumerate(prepared.members):
        if not numbers:
            caches.append(None)
            continue
        path = cache_folder(folder, prepared.buckets[bucket])
        if not (path / "cache.json").is_file():
            raise ValueError(f"{path}: no latents here yet; encode the prepared folder first")
        _check_about(path, read_json(path / "cache.json").get("about", {}), _about(prepared, bucket, keyframes, beside))
        caches.append(LatentCache.open(path, made_by, device))
    return caches


def is_encoded(
    prepared: Prepared, bucket: int, folder: Path, made_by: str, keyframes: int, beside: Beside | None = None
) -> bool:
    """Whether the cache of a bucket is finished. Raises ValueError for one of another encoder or of other clips."""
    path = cache_folder(folder, prepared.buckets[bucket])
    if not (path / "cache.json").is_file():
        return False
    index = read_json(path / "cache.json")
    _check_about(path, index.get("about", {}), _about(prepared, bucket, keyframes, beside))
    if index.get("fingerprint") != made_by:
        LatentCache.open(path, made_by)  # says by which encoder
    try:
        return len(LatentCache.open(path, made_by)) == len(prepared.members[bucket])
    except ValueError:  # unfinished or damaged: what lacks is made again
        return False


def _about(prepared: Prepared, bucket: int, keyframes: int, beside: Beside | None) -> dict[str, Any]:
    shape = prepared.buckets[bucket]
    return {
        "frames": shape.frames,
        "height": shape.height,
        "width": shape.width,
        "fps": prepared.fps,
        "keyframes": _count(shape, keyframes),
        "clips": prepared.identity(bucket),
        **(beside.about if beside else {}),
    }


def _check_about(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found.get("clips") != wanted["clips"]:
        raise ValueError(
            f"{path}: these latents are of other clips than the prepared folder holds now; delete this folder to "
            "encode them, or use a new one"
        )
    if found != wanted:
        name = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
        raise ValueError(
            f"{path}: these latents were made with {name}={found.get(name)}, now it is {wanted.get(name)}; set it "
            "back, or use a new folder"
        )


def _producer(
    prepared: Prepared,
    bucket: int,
    reader: ClipReader,
    encode: Encode,
    keyframes: int,
    pixels: int,
    beside: Beside | None,
) -> Callable[[int, int], Iterator[LatentBatch]]:
    shape, numbers = prepared.buckets[bucket], prepared.members[bucket]
    batch = max(1, pixels // (shape.frames * shape.height * shape.width))
    count = _count(shape, keyframes)

    @torch.no_grad()
    def produce(start: int, stop: int) -> Iterator[LatentBatch]:
        groups = [numbers[at : min(at + batch, stop)] for at in range(start, stop, batch)]
        for group, clips in zip(groups, reader.ahead(groups), strict=True):
            video = torch.stack(clips)
            records = [_record(prepared, number) for number in group]
            more = _joined([beside.read(clip) for clip in clips]) if beside else {}
            if not count:
                yield LatentBatch(encode(video), records, more=more)
                continue
            frames = torch.tensor([_some_frames(number, shape.frames, count) for number in group])
            single = encode(_pick(video, frames))
            alone = rearrange(single, "(b k) c 1 h w -> b k c h w", k=count)
            yield LatentBatch(encode(video), records, alone, frames, more)

    return produce


def _record(prepared: Prepared, number: int) -> dict[str, Any]:
    row = prepared.rows[number]
    source = row.source.encode("utf-8", "backslashreplace").decode()  # names of files need not be text
    return {"key": row.key, "caption": row.caption, "source": source}


def _count(shape: VideoShape, keyframes: int) -> int:
    """How many keyframes a clip has: frames behind the first, as many as are asked for and there are."""
    return min(keyframes, shape.frames - 1)


def _some_frames(number: int, frames: int, count: int) -> list[int]:
    """Which frames of this clip are encoded alone: different ones behind the first, and the last."""
    between = list(range(1, frames - 1))
    random.Random(mix(number)).shuffle(between)
    return [*between[: count - 1], frames - 1]


def _pick(video: Tensor, frames: Tensor) -> Tensor:
    """Frames `(b, k)` of clips `b t h w 3` as clips of one frame `(b k) 1 h w 3`."""
    rows = torch.arange(len(video))[:, None]
    return rearrange(video[rows, frames], "b k h w c -> (b k) 1 h w c")


def _joined(clips: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([clip[name] for clip in clips]) for name in clips[0]}


def _clips_per_file(shape: VideoShape, channels: int, beside: Beside | None, size: int = 1 << 28) -> int:
    """How many clips make a file of about this many bytes, the stride of the encoder being at least 2 x 8 x 8."""
    channels, values = (channels + beside.channels, beside.values) if beside else (channels, 0)
    values += channels * (shape.frames // 2 + 1) * (shape.height // 8) * (shape.width // 8)
    return max(1, min(1000, size // max(1, 2 * values)))


def captions_of(prepared: Prepared) -> Sequence[str]:
    """Every different caption, in the manifest's order."""
    return list(dict.fromkeys(row.caption for row in prepared.rows if row.caption is not None))
