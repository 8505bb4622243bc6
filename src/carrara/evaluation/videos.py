"""Measuring video files of any size, rate and origin: what needs no truth, prompt or model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from carrara.core.config import choose
from carrara.core.files import check_folder
from carrara.evaluation.distribution.fvd import check_asked, load_extractor
from carrara.evaluation.report.sections import Picture, Section, write_report
from carrara.evaluation.subject import Gap
from carrara.evaluation.video_files import VideoSet, files_section, find_videos
from carrara.evaluation.video_parts import PARTS, VideoRun


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
    tell: is called with a line for every file and part that cannot be measured. The same
    files give the same JSON. Raises ValueError where nothing can be measured, and then writes nothing.
    """
    needs = {"distribution": against, "fvd": fvd}
    wanted = only or [name for name in PARTS if name not in needs or needs[name] is not None]
    parts = {name: choose("part", name, PARTS) for name in wanted}
    check_folder(folder)
    check_asked(fvd, parts)
    extractor = load_extractor(fvd) if fvd is not None else None
    folders = {"clips": clips} if against is None else {"clips": clips, "against": against}
    sets: list[VideoSet] = []
    pictures: list[Picture] = []
    for name, place in folders.items():
        found, shown = find_videos(place, name, tell, progress)
        sets.append(found)
        pictures += shown
    run = VideoRun(sets[0], sets[1] if against is not None else None, progress, extractor)
    sections = [files_section(sets, pictures)]
    gaps: list[str] = []
    for name, part in parts.items():
        try:
            sections.append(part(run))
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
