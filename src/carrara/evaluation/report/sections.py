"""What an evaluation found: sections of tables, curves and pictures, written as one JSON file and one page.

`report.json` has the numbers and nothing that differs between two equal runs. `report.html` shows them with the
pictures inside it: it needs no other file, no network and no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.config import write_json
from carrara.core.files import check_folder
from carrara.evaluation.statistics import Estimate

Row = tuple[str, tuple[Estimate | None, ...]]


@dataclass(frozen=True)
class Table:
    """A row per measure, a column per source; None where nothing was measured. note: what to know when reading it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for name, cells in self.rows:
            if len(cells) != len(self.columns):
                raise ValueError(
                    f"row {name!r} of table {self.title!r} has {len(cells)} cells for {len(self.columns)} columns"
                )

    def plain(self) -> dict[str, Any]:
        """As JSON values: row -> column -> estimate or null."""
        rows = {
            name: {column: cell.plain() if cell else None for column, cell in zip(self.columns, cells)}
            for name, cells in self.rows
        }
        return {"title": self.title, "rows": rows, "note": self.note}

    def text(self) -> str:
        """For a terminal: a line per row, at its end how many values its numbers rest on."""
        lines = [["", *self.columns, "n"]]
        for name, cells in self.rows:
            counts = sorted({cell.count for cell in cells if cell})
            spread = "-" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
            lines.append([name, *(cell.text() if cell else "-" for cell in cells), spread])
        wide = [max(map(len, column)) for column in zip(*lines)]
        shown = ["  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])]) for line in lines]
        return "\n".join([self.title, *shown, *([self.note] if self.note else [])])


@dataclass(frozen=True, eq=False)
class Picture:
    """An image uint8 `h w 3` and the line beneath it."""

    title: str
    image: NDArray[np.uint8] = field(repr=False)

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3 or not self.image.size:
            raise ValueError(
                f"picture {self.title!r} is {self.image.dtype} {self.image.shape}: expected uint8 height x width x 3"
            )


@dataclass(frozen=True)
class Curve:
    """Lines over a common x; None is a gap."""

    title: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]
    x_label: str
    y_label: str

    def __post_init__(self) -> None:
        for name, values in self.lines.items():
            if len(values) != len(self.x):
                raise ValueError(f"line {name!r} of curve {self.title!r} has {len(values)} values for {len(self.x)} x")

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        lines = {name: list(values) for name, values in self.lines.items()}
        return {"title": self.title, "x": list(self.x), "x label": self.x_label, "y label": self.y_label} | lines


@dataclass(frozen=True)
class Section:
    """One family of measures. name: its key in the JSON; about: what is measured, and on what; data: JSON values that
    the page does not show."""

    name: str
    title: str
    about: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture | Curve, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON values, without the pictures."""
        curves = [picture.plain() for picture in self.pictures if isinstance(picture, Curve)]
        tables = [table.plain() for table in self.tables]
        return {"title": self.title, "about": self.about, "tables": tables, "curves": curves, "data": dict(self.data)}


def write_report(
    folder: str | Path, title: str, sections: Sequence[Section], about: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into `folder`, and return their paths.

    about: JSON values that say what was measured and how (the model, its weights, seeds, counts), for both files.
    Raises ValueError for a folder that cannot be written or two sections of one name.
    """
    from carrara.evaluation.report.page import page

    names = [section.name for section in sections]
    if len(set(names)) != len(names):
        raise ValueError(f"sections {', '.join(names)}: two have the same name")
    folder = Path(folder)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = {section.name: section.plain() for section in sections}
    write_json(folder / "report.json", {"title": title, "about": dict(about), "sections": found})
    (folder / "report.html").write_text(page(title, sections, about), encoding="utf-8")
    return folder / "report.json", folder / "report.html"
