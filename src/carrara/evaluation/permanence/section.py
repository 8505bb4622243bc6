"""Permanence in a report: prompts that ask for a wall, verdicts by length of occlusion, and tracks drawn on frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.data.pond.captions import caption
from carrara.evaluation.adherence.verdicts import Asked
from carrara.evaluation.permanence.pictures import draw_tracks
from carrara.evaluation.permanence.scenes import LENGTHS, crossing_scene
from carrara.evaluation.permanence.verdicts import PLACE, TIME, VERDICTS, Permanence, read_permanence
from carrara.evaluation.prompts import HELD_IN_START, HELD_OUT_START, MOST_PROMPTS, Prompt, check_seed
from carrara.evaluation.report.sections import Curve, Picture, Section, Table
from carrara.evaluation.sources import TRUTH, Source
from carrara.evaluation.statistics import Estimate, Share, mean_or_none, tally

CROSSES, OPEN, ALL = "goes behind", "nothing comes or goes", "permanent"
ROWS = (CROSSES, *VERDICTS, OPEN, ALL)
CONTROLS = ("frozen", "shuffled")
BINS: tuple[tuple[str, float, float], ...] = (
    ("under 0.5 frames", -1.0, 0.5),
    ("0.5 to 1.5", 0.5, 1.5),
    ("1.5 to 2.5", 1.5, 2.5),
    ("2.5 to 3.5", 2.5, 3.5),
    ("3.5 to 4.5", 3.5, 4.5),
    ("4.5 and more", 4.5, np.inf),
)
SAID = ("medium", "dense")  # caption levels that say how large an actor is: only a small one has the room
SHOWN = 8  # clips in the report

ABOUT = f"""\
Does what goes behind a wall come out again, as the same one, where and when it should? The prompts ask for one small \
actor that passes behind a wall. Wall and actor are read from the pixels; the path is the straight line through the \
actor's places before the wall, and says when it is wholly hidden, and when and where it is due. "emerges": something \
comes out on the far side; "same colour", "same shape": as what went in, and as large; "in place": at most {PLACE} of \
its width off the extrapolated path; "in time": at most {TIME:g} frames early or late. "nothing comes or goes": \
something moves, and at no moment does anything appear or vanish where neither a wall, nor the frame's edge, nor \
another actor could have hidden it. "permanent": all of it.

