"""How temporal consistency is shown: beside its controls, left out where they do not separate, drawn on the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from carrara.core.media import as_array
from carrara.evaluation.consistency.following import Tracks
from carrara.evaluation.consistency.measures import MEASURES, Clip, Consistency, middle
from carrara.evaluation.report.sections import Picture, Section, Table
from carrara.evaluation.statistics import Estimate, mean_or_none

FEWEST = 5  # clips, to say whether a control separates
SHOWN, SIDE, TAIL = 6, 160, 4  # frames of a picture, their height in pixels, steps of a track that are drawn
ABOUT = (
    "Measured on any clip from its pixels alone: optical flow by block matching, colours along tracks. Named after "
    "VBench's measures, but not comparable with its numbers. A clip in which nothing moves has only a speed: repeating "
    "one frame is no consistency. So every number is read beside the speed, and beside how many clips it could be "
    "measured of. Flicker and smoothness are compared at one frame rate only."
)


@dataclass(frozen=True)
class Reading:
    """How a measure is read. control: what must be worse than the reference, or the measure does not measure."""

    title: str
    control: str
    higher_is_better: bool = True


READINGS = {
    "speed": Reading("speed, shorter sides/s", "frozen"),
    "dynamic": Reading("dynamic degree, share of clips", "frozen"),
    "flicker": Reading("flicker, levels of 255 (0 is best)", "shuffled", higher_is_better=False),
    "smoothness": Reading("motion smoothness (1 is best)", "shuffled"),
    "subject": Reading("subject consistency (1 is best)", "shuffled"),
    "background": Reading("background stability (1 is best)", "mixed"),
}


def mixed(clips: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """A control: every frame from another clip, in turn, as if each were made without knowing the others.

    clips: uint8 `t h w 3` of one shape. What stays must differ, so it takes at least two. Raises ValueError else.
    """
    if len(clips) < 2 or len({clip.shape for clip in clips}) > 1:
        raise ValueError(f"{len(clips)} clips: frames are mixed among at least two clips of one shape")
    stacked = np.stack(clips)
    times = np.arange(stacked.shape[1])
    return [stacked[(index + times) % len(stacked), times] for index in range(len(stacked))]


def section(
    found: Mapping[str, Sequence[Consistency]],
    examples: Mapping[str, tuple[Tensor | NDArray[np.uint8], float]] | None = None,
    reference: str = "truth",
) -> Section:
    """The section of a report. found: the clips' values by source, controls among them ("frozen", "shuffled", "mixed");
    examples: clips to be drawn, (frames uint8 `t h w 3`, fps) by title; reference: which source the controls are of.

    A measure whose control does not separate from the reference is left out, and `about` says so.
    """
    estimates = {name: {source: _estimate(name, clips) for source, clips in found.items()} for name in MEASURES}
    verdicts = {name: _separates(name, row, reference) for name, row in estimates.items()}
    kept = [name for name in MEASURES if verdicts[name] is not False]
    about = ABOUT
    for name in MEASURES:
        if verdicts[name] is False:
            about += (
                f" Not reported: {READINGS[name].title}; its control ({READINGS[name].control}) looks the same here."
            )
    unsure = [READINGS[name].title for name in kept if verdicts[name] is None]
    note = f"Too few clips or no control to check that it separates: {'; '.join(unsure)}." if unsure else ""
    rows = tuple((READINGS[name].title, tuple(estimates[name].values())) for name in kept)
    pictures = tuple(Picture(title, draw(frames, fps)) for title, (frames, fps) in (examples or {}).items())
    data: dict[str, Any] = {
        "separates": verdicts,
        "clips": {source: [clip.plain() for clip in clips] for source, clips in found.items()},
    }
    tables = (Table("Temporal consistency", tuple(found), rows, note),)
    return Section("consistency", "Temporal consistency", about, tables, pictures, data)


def _estimate(name: str, clips: Sequence[Consistency]) -> Estimate | None:
    values = [getattr(clip, name) for clip in clips]
    numbers = [None if value is None else float(value) for value in values]
    return mean_or_none(numbers, share=name == "dynamic")


def _separates(name: str, row: Mapping[str, Estimate | None], reference: str) -> bool | None:
    """Whether the control's interval lies on the worse side of the reference's; None where that cannot be said."""
    true, control = row.get(reference), row.get(READINGS[name].control)
    if true is None or control is None or min(true.count, control.count) < FEWEST:
        return None
    if READINGS[name].higher_is_better:
        return control.high < true.low
    return control.low > true.high


def draw(frames: Tensor | NDArray[np.uint8], fps: float) -> NDArray[np.uint8]:
    """Some frames of a clip with what was seen in them, uint8 `H W 3`: above, tracks of what moves by itself (warm) and
    of the rest (cyan); below, the flow (the hue is the direction, the strength the speed, white is rest)."""
    array = middle(as_array(frames))
    clip = Clip.of(array, fps)
    pictures = array[:: clip.stride]
    shown = np.unique(np.linspace(0, len(pictures) - 1, min(SHOWN, len(pictures))).round().astype(int))
    height, width = clip.frames.shape[-2:]
    size = (max(1, SIDE * width // height), SIDE)
    measurable = len(pictures) > 1 and min(height, width) >= 16
    tracks = [(clip.tracks(still), still) for still in (True, False)] if measurable else []
    columns = []
    for at in shown:
        picture = Image.fromarray(np.ascontiguousarray(pictures[at])).resize(size, Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(picture)
        for parts, still in tracks:
            for part in parts:
                _draw_tracks(pen, part, int(at), SIDE / height, still)
        flow = Image.fromarray(_flow_colours(clip, int(at)) if measurable else np.full((1, 1, 3), 255, np.uint8))
        columns.append(np.concatenate((np.asarray(picture), np.asarray(flow.resize(size, Image.Resampling.NEAREST)))))
    return np.concatenate([np.pad(column, ((0, 0), (0, 2), (0, 0)), constant_values=255) for column in columns], 1)


def _draw_tracks(pen: ImageDraw.ImageDraw, tracks: Tracks, frame: int, scale: float, still: bool) -> None:
    at = frame - tracks.first
    if not 0 <= at < len(tracks.points) or (at == 0 and frame > 0):  # a span's first frame ends the one before
        return
    tail = (tracks.points[max(0, at - TAIL) : at + 1] + 0.5) * scale
    every = 4 if still else 2
    for index in range(0, tail.shape[1], every):
        if not tracks.counts[at, index]:
            continue
        colour = (0, 220, 220) if still else (255, 60 + 160 * (index // every % 5) // 4, 0)
        line = [(float(x), float(y)) for x, y in tail[:, index]]
        if len(line) > 1:
            pen.line(line, fill=colour, width=1)
        x, y = line[-1]
        pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=colour)


def _flow_colours(clip: Clip, at: int) -> NDArray[np.uint8]:
    x, y = clip.forth[min(at, len(clip.forth) - 1)]
    fastest = clip.forth.square().sum(1).sqrt().quantile(0.995).clamp(min=1.0)
    hue = (torch.atan2(y, x) / (2 * torch.pi)) % 1 * 255
    strength = (torch.hypot(x, y) / fastest).clamp(max=1) * 255
    hsv = torch.stack((hue, strength, torch.full_like(hue, 255)), -1).to(torch.uint8).numpy()
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
