"""Systems in one table: a few numbers of each one's evaluation, with intervals; and the same prompts in pictures.

A table is a JSON object (`board`), and what is printed is made of that alone, so that the two cannot differ. A number
that could not be measured is a cell that says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from carrara.core.media import read_video
from carrara.evaluation.consistency.section import READINGS
from carrara.evaluation.distribution.distances import KERNEL
from carrara.evaluation.permanence.section import ALL
from carrara.evaluation.report.sections import Section
from carrara.evaluation.report.strips import strip
from carrara.evaluation.statistics import Estimate, mean_estimate

PARTS = ("adherence", "consistency", "permanence", "distribution")
ASKED = "asked"
MEASURES = {
    ASKED: "shown of what was asked",
    "all": "all of it shown",
    "motion": "motion as asked",
    "subject": "subject consistency",
    "flicker": "flicker (0 best)",
    "speed": "speed, sides/s",
    "permanent": "permanent behind walls",
    "distance": "pond-motion kernel distance (0 best)",
    "seconds": "seconds a clip",
    "memory": "peak memory, MB",
}
"""Columns of numbers by key, as they are headed."""


@dataclass(frozen=True)
class Cell:
    """A number with its interval, or why there is none."""

    estimate: Estimate | None
    why: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {"why": self.why} if self.estimate is None else self.estimate.plain() | {"share": self.estimate.share}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Cell:
        """The inverse, to the digits that JSON has."""
        if "value" not in plain:
            return cls(None, plain["why"])
        low, high = plain["low"], plain["high"]
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        return cls(Estimate(plain["value"], low, high, plain["count"], plain["share"]))

    def text(self) -> str:
        return self.why if self.estimate is None else self.estimate.text()


def cells_of(sections: Sequence[Section], source: str) -> dict[str, Cell]:
    """What the report of one system says of a source ("model" or "truth"), by the keys of MEASURES."""
    found = {section.name: section for section in sections}
    told = {key: READINGS[key].title for key in ("subject", "flicker", "speed")}
    return {
        ASKED: _asked(found["adherence"], source),
        **{key: _cell(found["adherence"], key, source) for key in ("all", "motion")},
        **{key: _cell(found["consistency"], title, source) for key, title in told.items()},
        "permanent": _cell(found["permanence"], ALL, source),
        "distance": _cell(found["distribution"], f"pond-motion {KERNEL}", source),
    }


def _asked(section: Section, source: str) -> Cell:
    """The share of what the prompt states that is shown, a mean over clips."""
    if not section.tables:
        return Cell(None, _gap(section))
    each = [clip["verdicts"] for clip in section.data["clips"][source]]
    shares = [np.mean([right for name, right in verdicts.items() if name != "all"]) for verdicts in each]
    return Cell(mean_estimate(map(float, shares), share=True))


def _cell(section: Section, row: str, source: str) -> Cell:
    if not section.tables:
        return Cell(None, _gap(section))
    table = section.tables[0]
    cells = dict(table.rows).get(row)
    if cells is None:
        return Cell(None, "not told from controls")  # the suite leaves such a measure out
    estimate = cells[table.columns.index(source)]
    return Cell(None, "in no clip") if estimate is None else Cell(estimate)


def _gap(section: Section) -> str:
    """Why a part has no table."""
    _, said, why = section.about.partition("Not measured: ")
    return why.partition(";")[0] if said else "not told from controls"


def over_trainings(cells: Sequence[Cell]) -> Cell:
    """One cell for several trainings of a system: the mean of their numbers, with Student's interval; a single one is
    as it is, its interval over prompts. A number that any training lacks is lacking."""
    lacking = next((cell for cell in cells if cell.estimate is None), None)
    if lacking is not None or len(cells) == 1:
        return lacking or cells[0]
    estimates = [cell.estimate for cell in cells if cell.estimate is not None]
    return Cell(mean_estimate([each.value for each in estimates], share=estimates[0].share))


def markdown(board: Mapping[str, Any]) -> str:
    """A board as a table of Markdown: what is printed, and what a document shows."""
    heads = ["system", "clip it makes", "training", "beside", *MEASURES.values()]
    lines = [heads, ["---"] * len(heads)]
    for row in board["rows"]:
        spent = "-" if row["flops"] is None else f"{row['flops']:.3g} FLOP"
        cells = [Cell.of(row["cells"][key]).text() for key in MEASURES]
        lines.append([row["title"], row["makes"], spent, row["beside"], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def side_by_side(prompt: str, clips: Mapping[str, Path], frames: int = 8) -> NDArray[np.uint8]:
    """One prompt through every system: a line of text, then a row of frames for each, named. uint8 `H W 3`."""
    strips = {name: strip(read_video(path)[0].numpy(), frames) for name, path in clips.items()}
    label = 8 + max(round(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(name)) for name in strips)
    wide = max(picture.shape[1] for picture in strips.values())
    high = max(picture.shape[0] for picture in strips.values()) + 2
    sheet = Image.new("RGB", (label + wide, 16 + high * len(strips)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((2, 2), prompt, fill="black")
    for number, (name, picture) in enumerate(strips.items()):
        top = 16 + high * number
        pen.text((2, top + high // 2 - 6), name, fill="black")
        sheet.paste(Image.fromarray(picture), (label, top))
    return np.asarray(sheet)


def stacked(sheets: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures one below the other, on white."""
    wide = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(s, ((0, 8), (0, wide - s.shape[1]), (0, 0)), constant_values=255) for s in sheets]
    return np.concatenate(padded)
