"""Draws a scaling curve as an SVG: loss against training FLOPs, both axes logarithmic, predictions as open circles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 64, 150, 18, 46
COLOURS = ("#2a5bd7", "#2b8a3e", "#d9480f", "#862e9c")
Points = Sequence[tuple[float, float]]


def draw(curves: Mapping[str, Points], predicted: Points, largest: str) -> str:
    """One SVG. curves: (FLOPs, loss) by size; predicted: those of the size `largest`, drawn in its colour."""
    everything = [point for points in (*curves.values(), predicted) for point in points]
    x_low, x_high = widened([math.log10(x) for x, _ in everything], 0.06)
    y_low, y_high = widened([math.log10(y) for _, y in everything], 0.10)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / (x_high - x_low)
        down = (y_high - math.log10(y)) / (y_high - y_low)
        return LEFT + (WIDTH - LEFT - RIGHT) * across, TOP + (HEIGHT - TOP - BOTTOM) * down

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for value in ticks(y_low, y_high):
        y = place(10**x_low, value)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in ticks(x_low, x_high):
        x = place(value, 10**y_low)[0]
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{short(value)}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">training FLOPs</text>')
    parts.append(
        f'<text x="14" y="{HEIGHT / 2:.0f}" transform="rotate(-90 14 {HEIGHT / 2:.0f})" '
        'text-anchor="middle">validation loss</text>'
    )
    colours = dict(zip([*curves, *({largest} - set(curves))], COLOURS))
    for number, (name, points) in enumerate(curves.items()):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="1.5"/>')
        parts += [dot(*place(*point), colours[name], colours[name]) for point in points]
        parts += legend(number, name, colours[name], colours[name])
    parts += [dot(*place(*point), colours[largest], "none") for point in predicted]
    if predicted:
        parts += legend(len(curves), f"{largest}, predicted", colours[largest], "none")
    return "\n".join([*parts, "</svg>", ""])


def dot(x: float, y: float, stroke: str, fill: str) -> str:
    size = 3.5 if fill != "none" else 6
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" stroke="{stroke}" stroke-width="1.5" fill="{fill}"/>'


def legend(number: int, name: str, colour: str, fill: str) -> list[str]:
    x, y = WIDTH - RIGHT + 18, TOP + 10 + 20 * number
    return [dot(x, y, colour, fill), f'<text x="{x + 12}" y="{y + 4}" fill="{colour}">{name}</text>']


def widened(logs: Sequence[float], part: float) -> tuple[float, float]:
    margin = max(max(logs) - min(logs), 0.05) * part
    return min(logs) - margin, max(logs) + margin


def ticks(low: float, high: float) -> list[float]:
    """Round values between two powers of ten given as logarithms, three to eight of them where there are so many."""
    fine = [[1.0], [1.0, 3.0], [1.0, 2.0, 5.0], [1.0, 1.5, 2.0, 3.0, 5.0, 7.0]]
    fine += [[1 + n / 10 for n in range(90)], [1 + n / 100 for n in range(900)]]
    powers = range(math.floor(low), math.ceil(high) + 1)
    found: list[float] = []
    for steps in fine:
        found = [s * 10.0**p for p in powers for s in steps if low <= math.log10(s) + p <= high]
        if len(found) >= 3:
            break
    return found[:: max(1, math.ceil(len(found) / 8))]


def short(value: float) -> str:
    """2e15 rather than 2e+15."""
    return f"{value:.2g}".replace("e+0", "e").replace("e+", "e")
