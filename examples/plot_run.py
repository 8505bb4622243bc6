"""Draw the curves of a training run as an SVG: the training loss, and what validation measured.

python examples/plot_run.py RUN/denoiser [LATER/denoiser ...] docs/pictures/pond-denoiser.svg loss loss_mean

Runs that began from one another's weights (`--denoiser.start`) make one curve, one after the other.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from carrara.training.metrics import read_metrics

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 56, 130, 16, 40
COLOURS = ("#2a5bd7", "#d9480f", "#2b8a3e", "#862e9c")


def series(folders: Sequence[Path], names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Points (step, value) of every name that the runs recorded."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    before = 0
    for folder in folders:
        lines = list(read_metrics(folder / "metrics.jsonl"))
        for line in lines:
            for name in names:
                if isinstance(line.get(name), float):
                    found[name].append((before + line["step"], line[name]))
        before += max(line["step"] for line in lines)
    return {name: points for name, points in found.items() if points}


def draw(curves: dict[str, list[tuple[float, float]]]) -> str:
    """One SVG; the vertical axis is logarithmic."""
    values = [value for points in curves.values() for _, value in points if value > 0]
    low, high = math.log(min(values)), math.log(max(values))
    last = max(step for points in curves.values() for step, _ in points)

    def place(step: float, value: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log(value)) / max(high - low, 1e-9)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for index in range(5):
        value = math.exp(low + (high - low) * index / 4)
        _, y = place(0, value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for index in range(5):
        x, _ = place(last * index / 4, math.exp(low))
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{last * index / 4:.0f}</text>')
    parts.append(f'<text x="{(WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 1}" text-anchor="middle">step</text>')
    for colour, (name, points) in zip(COLOURS, curves.items()):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        x, y = place(*points[-1])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" fill="{colour}">{name} {points[-1][1]:.3g}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: Sequence[str]) -> None:
    drawn = [index for index, text in enumerate(arguments) if text.endswith(".svg")]
    if len(drawn) != 1 or not drawn[0]:
        raise SystemExit("name one .svg after the folders of the runs, and before what to draw")
    folders, target, names = arguments[: drawn[0]], Path(arguments[drawn[0]]), arguments[drawn[0] + 1 :]
    target.write_text(draw(series([Path(folder) for folder in folders], names)), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main(sys.argv[1:])
