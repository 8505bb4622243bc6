"""Video files of any size, rate and origin, as they are found in a folder: which can be read, and which not and why.

A file that cannot be read is named with the reason and does not stop the rest. Of a long clip the beginning counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.media import read_video
from carrara.core.progress import progress_bar
from carrara.evaluation.report.sections import Picture, Section
from carrara.evaluation.report.strips import strip

EXTENSIONS = (".mp4", ".webm", ".gif", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".ts", ".3gp", ".webp")
LONGEST = 128  # frames of a clip that are looked at
LARGEST = 2 << 30  # bytes of a clip's pixels; a larger one is refused
SHOWN = 8  # clips of a set that the report shows

Read = tuple[NDArray[np.uint8], float]


@dataclass(frozen=True)
class VideoFile:
    """A file that can be read. frames: how many are looked at."""

    path: Path
    frames: int
    height: int
    width: int
    fps: float

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {"frames": self.frames, "width": self.width, "height": self.height, "fps": round(self.fps, 4)}


@dataclass(frozen=True)
class VideoSet:
    """The videos of a folder in the order of their names. unreadable: path below the folder -> why."""

    name: str
    folder: Path
    files: tuple[VideoFile, ...]
    unreadable: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.files)

    def called(self, file: VideoFile) -> str:
        """Its path below the folder."""
        return str(file.path.relative_to(self.folder))

    def __iter__(self) -> Iterator[Read]:
        """Frames uint8 `t h w 3` and their rate, file by file."""
        for file in self.files:
            yield read(file.path)


def read(path: Path) -> Read:
    """The beginning of a clip and its rate. Raises ValueError for a file that cannot be read."""
    frames, fps, _ = read_video(path, max_bytes=LARGEST, longest=LONGEST)
    return frames.numpy(), fps


def find_videos(
    folder: str | Path, name: str, tell: Callable[[str], None], progress: bool | None = None
) -> tuple[VideoSet, list[Picture]]:
    """Read every video in a folder once, and show some; `tell` is called with a line for each that cannot be read.

    If there is none in the folder itself, those in folders below it are taken. Raises ValueError for a folder that is
    not there, has no videos, or none that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'} of videos")
    paths = _videos(folder.iterdir()) or _videos(folder.rglob("*"))
    if not paths:
        raise ValueError(f"{folder}: no videos in it; expected files like {', '.join(f'*{e}' for e in EXTENSIONS[:4])}")
    files: list[VideoFile] = []
    unreadable: dict[str, str] = {}
    shown: list[Picture] = []
    with progress_bar(f"{name}: looking", progress) as show:
        for number, path in enumerate(paths):
            try:
                frames, fps = read(path)
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                why = " ".join(str(error).split()).removeprefix(f"{path}: ") or type(error).__name__
                unreadable[str(path.relative_to(folder))] = why
                tell(f"{path}: not measured: {why}")
            else:
                files.append(VideoFile(path, frames.shape[0], frames.shape[1], frames.shape[2], fps))
                if len(shown) < SHOWN:
                    said = (
                        f"{path.relative_to(folder)}: {frames.shape[2]}x{frames.shape[1]} at {fps:g} frames per second"
                    )
                    shown.append(Picture(said, strip(frames)))
            show(number + 1, len(paths))
    if not files:
        raise ValueError(f"{folder}: none of its {len(paths)} videos can be read; {next(iter(unreadable.values()))}")
    return VideoSet(name, folder, tuple(files), unreadable), shown


def _videos(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and path.suffix.lower() in EXTENSIONS)


def files_section(sets: Sequence[VideoSet], pictures: Sequence[Picture]) -> Section:
    """Which files were read, and which not and why."""
    said = []
    for each in sets:
        said.append(
            f"{each.name}: {len(each)} of {len(each) + len(each.unreadable)} files could be read; {spans(each)}."
        )
        said += [f"{name}: {why}" for name, why in each.unreadable.items()]
    said.append(f"Of each clip at most the first {LONGEST} frames are looked at.")
    data = {
        each.name: {
            "files": {each.called(file): file.plain() for file in each.files},
            "unreadable": dict(each.unreadable),
        }
        for each in sets
    }
    return Section("files", "Files", "\n\n".join(said), (), tuple(pictures), data)


def spans(videos: VideoSet) -> str:
    """From least to most: frames, sizes and rates."""
    frames, fps = ([getattr(file, name) for file in videos.files] for name in ("frames", "fps"))
    sizes = sorted((file.width * file.height, f"{file.width}x{file.height}") for file in videos.files)
    return (
        f"{_span(f'{min(frames)}', f'{max(frames)}')} frames of {_span(sizes[0][1], sizes[-1][1])} at "
        f"{_span(f'{min(fps):g}', f'{max(fps):g}')} frames per second"
    )


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
