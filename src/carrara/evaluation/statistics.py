"""Shares with their uncertainty, and the table and picture in which an evaluation is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964  # the normal quantile of a two-sided 95% interval


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with Wilson's 95% interval."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)

    def plain(self) -> dict[str, Any]:
        """As JSON values; null where nothing was counted."""
        low, high = (round(bound, 4) for bound in self.interval)
        share = round(self.value, 4) if self.total else None
        return {"right": self.right, "total": self.total, "share": share, "low": low, "high": high}


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): stays inside [0, 1] and is sensible at both ends."""
    if not 0 <= right <= total:
        raise ValueError(f"{right} right of {total}: expected 0 <= right <= total")
    if not total:
        return 0.0, 1.0
    share, unit = right / total, z * z / total
    centre = (share + unit / 2) / (1 + unit)
    reach = z / (1 + unit) * math.sqrt(share * (1 - share) / total + unit / (4 * total))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def tally(verdicts: Sequence[Mapping[str, bool]], names: Sequence[str]) -> dict[str, Share]:
    """For each name that was judged at all, how often it was right."""
    found = {name: [verdict[name] for verdict in verdicts if name in verdict] for name in names}
    return {name: Share(sum(values), len(values)) for name, values in found.items() if values}


def table(columns: Mapping[str, Mapping[str, Share]], names: Sequence[str]) -> str:
    """A text table: a row per attribute, a column per source, in percent with the interval and the number."""
    wide = 28
    lines = [" " * 12 + "".join(f"{title:>{wide}}" for title in columns)]
    for name in names:
        cells = []
        for shares in columns.values():
            share = shares.get(name)
            low, high = share.interval if share else (0.0, 1.0)
            text = f"{share.value:.1%} [{low:.0%}, {high:.0%}] of {share.total}" if share else "-"
            cells.append(f"{text:>{wide}}")
        if any(cell.strip() != "-" for cell in cells):
            lines.append(f"{name:<12}" + "".join(cells))
    return "\n".join(lines)


def failure_sheet(
    path: Path, failures: Sequence[tuple[NDArray[np.uint8], str, str]], frames: int = 6, side: int = 96
) -> None:
    """A picture of clips that were not as asked: per clip some frames, and the two lines beneath (asked, read).

    failures: frames uint8 `t h w 3` and two texts each. Writes PNG.
    """
    from PIL import Image, ImageDraw

    text, gap = 30, 6
    wide = frames * (side + 2)
    sheet = Image.new("RGB", (2 * wide + gap, max(1, math.ceil(len(failures) / 2)) * (side + text + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (clip, asked, seen) in enumerate(failures):
        left, top = index % 2 * (wide + gap), index // 2 * (side + text + gap)
        for number, at in enumerate(np.linspace(0, len(clip) - 1, frames).round().astype(int)):
            picture = Image.fromarray(np.ascontiguousarray(clip[at]))
            picture = picture.resize((max(1, side * picture.width // picture.height), side)).crop((0, 0, side, side))
            sheet.paste(picture, (left + number * (side + 2), top))
        room = wide // 6  # of Pillow's built-in letters, 6 pixels each
        draw.text((left, top + side + 2), asked[:room], fill=(0, 0, 0))
        draw.text((left, top + side + 15), seen[:room], fill=(170, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