In the first table a clip that shows no crossing counts as wrong in everything but the last but one; so a clip that \
stands still scores nothing, though nothing in it could be lost. The other tables are about the crossings that are \
seen. Ceilings: truth and its reconstruction. Controls: the truth frozen, and shuffled; a row in which one of them is \
not below the truth by more than the intervals is left out. A prompt cannot say how long the actor is to be hidden: by \
length, a model is judged on what it showed, the truth on scenes of one to five hidden frames."""


@dataclass(frozen=True)
class Result:
    """One clip and what it shows; the frames only of some, to be shown."""

    prompt: Prompt
    found: Permanence
    frames: NDArray[np.uint8] | None = field(default=None, repr=False)

    def verdicts(self) -> dict[str, bool]:
        """ROWS of a clip that was asked to show a crossing; what it does not show is wrong."""
        found = self.found.verdicts()
        return {CROSSES: self.found.crossing is not None} | {name: found.get(name, False) for name in ROWS[1:]}

    def plain(self) -> dict[str, Any]:
        return {"prompt": self.prompt.text, "seed": self.prompt.seed, "split": self.prompt.split} | self.found.plain()

    def text(self) -> str:
        """What was asked and what was seen, in a line."""
        c = self.found.crossing
        if c is None:
            return f"“{self.prompt.text}” — {self.found.reason}"
        wrong = ", ".join(name for name, right in self.found.verdicts().items() if not right and name != ALL)
        seen = f"hidden for {c.occlusion:.1f} frames"
        if c.emerges and c.delay is not None and c.off_path is not None:
            seen += f", {abs(c.delay):.1f} frames {'late' if c.delay > 0 else 'early'}, {c.off_path:.2f} widths off"
        return f"“{self.prompt.text}” — {'wrong: ' + wrong if wrong else 'as it should be'}; {seen}"


def crossing_prompts(count: int, seed: int = 0, frames: int = 17, fps: float = 8.0) -> list[Prompt]:
    """`count` prompts whose scenes hide an actor for LENGTHS in turn, alternately from the held-in and the held-out
    split; every text says that there is a wall and that the actor is small. The first of more are those of fewer.

    Raises ValueError for a count or seed outside the ranges kept free for evaluation.
    """
    check_seed(seed)
    if not 1 <= count <= MOST_PROMPTS:
        raise ValueError(f"prompts={count}: must be from 1 to {MOST_PROMPTS}")
    prompts = []
    for index in range(count):
        split, start = (("held in", HELD_IN_START), ("held out", HELD_OUT_START))[index % 2]
        number, turn = start + seed * MOST_PROMPTS + index, index // 2
        part = "train" if split == "held in" else "held_out"
        scene = crossing_scene(number, LENGTHS[turn % len(LENGTHS)], part, frames, fps).scene
        for level in SAID[turn % len(SAID) :]:  # the longer one where the shorter has no room for the wall
            said = caption(scene, level, number)
            if {"wall", "actors.0.size"} <= said.attributes:
                break
        prompts.append(Prompt(scene, said.text, level, Asked.stated(scene, said), number, split))
    return prompts


def judge(prompts: Sequence[Prompt], source: Source, show: Callable[[int, int], None]) -> list[Result]:
    """Read the clips of a source, which were asked to show what the prompts say."""
    results: list[Result] = []
    for prompt, (frames, fps) in zip(prompts, source):
        found = read_permanence(frames, fps)
        results.append(Result(prompt, found, frames if source.control is None and len(results) < SHOWN else None))
        show(len(results), len(prompts))
    return results


def section(results: Mapping[str, Sequence[Result]]) -> Section:
    """The section, from the results of every source by its name; the first is the one that is shown."""
    first = next(iter(results))
    hidden = unseparated(results)
    seen = {name: found for name, found in results.items() if name not in CONTROLS}
    tables = [shares("What was asked: one actor passes behind a wall", results, hidden), errors(seen)]
    tables += [by_length(f"By length of occlusion ({name})", found) for name, found in seen.items()]
    curves = {name: counted(found) for name, found in results.items()}
    longest = max(map(len, curves.values()))
    lines = {name: values + [None] * (longest - len(values)) for name, values in curves.items()}
    picture = Curve("Actors in sight, mean over clips", list(range(longest)), lines, "frame", "count")
    strips = [Picture(r.text(), draw_tracks(r.frames, r.found)) for r in results[first] if r.frames is not None]
    data = {
        "scores": {name: tallied(found) for name, found in results.items()},
        "not reported": list(hidden),
        "clips": {name: [r.plain() for r in found] for name, found in results.items()},
    }
    return Section("permanence", "Permanence", ABOUT, tuple(tables), (picture, *strips), data)


def shares(title: str, results: Mapping[str, Sequence[Result]], hidden: Sequence[str]) -> Table:
    """Of all clips, a row per verdict; `hidden` ones are left out and the note says so."""
    columns = {name: tally([r.verdicts() for r in found], ROWS) for name, found in results.items()}
    rows = tuple(
        (name, tuple(Estimate.of(found.get(name, Share(0, 0))) for found in columns.values()))
        for name in ROWS
        if name not in hidden
    )
    note = f"Not reported, because a control does not separate from the truth: {', '.join(hidden)}." if hidden else ""
    return Table(title, tuple(columns), rows, note)


def unseparated(results: Mapping[str, Sequence[Result]]) -> tuple[str, ...]:
    """Verdicts for which a control does as well as the truth, as far as their intervals tell."""
    if TRUTH not in results:
        return ()
    found = {name: tally([r.verdicts() for r in each], ROWS) for name, each in results.items()}
    controls = [found[name] for name in CONTROLS if name in found]
    return tuple(
        name
        for name in ROWS
        if not all(control[name].interval[1] < found[TRUTH][name].interval[0] for control in controls)
    )


def errors(results: Mapping[str, Sequence[Result]]) -> Table:
    """Of the crossings that are seen: how far off in place and in time, and the counts."""
    rows: dict[str, list[Estimate | None]] = {}
    for found in results.values():
        seen = [r.found.crossing for r in found if r.found.crossing is not None]
        delays = [c.delay for c in seen]
        values: dict[str, list[float | None]] = {
            "off the path, widths": [c.off_path for c in seen],
            "early or late, frames": [None if d is None else abs(d) for d in delays],
            "late, frames": delays,
            "along the path, widths": [c.off_time for c in seen],
            "frames hidden": [c.occlusion for c in seen],
        }
        for name, column in values.items():
            rows.setdefault(name, []).append(mean_or_none(column))
        right = [r.found.lives.right_counts() for r in found]
        rows.setdefault("frames with the right count", []).append(mean_or_none(right, share=True))
    note = "Means over clips; the right count is that of the first frame, less what is hidden."
    return Table("How far off", tuple(results), tuple((name, tuple(cells)) for name, cells in rows.items()), note)


def by_length(title: str, results: Sequence[Result]) -> Table:
    """Of the crossings that are seen, verdicts in a column per length of occlusion."""
    names = (*VERDICTS, ALL)
    columns = {}
    for label, low, high in BINS:
        inside = [r for r in results if r.found.crossing is not None and low <= r.found.crossing.occlusion < high]
        columns[label] = tally([r.found.verdicts() for r in inside], names)
    rows = tuple((name, tuple(Estimate.of(c.get(name, Share(0, 0))) for c in columns.values())) for name in names)
    return Table(title, tuple(columns), rows, "Frames for which the actor is wholly hidden, by its pace and the wall.")


def counted(results: Sequence[Result]) -> list[float | None]:
    """The mean number of actors in sight, frame by frame; None where no clip can be read."""
    longest = max((len(r.found.lives.counts) for r in results), default=0)
    means: list[float | None] = []
    for frame in range(longest):
        known = [r.found.lives.counts[frame] for r in results if frame < len(r.found.lives.counts)]
        values = [value for value in known if value is not None]
        means.append(float(np.mean(values)) if values else None)
    return means


def tallied(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Verdict -> share with its interval, of one source."""
    return {name: share.plain() for name, share in tally([r.verdicts() for r in results], ROWS).items()}
