"""Measuring video files of any size, rate and origin: what needs no truth, prompt or model.

A file that cannot be read is named with the reason and does not stop the rest. Of a long clip the beginning counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.config import choose
from carrara.core.files import check_folder
from carrara.core.media import read_video
from carrara.core.progress import progress_bar
from carrara.evaluation.consistency import section as consistency_section
from carrara.evaluation.consistency.measures import Consistency, measure
from carrara.evaluation.controls import CONTROLS, Control
from carrara.evaluation.distribution import judged
from carrara.evaluation.distribution.distances import LEAST_CLIPS, distances
from carrara.evaluation.distribution.distances import section as distribution_section
from carrara.evaluation.distribution.fvd import Extractor, load_extractor
from carrara.evaluation.distribution.motion_net import LEAST_FRAMES, RATE, load_motion_net, motion_features
from carrara.evaluation.report.sections import Picture, Section, write_report
from carrara.evaluation.report.strips import strip
from carrara.evaluation.subject import Gap

EXTENSIONS = (".mp4", ".webm", ".gif", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".ts", ".3gp", ".webp")
LONGEST = 128  # frames of a clip that are looked at
LARGEST = 2 << 30  # bytes of a clip's pixels; a larger one is refused
FEWEST = 2  # clips: one has no interval
SHOWN, DRAWN = 8, 3  # clips of a set that the report shows; whose tracks and flow are drawn

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


def consistency(clips: VideoSet, against: VideoSet | None, progress: bool | None) -> Section:
    """How what moves and what stands stay themselves, beside the same clips frozen and shuffled."""
    if len(clips) < FEWEST:
        raise Gap(f"{len(clips)} clip that can be read: too few for an interval; give at least {FEWEST}")
    sets = (clips, against) if against else (clips,)
    reference = sets[-1]
    found: dict[str, list[Consistency]] = {}
    for each in sets:
        found[each.name] = []
        with progress_bar(f"consistency: {each.name}", progress) as show:
            for frames, fps in each:
                found[each.name].append(measure(frames, fps))
                if each is reference:
                    number = len(found[each.name]) - 1
                    for name, control in CONTROLS.items():
                        found.setdefault(name, []).append(measure(control(frames, number), fps))
                show(len(found[each.name]), len(each))
    drawn = {clips.called(file): clip for file, clip in islice(zip(clips.files, clips), DRAWN)}
    return consistency_section.section(found, drawn, reference.name)


def halved(clips: VideoSet, against: VideoSet | None, least: int) -> tuple[VideoSet, dict[str, Iterable[Read]]]:
    """The reference, which is one half of the others, and what is held against it: the clips, the other half, which
    says what is near, and that half made wrong in time. Raises Gap where there are too few or sizes differ."""
    if against is None:
        raise Gap("there is nothing to hold the clips against; give --against DIR")
    for each, needed in ((clips, least), (against, 2 * least)):
        if len(each) < needed:
            raise Gap(f"{each.name}: {len(each)} clips are too few; {needed} are needed")
    sizes = sorted({(file.width, file.height) for file in (*clips.files, *against.files)})
    if len(sizes) > 1:
        said = ", ".join(f"{width}x{height}" for width, height in sizes[:4]) + (" ..." if len(sizes) > 4 else "")
        raise Gap(f"clips of different sizes ({said}) would be told apart by that alone; scale them to one size")
    reference, other = (replace(against, files=against.files[start::2]) for start in (0, 1))
    sources: dict[str, Iterable[Read]] = {clips.name: clips, "truth": other}
    return reference, sources | {name: Controlled(other, control) for name, control in CONTROLS.items()}


def distribution(clips: VideoSet, against: VideoSet | None, progress: bool | None) -> Section:
    """How far the clips are, as a population, from others, on features of motion."""
    reference, sources = halved(clips, against, LEAST_CLIPS)
    assert against is not None
    lengths = [int((file.frames - 1) / file.fps * RATE + 1e-6) + 1 for file in (*clips.files, *against.files)]
    frames = min(17, *lengths)
    if frames < LEAST_FRAMES:
        raise Gap(f"the shortest clip has {frames} frames at {RATE:g} per second; {LEAST_FRAMES} are needed")
    net = load_motion_net()
    known = motion_features(net, reference, frames)
    found = {}
    with progress_bar("distribution", progress) as show:
        for name, source in sources.items():
            found[name] = distances(motion_features(net, source, frames), known)
            show(len(found), len(sources))
    truth = len(against) - len(reference)
    return distribution_section(found, {"frames compared": frames, "reference": len(reference), "truth": truth})


def fvd(clips: VideoSet, against: VideoSet | None, progress: bool | None, extractor: Extractor | None) -> Section:
    """The same on features of a network that the user brings."""
    if extractor is None:
        raise Gap(judged.NO_NETWORK)
    reference, sources = halved(clips, against, judged.LEAST_CLIPS)
    assert against is not None
    shortest = min(file.frames for file in (*clips.files, *against.files))
    if shortest < extractor.frames:
        raise Gap(f"the shortest clip has {shortest} frames; {extractor.name} looks at {extractor.frames}")
    known = extractor(frames for frames, _ in reference)
    found = {}
    with progress_bar(extractor.name, progress) as show:
        for name, source in sources.items():
            found[name] = judged.judged((frames for frames, _ in source), known, extractor)
            show(len(found), len(sources))
    about = {"clips": len(clips), "reference": len(reference), "truth": len(against) - len(reference)}
    return judged.section(found, extractor, about)


@dataclass(frozen=True)
class Controlled:
    """A set of videos with a control done to each, seeded by its number."""

    videos: VideoSet
    control: Control

    def __iter__(self) -> Iterator[Read]:
        for number, (frames, fps) in enumerate(self.videos):
            yield self.control(frames, number), fps


Part = Callable[[VideoSet, VideoSet | None, bool | None, Extractor | None], Section]
PARTS: Mapping[str, Part] = {
    "consistency": lambda clips, against, progress, _: consistency(clips, against, progress),
    "distribution": lambda clips, against, progress, _: distribution(clips, against, progress),
    "fvd": fvd,
}


def evaluate_videos(
    clips: str | Path,
    folder: str | Path,
    *,
    against: str | Path | None = None,
    only: Sequence[str] = (),
    fvd: str | Path | None = None,
    tell: Callable[[str], None] = print,
    progress: bool | None = None,
) -> list[Section]:
    """Measure the videos in a folder, beside those of another one if given; writes the report and returns its sections.

    only: names of parts, all if none; fvd: I3D's weights or a VideoMAE folder, for distances on their features as well;
    tell: is called with a line for every file and part that cannot be measured. The
    same files give the same JSON. Raises ValueError where nothing can be measured, and then writes nothing.
    """
    needs = {"distribution": against, "fvd": fvd}
    wanted = only or [name for name in PARTS if name not in needs or needs[name] is not None]
    parts = {name: choose("part", name, PARTS) for name in wanted}
    check_folder(folder)
    extractor = load_extractor(fvd) if fvd is not None else None
    folders = {"clips": clips} if against is None else {"clips": clips, "against": against}
    sets: list[VideoSet] = []
    pictures: list[Picture] = []
    for name, place in folders.items():
        found, shown = find_videos(place, name, tell, progress)
        sets.append(found)
        pictures += shown
    sections = [files_section(sets, pictures)]
    gaps: list[str] = []
    for name, part in parts.items():
        try:
            sections.append(part(sets[0], sets[1] if against is not None else None, progress, extractor))
        except Gap as why:
            gaps.append(f"{name}: {why}")
            sections.append(Section(name, name.capitalize(), f"Not measured: {why}"))
    if len(gaps) == len(parts):
        raise ValueError(f"{clips}: nothing could be measured; {'; '.join(gaps)}")
    for line in gaps:
        tell(f"not measured: {line}")
    about = {name: f"{place} ({len(each)} clips)" for (name, place), each in zip(folders.items(), sets)}
    write_report(folder, f"Evaluation of {Path(clips).name}", sections, about)
    return sections
