"""Adherence as a section of a report: shares of what was asked, by source and by kind of prompt, and the failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.evaluation.adherence.verdicts import ATTRIBUTES, score
from carrara.evaluation.prompts import Prompt
from carrara.evaluation.reading.clip import Reading, read_clip
from carrara.evaluation.reading.relations import related
from carrara.evaluation.report.sections import Picture, Section, Table
from carrara.evaluation.report.strips import strip
from carrara.evaluation.sources import MODEL, TRUTH, Source
from carrara.evaluation.statistics import Estimate, Share, tally

ROWS = (*ATTRIBUTES, "all")
OF_TIME = ("motion",)  # attributes that wrong order of frames must spoil; the others are there in any one frame
SHOWN = 12  # failures in the report
GROUPS = {
    "Seen and held-out combinations": ("held in", "held out"),
    "One and two actors": ("one actor", "two actors"),
    "By level of the caption": ("short", "medium", "dense"),
    "By camera and by relation": ("moving camera", "follows", "left of", "passes behind"),
}

ABOUT = """\
Does a clip show what its prompt asks for? Every written file is read from its pixels by the pond's own painters, \
shapes and motions, without a network; only what the prompt commits to is scored, and what cannot be read is wrong. \
"kind" is the shape; "count" the number of actors; a relation is one of follows, left of, passes behind.

Ceilings: truth is the pond's render of the prompt's scene, hence what the reader can read; reconstruction is that \
through the autoencoder, hence what any denoiser on its latents could reach. Controls: the truth with its first frame \
frozen, and with its frames shuffled; both must spoil the motion, and neither need spoil what one frame shows."""


@dataclass(frozen=True)
class Result:
    """One clip: what was asked, what was read, and the verdicts; the frames only of some failures, to be shown."""

    prompt: Prompt
    reading: Reading
    verdicts: Mapping[str, bool]
    frames: NDArray[np.uint8] | None = field(default=None, repr=False)

    def plain(self) -> dict[str, Any]:
        prompt = self.prompt
        return {
            "prompt": prompt.text,
            "level": prompt.level,
            "split": prompt.split,
            "seed": prompt.seed,
            "asked": prompt.asked.plain(),
            "read": self.reading.plain() | {"relations": related(self.reading.actors)},
            "verdicts": dict(self.verdicts),
        }

    def text(self) -> str:
        """What was asked and what was read, wrong things first."""
        wrong = ", ".join(name for name, right in self.verdicts.items() if not right and name != "all")
        read = [" ".join(part or "?" for part in (a.size, a.colour, a.kind, a.motion)) for a in self.reading.actors]
        where = f"{self.reading.count or 0} on {self.reading.background or '?'}"
        return f"“{self.prompt.text}” — wrong: {wrong}. Read, ? where unclear: {where}: {'; '.join(read) or 'nobody'}"


def judge(prompts: Sequence[Prompt], source: Source, show: Callable[[int, int], None]) -> list[Result]:
    """Read the clips of a source and score them."""
    results, failures = [], 0
    for prompt, (frames, fps) in zip(prompts, source):
        reading = read_clip(frames, fps)
        verdicts = score(reading, prompt.asked)
        failures += not verdicts["all"]
        kept = source.name == MODEL and not verdicts["all"] and failures <= SHOWN
        results.append(Result(prompt, reading, verdicts, frames if kept else None))
        show(len(results), len(prompts))
    return results


def section(results: Mapping[str, Sequence[Result]]) -> Section:
    """The section, from the results of every source by its name."""
    first = next(iter(results))
    hidden = unseparated(results)
    tables = [table("What was asked", results, hidden)]
    for title, names in GROUPS.items():
        columns = {name: [r for r in results[first] if name in r.prompt.groups()] for name in names}
        if title == "By camera and by relation":  # these few are worth comparing with what is possible
            columns = {
                f"{name}, {source}" if source != first else name: [r for r in found if name in r.prompt.groups()]
                for name in names
                for source, found in results.items()
                if source in (first, TRUTH)
            }
        tables.append(table(f"{title} ({first})", columns, hidden))
    pictures = [Picture(r.text(), strip(r.frames)) for r in results[first] if r.frames is not None]
    data = {
        "scores": {name: scores(found) for name, found in results.items()},
        "not reported": list(hidden),
        "clips": {name: [r.plain() for r in found] for name, found in results.items()},
    }
    return Section("adherence", "Adherence", ABOUT, tuple(tables), tuple(pictures), data)


def table(title: str, columns: Mapping[str, Sequence[Result]], hidden: Sequence[str] = ()) -> Table:
    """A row per attribute that was asked for in any column; `hidden` ones are left out and the note says so."""
    shares = {name: tally([r.verdicts for r in found], ROWS) for name, found in columns.items()}
    rows = tuple(
        (name, tuple(Estimate.of(found.get(name, Share(0, 0))) for found in shares.values()))
        for name in ROWS
        if name not in hidden and any(name in found for found in shares.values())
    )
    note = f"Not reported, because a control does not separate from the truth: {', '.join(hidden)}." if hidden else ""
    return Table(title, tuple(columns), rows, note)


def unseparated(results: Mapping[str, Sequence[Result]]) -> tuple[str, ...]:
    """Attributes of time for which a control does as well as the truth, as far as their intervals tell."""
    if TRUTH not in results:
        return ()
    shares = {name: tally([r.verdicts for r in found], ROWS) for name, found in results.items()}
    controls = [shares[name] for name in ("frozen", "shuffled") if name in shares]
    return tuple(
        name
        for name in OF_TIME
        if name in shares[TRUTH]
        and not all(control[name].interval[1] < shares[TRUTH][name].interval[0] for control in controls)
    )


def scores(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """group -> attribute -> share with its interval, of one source."""
    groups: dict[str, list[Mapping[str, bool]]] = {"everything": [r.verdicts for r in results]}
    for result in results:
        for group in result.prompt.groups():
            groups.setdefault(group, []).append(result.verdicts)
    return {
        group: {name: share.plain() for name, share in tally(verdicts, ROWS).items()}
        for group, verdicts in groups.items()
    }
