"""Kept pieces into tars of the WebDataset layout, plain and without times or owners: equal clips give equal bytes."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carrara.core.config import read_json, write_json
from carrara.core.files import sha256
from carrara.data.prepare.plan import Clip
from carrara.data.prepare.settings import Settings


def row_of(clip: Clip, caption: str | None, caption_by: str | None, settings: Settings) -> dict[str, Any]:
    """A clip's line of the manifest. start, end: seconds from the first frame of its source."""
    shape, moving = clip.shape, clip.shape.frames > 1
    return {
        "key": clip.key,
        "shard": clip.shard,
        "file": f"{clip.key}{clip.file.suffix}",
        "caption": caption,
        "caption_by": caption_by,
        "frames": shape.frames,
        "height": shape.height,
        "width": shape.width,
        "fps": settings.fps if moving else None,
        "source": clip.item.source,
        "source_sha256": clip.source_sha256,
        "start": clip.piece["start"] if moving else None,
        "end": clip.piece["end"] if moving else None,
        "licence": clip.item.licence,
        "original": dict(clip.original),
        "bytes": clip.piece["bytes"],
        "sha256": clip.piece["sha256"],
    }


def write_shard(
    folder: Path, journal: Path, name: str, clips: Sequence[Clip], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Write one shard, and then forget the files of its clips; returns its entry of prepared.json.

    What has been written already is not written again, so that a run may end anywhere in between.
    """
    entry, final = journal / f"{name}.json", folder / name
    if not (entry.is_file() and final.is_file()):
        partial = folder / f".{name}.partial"
        with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for clip in clips:
                row = rows[clip.key]
                with clip.file.open("rb") as media:
                    _add(tar, row["file"], media, row["bytes"])
                if row["caption"] is not None:
                    _add_text(tar, f"{clip.key}.txt", row["caption"])
                _add_text(tar, f"{clip.key}.json", json_line(row))
        said = {"file": name, "bucket": list(clips[0].piece["bucket"]), "clips": len(clips)}
        said |= {"bytes": partial.stat().st_size, "sha256": sha256(partial)}
        partial.replace(final)
        waiting = entry.with_suffix(".partial")
        write_json(waiting, said)
        waiting.replace(entry)
    for clip in clips:
        clip.file.unlink(missing_ok=True)
    return read_json(entry)


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON that any UTF-8 reader takes; names that are no text are escaped."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A JSONL file that appears when it is whole."""
    write_whole(path, "".join(json_line(row) + "\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """A text file that appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _add(tar: tarfile.TarFile, name: str, file: Any, size: int) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, 0o644
    tar.addfile(about, file)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode("utf-8")
    _add(tar, name, io.BytesIO(data), len(data))
