"""Measuring a model: the same parts for every model, each a section of one report, with ceilings and controls.

A model comes as a `Subject`, a handful of callables; what it cannot do leaves a section that says so. The report is
written again after every part, so that a long run that stops halfway leaves what it has found; and the same run begun
again in the same folder makes only what is missing (`kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from carrara.core.config import choose
from carrara.core.files import check_folder
from carrara.evaluation.distribution.fvd import check_asked, load_extractor
from carrara.evaluation.kept import ANSWERS
from carrara.evaluation.parts import PARTS
from carrara.evaluation.prompts import HELD_IN_START, HELD_OUT_START, MOST_PROMPTS, check_prompts, check_seed
from carrara.evaluation.report.sections import Section, write_report
from carrara.evaluation.subject import SUITES, Gap, Run, Subject


def evaluate(
    subject: Subject,
    folder: str | Path,
    *,
    suite: str = "quick",
    only: Sequence[str] = (),
    prompts: int | None = None,
    seed: int = 0,
    fvd: str | Path | None = None,
    tell: Callable[[str], None] = print,
    progress: bool | None = None,
) -> list[Section]:
    """Measure a subject and write `report.json`, `report.html` and the clips into `folder`; returns the sections.

    suite: "quick" or "full"; only: names of parts, all if none; prompts: how many instead of the suite's own; fvd:
    I3D's weights or a VideoMAE folder, for distances on their features as well; tell: is called with a line for every
    part that cannot be measured. The same arguments give the same JSON. Raises ValueError
    before anything is computed, and where nothing can be.
    """
    folder, size = Path(folder), choose("suite", suite, SUITES)
    wanted = only or [name for name in PARTS if name != "fvd" or fvd is not None]
    parts = {name: choose("part", name, PARTS) for name in wanted}
    check_asked(fvd, parts)
    check_seed(seed)
    if prompts is not None:
        check_prompts(prompts)
        size = replace(size, prompts=prompts)
    check_folder(folder)
    extractor = load_extractor(fvd) if fvd is not None else None
    run = Run(subject.keeping(folder / ANSWERS), size, seed, folder, progress, extractor)
    shape = subject.shape
    about = dict(subject.about) | {
        "suite": suite,
        "seed": seed,
        "how much": vars(size),
        "scene seeds": {
            "held in": HELD_IN_START + seed * MOST_PROMPTS,
            "held out": HELD_OUT_START + seed * MOST_PROMPTS,
        },
        "clips": f"{shape.frames} frames of {shape.width}x{shape.height} at {subject.fps:g} fps",
        "intervals": "95%: Wilson's for shares, Student's for means",
    }
    title = f"Evaluation of {subject.about.get('model', 'the pond')}"
    sections: list[Section] = []
    gaps: list[str] = []
    for name, part in parts.items():
        try:
            sections.append(part(run))
        except Gap as why:
            gaps.append(f"{name}: {why}")
            sections.append(Section(name, name.capitalize(), f"Not measured: {why}"))
        if len(gaps) < len(parts):
            write_report(folder, title, sections, about)
    if len(gaps) == len(parts):
        raise ValueError(f"nothing could be measured; {'; '.join(gaps)}")
    for line in gaps:
        tell(f"not measured: {line}")
    return sections
