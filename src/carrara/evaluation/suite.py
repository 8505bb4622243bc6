"""Measuring a model: the same parts for every model, each a section of one report, with ceilings and controls.

A model comes as a `Subject`, a handful of callables; what it cannot do leaves a section that says so. The report is
written again after every part, so that a long run that stops halfway leaves what it has found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carrara.core.config import choose
from carrara.core.files import check_folder
from carrara.core.progress import progress_bar
from carrara.core.types import Decoder, Encoder, VideoShape
from carrara.evaluation import adherence_section
from carrara.evaluation.prompts import HELD_IN_START, HELD_OUT_START, MOST_PROMPTS, Prompt, draw_prompts
from carrara.evaluation.report import Section, write_report
from carrara.evaluation.sources import MODEL, Generates, Source, make_sources


@dataclass(frozen=True)
class Subject:
    """What is measured, by what it can do; None where it cannot.

    generates: prompts to files; shape, fps: of its clips, and so of the renders beside them; codec: its encoder and
    decoder; about: what the report should say of it (name, weights, sampler settings).
    """

    shape: VideoShape
    fps: float
    generates: Generates | None = None
    codec: tuple[Encoder, Decoder] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """How much is measured."""

    prompts: int


SUITES: Mapping[str, Suite] = {"quick": Suite(prompts=20), "full": Suite(prompts=240)}


@dataclass(frozen=True)
class Run:
    """One evaluation: what the parts work on. progress: shown on a terminal only if None."""

    subject: Subject
    suite: Suite
    seed: int
    folder: Path
    prompts: Sequence[Prompt]
    sources: Sequence[Source]
    progress: bool | None


def measure_adherence(run: Run) -> Section:
    """What was asked for against what is shown."""
    results = {}
    for source in run.sources:
        with progress_bar(f"{source.name}: reading", run.progress) as show:
            results[source.name] = adherence_section.judge(run.prompts, source, show)
    return adherence_section.section(results)


PARTS: Mapping[str, Callable[[Run], Section]] = {"adherence": measure_adherence}


def evaluate(
    subject: Subject,
    folder: str | Path,
    *,
    suite: str = "quick",
    only: Sequence[str] = (),
    prompts: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Section]:
    """Measure a subject and write `report.json`, `report.html` and the clips into `folder`; returns the sections.

    suite: "quick" or "full"; only: names of parts, all if none; prompts: how many instead of the suite's own. The same
    arguments give the same JSON. Raises ValueError before anything is computed.
    """
    folder, size = Path(folder), choose("suite", suite, SUITES)
    parts = {name: choose("part", name, PARTS) for name in only or PARTS}
    drawn = draw_prompts(size.prompts if prompts is None else prompts, seed)
    check_folder(folder)
    makers = {MODEL: subject.generates} if subject.generates else {}
    sources = make_sources(drawn, folder, makers, subject.shape, subject.fps, subject.codec, progress)
    run = Run(subject, size, seed, folder, drawn, sources, progress)
    shape = subject.shape
    about = dict(subject.about) | {
        "suite": suite,
        "seed": seed,
        "prompts": len(drawn),
        "scene seeds": {
            "held in": HELD_IN_START + seed * MOST_PROMPTS,
            "held out": HELD_OUT_START + seed * MOST_PROMPTS,
        },
        "clips": f"{shape.frames} frames of {shape.width}x{shape.height} at {subject.fps:g} fps",
        "intervals": "95%: Wilson's for shares, Student's for means",
    }
    title = f"Evaluation of {subject.about.get('model', 'the pond')}"
    sections: list[Section] = []
    for part in parts.values():
        sections.append(part(run))
        write_report(folder, title, sections, about)
    return sections


def gap(name: str, title: str, why: str) -> Section:
    """A section that says why there is nothing in it."""
    return Section(name, title, f"Not measured: {why}")
