"""A prepared folder, read: clips in shards of the WebDataset layout (plain tar), found by offset, decoded one by one.

`carrara data prepare` writes it. Not standard: a shard is not streamed from its beginning; the headers of its members
are read once, and from then on any clip is one seek, so that the order of training owes nothing to the order on disk.

    prepared.json        format, settings, buckets, fps, shards (each of one bucket, with its size and SHA-256)
    manifest.jsonl       a line per clip, in global order
    shard-NNNNN.tar      KEY.mp4 or KEY.png, KEY.txt, KEY.json
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carrara.core.config import read_json
from carrara.core.files import sha256
from carrara.core.types import VideoShape

FORMAT = 1
_AGAIN = "prepare the folder again, or copy the shard again; a run goes on from its last checkpoint"
_BT709, _FULL, _UNSPECIFIED = 1, 2, 2  # FFmpeg's codes: matrix, range of RGB, and a matrix that is not told


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a clip. caption: None where there is none; source: the file it was cut from."""

    key: str
    shard: str
    bucket: int
    caption: str | None
    source: str
    source_hash: str


class Prepared:
    """The clips of a prepared folder, numbered in the manifest's order.

    Opening reads the manifest alone, so that finished caches of latents need no shards. Raises ValueError for a folder
    that is not prepared, or whose files do not belong together.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "prepared.json"
        if not path.is_file():
            raise ValueError(
                f"{folder}: not a prepared folder, for it has no prepared.json; make one of your clips with: "
                "carrara data prepare CLIPS FOLDER"
            )
        index = read_json(path)
        if index.get("format") != FORMAT:
            raise ValueError(f"{path}: format {index.get('format')!r}, expected {FORMAT}; prepare the folder again")
        try:
            self.buckets = tuple(VideoShape(*(int(side) for side in bucket)) for bucket in index["buckets"])
            self.fps = float(index["fps"])
            self.shards: dict[str, dict[str, Any]] = {shard["file"]: shard for shard in index["shards"]}
            numbers = {shape: number for number, shape in enumerate(self.buckets)}
            self._bucket_of = {name: numbers[VideoShape(*shard["bucket"])] for name, shard in self.shards.items()}
            self._numbers = numbers
            self.rows = [self._row(line) for line in _lines(self.folder / "manifest.jsonl")]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.folder}: prepared.json or manifest.jsonl lacks {error}; prepare it again"
            ) from None
        self.members = self._members_of_buckets()
        """The numbers of each bucket's clips."""
        if not self.rows:
            raise ValueError(f"{self.folder}: holds no clips; its report/index.html says why each was dropped")
        self._places: dict[str, dict[str, tuple[int, int]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.rows)

    def bucket(self, number: int) -> VideoShape:
        """The shape of a clip."""
        return self.buckets[self.rows[number].bucket]

    def moving(self) -> Prepared:
        """The same folder without its images. Raises ValueError where nothing else is in it."""
        kept = copy.copy(self)
        kept.rows = [row for row in self.rows if self.buckets[row.bucket].frames > 1]
        if not kept.rows:
            raise ValueError(f"{self.folder}: holds images alone; prepare clips that move")
        kept.members = kept._members_of_buckets()
        return kept

    def without_captions(self) -> Prepared:
        """The same clips, all unlabelled."""
        kept = copy.copy(self)
        kept.rows = [replace(row, caption=None) for row in self.rows]
        return kept

    def identity(self, bucket: int) -> str:
        """SHA-256 that names the clips of a bucket: their pixels, captions and order."""
        shards = [[name, s["sha256"]] for name, s in self.shards.items() if self._bucket_of[name] == bucket]
        rows = [[self.rows[number].key, self.rows[number].caption] for number in self.members[bucket]]
        return hashlib.sha256(json.dumps([shards, rows, self.fps]).encode()).hexdigest()

    def check(self, bucket: int | None = None) -> None:
        """Whether the shards (of one bucket, or all) are there in their sizes. Raises ValueError."""
        for name in self._of(bucket):
            self._file(name)

    def verify(self, bucket: int | None = None) -> None:
        """Whether they hold what was written, byte for byte; reads them all. Raises ValueError."""
        for name in self._of(bucket):
            path = self._file(name)
            if sha256(path) != self.shards[name]["sha256"]:
                raise ValueError(f"{path}: damaged, its contents are not what was written; {_AGAIN}")

    def frames(self, number: int) -> Tensor:
        """The pixels of a clip, uint8 `t h w 3`. May be called from many threads.

        Raises ValueError where the shard is missing or damaged, or the clip does not decode to its bucket's shape.
        """
        row, shape = self.rows[number], self.bucket(number)
        name = f"{row.key}.{'png' if shape.frames == 1 else 'mp4'}"
        where = f"{self.folder / row.shard}: {name}"
        offset, size = self._members(row.shard).get(name, (0, 0))
        if not size:
            raise ValueError(f"{where} is not in it; {_AGAIN}")
        try:
            with (self.folder / row.shard).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ValueError(f"{self.folder / row.shard}: cannot be read ({error.strerror}); {_AGAIN}") from None
        if len(data) < size:
            raise ValueError(f"{where} is cut short; {_AGAIN}")
        try:
            pixels = _picture(data) if shape.frames == 1 else _clip(data)
        except ValueError as error:
            raise ValueError(f"{where} cannot be decoded ({error}); {_AGAIN}") from None
        if pixels.shape != (shape.frames, shape.height, shape.width, 3):
            said = f"decodes to {pixels.shape[0]} frames of {pixels.shape[2]}x{pixels.shape[1]}"
            raise ValueError(f"{where} {said}, its bucket is {describe(shape)}; {_AGAIN}")
        return torch.from_numpy(pixels)

    def _row(self, line: dict[str, Any]) -> Row:
        shape = VideoShape(int(line["frames"]), int(line["height"]), int(line["width"]))
        shard, caption = line["shard"], line["caption"]
        if shard not in self.shards or self._numbers.get(shape) != self._bucket_of[shard]:
            raise ValueError(
                f"{self.folder}/manifest.jsonl: clip {line['key']} of {describe(shape)} is said to be in {shard}, "
                "which prepared.json does not know or has in another bucket; prepare the folder again"
            )
        source = line["source"]
        return Row(line["key"], shard, self._bucket_of[shard], caption, source, line.get("source_sha256") or source)

    def _members_of_buckets(self) -> list[list[int]]:
        members: list[list[int]] = [[] for _ in self.buckets]
        for number, row in enumerate(self.rows):
            members[row.bucket].append(number)
        return members

    def _of(self, bucket: int | None) -> list[str]:
        return [name for name in self.shards if bucket is None or self._bucket_of[name] == bucket]

    def _file(self, name: str) -> Path:
        path, size = self.folder / name, self.shards[name]["bytes"]
        if not path.is_file():
            raise ValueError(f"{path}: missing; {_AGAIN}")
        if path.stat().st_size != size:
            raise ValueError(f"{path}: has {path.stat().st_size} bytes, {size} were written; {_AGAIN}")
        return path

    def _members(self, shard: str) -> dict[str, tuple[int, int]]:
        """Where the members of a shard begin and how long they are; headers are read once."""
        with self._lock:
            if shard not in self._places:
                path = self._file(shard)
                try:
                    with tarfile.open(path, "r:") as tar:
                        self._places[shard] = {member.name: (member.offset_data, member.size) for member in tar}
                except tarfile.TarError as error:
                    raise ValueError(f"{path}: damaged, not a whole tar ({error}); {_AGAIN}") from None
            return self._places[shard]


def describe(shape: VideoShape) -> str:
    """A shape in words."""
    size = f"{shape.width}x{shape.height}"
    return f"images of {size}" if shape.frames == 1 else f"{shape.frames} frames of {size}"


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path}: missing; prepare the folder again")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is no JSON ({error}); prepare the folder again") from None


def _picture(data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))[None]
    except (OSError, SyntaxError) as error:  # what Pillow raises for broken files
        raise ValueError(str(error)) from None


def _clip(data: bytes) -> np.ndarray:
    """Frames of a small file in memory. One thread: many clips are decoded at a time."""
    import av
    from av.video.reformatter import VideoReformatter

    frames: list[np.ndarray] = []
    try:
        container: Any
        with av.open(io.BytesIO(data), format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            reformatter = VideoReformatter()
            for frame in container.decode(stream):
                told = frame.colorspace != _UNSPECIFIED
                rgb = reformatter.reformat(
                    frame,
                    format="rgb24",
                    src_colorspace=None if told else _BT709,
                    dst_color_range=_FULL,
                    threads=1,
                )
                frames.append(rgb.to_ndarray())
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(str(error)) from None
    if not frames:
        raise ValueError("no frame in it")
    return np.stack(frames)
