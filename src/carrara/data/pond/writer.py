"""Clips of the pond as a folder of files, for looking at and for other programs to train on.

    dataset.json            what made it: sizes, rate, seed, world
    metadata.jsonl          a line for each clip: file_name, caption, the three levels, scene, frames, fps, size
    clips/000000.mp4        the clip, with its caption and scene in the file's metadata
    truth/000000.json       its truth: tracks, boxes, visibility, contacts, events (world.Truth)

`metadata.jsonl` is what VideoFolder loaders read. The folder appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carrara.core.config import read_json, to_dict, write_json
from carrara.core.media import check_format, write_video
from carrara.core.types import VideoShape
from carrara.data.pond.captions import LEVELS, caption
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.world import Scene, Truth

BATCH_PIXELS = 1 << 24  # frames x height x width rendered at once: about 50 MB of video
MOST_PIXELS = 1 << 29  # of one clip: about 5 GB while it is rendered and written
MADE_BY = "carrara pond"  # the mark of a folder that may be replaced


def write_pond(
    folder: str | Path,
    clips: int = 16,
    size: tuple[int, int] = (128, 128),
    frames: int = 17,
    fps: float = 8.0,
    seed: int = 0,
    split: str = "train",
    mix: Mix | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `clips` clips of the scenes seed, seed + 1, ... of a world; size is (width, height) in pixels.

    split: "train" or "held_out", the scenes with pairs of attributes that training never shows; mix: what is drawn.
    progress: called with the clips done and all clips. Raises ValueError, before anything is rendered, for a number out
    of range or a folder that cannot be written; with `overwrite` an earlier folder of this kind is replaced.
    """
    if clips < 1:
        raise ValueError(f"clips={clips}: write at least 1")
    if seed < 0:
        raise ValueError(f"seed={seed}: must be a whole number from 0")
    world = mix or Mix()
    scenes = [sample_scene(seed + number, world, split) for number in range(clips)]
    about = {"seed": seed, "split": split, "world": to_dict(world)}
    write_scenes(folder, scenes, VideoShape(frames, size[1], size[0]), fps, about, overwrite, progress)


def write_scenes(
    folder: str | Path,
    scenes: Sequence[Scene],
    shape: VideoShape,
    fps: float = 8.0,
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write these scenes; `about` is kept in dataset.json. Errors as in `write_pond`."""
    folder = Path(folder)
    check_format("clip.mp4", shape, fps)
    if shape.frames * shape.height * shape.width > MOST_PIXELS:
        most = MOST_PIXELS // (shape.height * shape.width)
        raise ValueError(f"{shape.frames} frames of {shape.width}x{shape.height} are too many to hold; at most {most}")
    if not scenes:
        raise ValueError("no scenes to write; give at least one")
    sizes = {"frames": shape.frames, "height": shape.height, "width": shape.width, "fps": float(fps)}
    with _replacing(folder, overwrite) as partial:
        (partial / "clips").mkdir()
        (partial / "truth").mkdir()
        lines = []
        for first, batch in _batches(scenes, max(1, BATCH_PIXELS // (shape.frames * shape.height * shape.width))):
            rendered = render(batch, shape, fps)
            for i, (scene, video, truth) in enumerate(zip(batch, rendered.video, rendered.truths), start=first):
                lines.append({**_tell(scene, i), **sizes})
                _write_clip(partial, lines[-1], video, truth)
                if progress:
                    progress(i + 1, len(scenes))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (partial / "metadata.jsonl").write_text(text, encoding="utf-8")
        write_json(partial / "dataset.json", {"made_by": MADE_BY, "clips": len(lines), **sizes, **(about or {})})


def _tell(scene: Scene, number: int) -> dict[str, Any]:
    """The captions of a clip, canonical for even numbers and with synonyms for odd ones, and its scene."""
    told = {level: caption(scene, level, seed=number, canonical=number % 2 == 0) for level in LEVELS}
    return {
        "file_name": f"clips/{number:06d}.mp4",
        "caption": told["medium"].text,
        **{f"caption_{level}": said.text for level, said in told.items()},
        "says": {level: sorted(said.attributes) for level, said in told.items()},
        "scene": to_dict(scene),
    }


def _write_clip(folder: Path, line: dict[str, Any], video: Any, truth: Truth) -> None:
    metadata = {"caption": line["caption"], "scene": json.dumps(line["scene"])}
    path = folder / line["file_name"]
    write_video(path, video, line["fps"], metadata)
    (folder / "truth" / f"{path.stem}.json").write_text(json.dumps(truth.plain()) + "\n", encoding="utf-8")


def _batches(scenes: Sequence[Scene], size: int) -> Iterator[tuple[int, Sequence[Scene]]]:
    for first in range(0, len(scenes), size):
        yield first, scenes[first : first + size]


@contextmanager
def _replacing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `folder` that takes its place if all goes well and vanishes if not, Ctrl-C included."""
    _check_folder(folder, overwrite)
    name = f".{folder.name}-{os.getpid()}-{os.urandom(4).hex()}"
    partial, former = folder.absolute().parent / name, folder.absolute().parent / f"{name}-former"
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(former)
        try:
            partial.rename(folder)
        except OSError:
            if former.exists():
                former.rename(folder)
            raise
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse what is in use: only an empty folder, or with `overwrite` one that was written here, is replaced."""
    if not folder.name:
        raise ValueError(f"{folder}: name a folder of its own to write, for example {folder / 'pond'}")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file, not a folder; choose another name")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{folder}: is not empty; pass overwrite or choose another folder")
    mark = folder / "dataset.json"
    if not mark.is_file() or read_json(mark).get("made_by") != MADE_BY:
        raise ValueError(f"{folder}: holds other files than a pond data set; choose another folder")
