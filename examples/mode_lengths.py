"""Lengths and shapes beside the model's own, as tasks for `measure_modes.py`: windows, one long pass, other sides.

A long clip is judged section by section, each with frames of its own, so that drift shows as a fall from the first to
the last. Of the sides and durations here the bundled model's training mix has wide, tall and twice as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mode_measures import Task
from mode_tasks import Answer, Case, Mode

SECONDS, SECTIONS = 6, 4
SIZES = {
    "wide": (1.5, 1.0),
    "tall": (1.0, 1.5),
    "a little wide": (1.25, 1.0),
    "larger": (1.25, 1.25),
}  # times the model's width and height


def section(number: int) -> Mode:
    def length(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
        count = round(SECONDS * case.fps)
        step = count // SECTIONS
        made = range(number * step, (number + 1) * step)
        windows = case.plan(seconds=SECONDS).timeline.windows
        seams = tuple(window.fresh for window in windows[1:] if made.start < window.fresh < made.stop)
        return Task(case.scene, case.fps, made, seams=seams), {
            "model, in windows": lambda: case.kept("windows", seconds=SECONDS),
            "model, one pass": lambda: case.kept("pass", frames=case.aligned(count))[:count],
            "truth": lambda: case.rendered(case.scene, count)[0],
        }

    return length


def sized(across: float, down: float) -> Mode:
    def size(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
        width, height = case.sides(across * case.width, down * case.height)
        return Task(case.scene, case.fps, range(case.frames)), {
            "model": lambda: case.make(None, size=(width, height)),
            "truth": lambda: case.rendered(case.scene, case.frames, (height, width))[0],
        }

    return size


def lasting(share: float) -> Mode:
    def duration(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
        count = case.aligned(round(share * (case.frames - 1)))
        return Task(case.scene, case.fps, range(count)), {
            "model": lambda: case.make(None, frames=count),
            "truth": lambda: case.rendered(case.scene, count)[0],
        }

    return duration


LENGTHS: dict[str, Mode] = {
    "own size": sized(1.0, 1.0),
    **{name: sized(*sides) for name, sides in SIZES.items()},
    "half as long": lasting(0.5),
    "twice as long": lasting(2.0),
    **{f"{SECONDS} s, part {number + 1}": section(number) for number in range(SECTIONS)},
}
