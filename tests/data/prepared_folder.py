"""A small prepared folder: clips that move, images, with and without captions, in the shards of the real thing."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carrara.core.media import write_picture, write_video

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "white": (230, 230, 230)}


@dataclass(frozen=True)
class Clip:
    """A square of a colour that crosses a grey ground. shape: frames, height, width; caption "" makes one of itself."""

    shape: tuple[int, int, int]
    number: int = 0
    caption: str | None = ""
    source: str = ""

    @property
    def colour(self) -> str:
        return list(COLOURS)[self.number % len(COLOURS)]

    @property
    def text(self) -> str | None:
        return f"a {self.colour} square number {self.number}" if self.caption == "" else self.caption

    def frames(self) -> np.ndarray:
        t, h, w = self.shape
        video = np.full((t, h, w, 3), 90 + self.number % 7 * 5, np.uint8)
        for at in range(t):
            left = (3 * self.number + at * w // (2 * t)) % (w // 2)
            video[at, h // 4 : 3 * h // 4, left : left + w // 2] = COLOURS[self.colour]
        return video


def write_prepared(folder: Path, clips: Sequence[Clip], per_shard: int = 3, fps: float = 8.0) -> Path:
    """Write a prepared folder of these clips. Returns it."""
    folder.mkdir(parents=True)
    shapes = list(dict.fromkeys(clip.shape for clip in clips))
    rows, shards = [], []
    for shape in shapes:
        numbers = [number for number, clip in enumerate(clips) if clip.shape == shape]
        for start in range(0, len(numbers), per_shard):
            name = f"shard-{len(shards):05d}.tar"
            part = numbers[start : start + per_shard]
            with tarfile.open(folder / name, "w") as tar:
                rows += [_add(tar, folder, name, number, clips[number], fps) for number in part]
            data = (folder / name).read_bytes()
            shards.append(
                {
                    "file": name,
                    "bucket": list(shape),
                    "clips": len(part),
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
    rows.sort(key=lambda row: row["key"])
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    index = {"format": 1, "settings": {}, "buckets": [list(shape) for shape in shapes], "fps": fps, "shards": shards}
    images = sum(clip.shape[0] == 1 for clip in clips)
    (folder / "prepared.json").write_text(json.dumps({**index, "clips": len(clips) - images, "images": images}))
    return folder


def _add(tar: tarfile.TarFile, folder: Path, shard: str, number: int, clip: Clip, fps: float) -> dict[str, object]:
    key, (t, h, w) = f"{number:09d}", clip.shape
    path = folder / f"{key}.{'png' if t == 1 else 'mp4'}"
    if t == 1:
        write_picture(path, clip.frames()[0])
    else:
        write_video(path, clip.frames(), fps)
    source = clip.source or f"{number}.mp4"
    row = {"key": key, "shard": shard, "caption": clip.text, "frames": t, "height": h, "width": w, "fps": fps}
    row |= {
        "source": source,
        "source_sha256": hashlib.sha256(repr(source).encode()).hexdigest(),
        "start": 0.0,
        "end": t / fps,
    }
    contents = {path.name: path.read_bytes(), f"{key}.json": json.dumps(row).encode()}
    if clip.text is not None:
        contents[f"{key}.txt"] = clip.text.encode()
    path.unlink()
    for name, data in contents.items():
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return row


def mixed(count: int = 6) -> list[Clip]:
    """Clips of two shapes, images, and every third clip without a caption."""
    clips = [Clip((9, 32, 48), n, "" if n % 3 else None) for n in range(count)]
    clips += [Clip((5, 48, 32), count + n) for n in range(count // 2)]
    return clips + [Clip((1, 32, 48), 2 * count + n) for n in range(count // 2)]
