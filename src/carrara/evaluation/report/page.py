"""A report as one HTML page that needs nothing else: pictures are inside it, curves are SVG, all text is escaped."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.evaluation.report.sections import Curve, Picture, Section, Table
from carrara.evaluation.statistics import Estimate

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #626a73; --paper: #fbfaf8; --card: #ffffff; --line: #e2dfd9;
  --c0: #1c62c4; --c1: #c8500f; --c2: #1f7f43; --c3: #8a3bb0; --c4: #b32456; --c5: #0d7385; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4df; --soft: #9aa0a8; --paper: #16181b; --card: #1e2125;
  --line: #34383e; --c0: #6ea8ff; --c1: #ff9a5c; --c2: #67cf8f; --c3: #d08cf0; --c4: #ff84ab; --c5: #5cc7da; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .4rem; padding-top: .8rem; border-top: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 62rem; }
nav a { color: var(--c0); text-decoration: none; margin-right: 1.1rem; }
nav a:hover { text-decoration: underline; }
.note { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); font-size: .92rem; }
th, td { padding: .38rem .8rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 600; }
tr > :first-child { text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
td small { display: block; color: var(--soft); font-size: .76rem; }
td.none { color: var(--soft); }
figure { margin: 1.2rem 0; }
figcaption { font-size: .88rem; color: var(--soft); margin-top: .35rem; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); }
svg { width: 100%; max-width: 44rem; height: auto; background: var(--card); border: 1px solid var(--line); }
svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .c0 { stroke: var(--c0); } svg .c1 { stroke: var(--c1); } svg .c2 { stroke: var(--c2); }
svg .c3 { stroke: var(--c3); } svg .c4 { stroke: var(--c4); } svg .c5 { stroke: var(--c5); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .9rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { h2 { break-after: avoid; } figure, table { break-inside: avoid; } }
"""


def page(title: str, sections: Sequence[Section], about: Mapping[str, Any]) -> str:
    """The whole page."""
    links = "".join(f'<a href="#{escape(s.name, True)}">{escape(s.title)}</a>' for s in sections)
    facts = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_said(value))}</dd>" for name, value in about.items())
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav>{links}</nav>\n<dl>{facts}</dl>\n"
        '<p class="note">Beneath each number: its 95% interval, and how many values it rests on.</p>\n'
        f"{body}\n</body>\n</html>\n"
    )


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(found)}" for name, found in value.items())
    return json.dumps(value)


def _section(section: Section) -> str:
    about = "".join(f"<p>{escape(text)}</p>" for text in section.about.split("\n\n") if text.strip())
    tables = "\n".join(_table(table) for table in section.tables)
    figures = "\n".join(_figure(picture) for picture in section.pictures)
    name, title = escape(section.name, True), escape(section.title)
    return f'<section id="{name}">\n<h2>{title}</h2>\n{about}\n{tables}\n{figures}\n</section>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(
        f"<tr><th>{escape(name)}</th>{''.join(_cell(cell) for cell in cells)}</tr>" for name, cells in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h3>{escape(table.title)}</h3>\n<div class="wide"><table>\n<thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n{note}"
    )


def _cell(cell: Estimate | None) -> str:
    if cell is None:
        return '<td class="none">–</td>'
    if cell.share:
        value, low, high = (f"{100 * bound:.{digits}f}%" for bound, digits in _rounded(cell))
    else:
        value, low, high = (f"{bound:.3g}" for bound in (cell.value, cell.low, cell.high))
    between = f"{low} to {high}" if math.isfinite(cell.low) and math.isfinite(cell.high) else "no interval"
    return f"<td>{value}<small>{between}</small><small>n = {cell.count}</small></td>"


def _rounded(cell: Estimate) -> tuple[tuple[float, int], ...]:
    return (cell.value, 1), (cell.low, 0), (cell.high, 0)


def _figure(picture: Picture | Curve) -> str:
    drawn = _svg(picture) if isinstance(picture, Curve) else _image(picture.image, picture.title)
    return f"<figure>{drawn}<figcaption>{escape(picture.title)}</figcaption></figure>"


def _image(image: NDArray[np.uint8], title: str) -> str:
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(packed, "PNG", optimize=True)
    data = base64.b64encode(packed.getvalue()).decode("ascii")
    height, width = image.shape[:2]
    alt = escape(title, True)
    return f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 64, 16, 16, 46  # of a plot, in SVG units
COLOURS = ("#1c62c4", "#c8500f", "#1f7f43", "#8a3bb0", "#b32456", "#0d7385")  # where the style sheet is not read


def _svg(curve: Curve) -> str:
    """Lines on a grid at round numbers, their names in a legend beneath."""
    shown = [y for values in curve.lines.values() for y in values if y is not None and math.isfinite(y)]
    xs, ys = (
        ticks(min(curve.x, default=0), max(curve.x, default=1)),
        ticks(min(shown, default=0), max(shown, default=1)),
    )
    legend = 20 * math.ceil(len(curve.lines) / 3)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT) + LEFT
        down = HEIGHT - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = []
    for y in ys:
        _, down = at(xs[0], y)
        parts.append(f'<line class="grid" stroke="#ccc" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down + 4}" text-anchor="end">{y:g}</text>')
    for x in xs:
        across, _ = at(x, ys[0])
        parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(curve.x_label)}</text>')
    parts.append(
        f'<text x="14" y="{(HEIGHT - BOTTOM + TOP) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(HEIGHT - BOTTOM + TOP) / 2})">{escape(curve.y_label)}</text>'
    )
    for number, (name, values) in enumerate(curve.lines.items()):
        turn = number % len(COLOURS)
        style = f'class="line c{turn}" fill="none" stroke="{COLOURS[turn]}"'
        if number >= len(COLOURS):
            style += ' stroke-dasharray="5 4"'
        for run in _runs(curve.x, values):
            points = [at(x, y) for x, y in run]
            if len(points) == 1:
                points = [points[0], points[0]]  # a round cap shows a lonely value as a dot
            parts.append(f'<polyline {style} points="{" ".join(f"{a},{b}" for a, b in points)}"/>')
        across, down = LEFT + number % 3 * 190, HEIGHT + 8 + number // 3 * 20
        parts.append(f'<line {style} x1="{across}" x2="{across + 22}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{across + 30}" y="{down + 4}">{escape(name)}</text>')
    box, title = f'viewBox="0 0 {WIDTH} {HEIGHT + legend}"', escape(curve.title, True)
    return f'<svg role="img" fill="#777" font-size="12" aria-label="{title}" {box}>{"".join(parts)}</svg>'


def _runs(x: Sequence[float], y: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """The stretches of a line between its gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x, y):
        if b is None or not math.isfinite(b):
            runs.append([])
        else:
            runs[-1].append((a, b))
    return [run for run in runs if run]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers at even steps of 1, 2 or 5 times a power of ten that enclose [low, high], about `most` of them."""
    if not high > low:
        reach = abs(low) / 2 or 0.5
        low, high = low - reach, high + reach
    rough = (high - low) / (most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
