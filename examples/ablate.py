"""Ablations at equal wall time: variants of a recipe's denoiser, each with a prediction that was written before.

    python examples/ablate.py runs/pond -o runs/ablations --minutes 20 --cores 0 1

trains every trial of `ablations.json` on the autoencoder and the latents of runs/pond, each in a process of its own
(here two at once, on a core each), and prints the table for docs/log.md. Run again, it resumes or adds what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trial_jobs import Job, Pool, models, parse_slots, plan, report_of, slug

from carrara.core.config import choose, from_dict, read_json
from carrara.recipes.trials import Curve, equal_clips, open_run, read_curve
from carrara.systems.phases import VALIDATION_LEVELS

LOSSES = ("loss_mean", *(f"loss_at_{level:g}" for level in VALIDATION_LEVELS))


@dataclass(frozen=True)
class Trial:
    """A variant and what was expected of it before it ran: its validation loss over the first trial's at equal time."""

    name: str
    settings: dict[str, Any]
    expected: float
    prediction: str


def read_trials(path: Path) -> list[Trial]:
    """The trials of a JSON file, the one to compare with first. Raises ValueError for what is missing or unknown."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a list of trials ({error})") from None
    trials = [from_dict(Trial, entry, f"{path}, trial {number}") for number, entry in enumerate(found)]
    if not trials or len({slug(trial.name) for trial in trials}) < len(trials):
        raise ValueError(f"{path}: give at least one trial, each a name of its own")
    return trials


def tables(trials: Sequence[Trial], curves: Mapping[str, Curve], minutes: float) -> str:
    """Markdown: at equal time with the predictions, then at equal clips."""
    base = next(trial.name for trial in trials if trial.name in curves)
    found = [trial for trial in trials if trial.name in curves]
    ends = {trial.name: curves[trial.name].points[-1] for trial in found}
    parts = [f"After {minutes:g} minutes each; ratios are of the mean loss to that of “{base}”:", ""]
    parts += heading("trial", "predicted", "measured", "clips", "clips/s", *names())
    for trial in found:
        end = ends[trial.name]
        ratio = end.losses["loss_mean"] / ends[base].losses["loss_mean"]
        parts.append(
            row(
                trial.name,
                f"{trial.expected:.2f}",
                f"{ratio:.3f}",
                f"{end.clips:,}",
                f"{curves[trial.name].rate:.1f}",
                *(f"{end.losses[name]:.4f}" for name in LOSSES),
            )
        )
    parts += ["", "What was predicted, before:", "", *(f"- {trial.name}: {trial.prediction}" for trial in found)]
    clips = equal_clips([curves[trial.name] for trial in found])
    if clips is None:
        return "\n".join([*parts, "", "No number of clips was validated in every trial before its decay.", ""])
    parts += ["", f"At {clips:,} clips each, before any decay:", "", *heading("trial", "measured", *names())]
    level = {trial.name: curves[trial.name].at(clips) for trial in found}
    for trial in found:
        losses = level[trial.name]
        ratio = losses["loss_mean"] / level[base]["loss_mean"]
        parts.append(row(trial.name, f"{ratio:.3f}", *(f"{losses[name]:.4f}" for name in LOSSES)))
    return "\n".join([*parts, ""])


def adherence_table(trials: Sequence[Trial], folder: Path, prompts: int) -> str:
    """Markdown: shares of what was asked, read from the clips of every trial's model."""
    reports = {}
    for trial in trials:
        model = models(folder / slug(trial.name))[-1]
        path = report_of(model, prompts)
        if path.is_file():
            reports[trial.name] = read_json(path)
    if not reports:
        return ""
    rows = list(dict.fromkeys(name for report in reports.values() for name in report))
    parts = [f"Read from MP4s of {prompts} validation prompts, with 95% intervals:", "", *heading("trial", *rows)]
    for name, report in reports.items():
        parts.append(row(name, *(share(report.get(attribute)) for attribute in rows)))
    return "\n".join([*parts, ""])


def share(found: Mapping[str, Any] | None) -> str:
    if not found or not found["total"]:
        return ""
    return f"{found['share']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"


def names() -> list[str]:
    return ["mean", *(f"at {level:g}" for level in VALIDATION_LEVELS)]


def heading(*cells: str) -> list[str]:
    return [row(*cells), "|" + "---|" * len(cells)]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with a finished autoencoder and latents")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder for the trials")
    parser.add_argument("--trials", type=Path, default=Path(__file__).with_name("ablations.json"))
    parser.add_argument("--recipe", default="pond", help="the recipe that made the run")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of every trial (JSON)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="some of the trials")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each trial")
    parser.add_argument("--validate-every", type=int, default=250, metavar="STEPS")
    parser.add_argument("--adherence", type=int, default=0, metavar="PROMPTS", help="measured on so many prompts")
    parser.add_argument("--cores", nargs="*", default=[], metavar="CORES", help="a slot each: 0 1, or 0,1 for both")
    parser.add_argument("--threads", type=int, default=0, help="of each trial; 0: as many as its slot has cores")
    parser.add_argument("--table", action="store_true", help="train nothing, print what there is")
    options = parser.parse_args(args)
    try:
        return ablate(options)
    except ValueError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 2


def ablate(options: argparse.Namespace) -> int:
    slots = parse_slots(options.cores)
    trials = read_trials(options.trials)
    by_name = {trial.name: trial for trial in trials}
    chosen = [choose("trial", name, by_name) for name in options.only] or trials
    common = dict(setting(text) for text in options.set)
    jobs = [
        Job(
            trial.name,
            options.recipe,
            {**common, **trial.settings},
            str(options.run),
            str(options.output / slug(trial.name)),
            minutes=options.minutes,
            threads=options.threads or len(slots[0]),
            prompts=options.adherence,
            validate_every=options.validate_every,
        )
        for trial in chosen
    ]
    plans = [plan(job) for job in jobs]  # every mistake is found before the first trial runs
    failed = []
    if not options.table:
        open_run(plans[0], options.run)
        failed = Pool(slots).run(jobs)
    curves = {}
    for job, recipe in zip(jobs, plans):
        if (Path(job.folder) / "model").is_dir():
            curves[job.name] = read_curve(Path(job.folder), recipe.denoiser.batch)
    if not curves:
        raise ValueError(f"{options.output}: no trial has finished")
    text = tables(chosen, curves, options.minutes)
    if options.adherence:
        text += "\n" + adherence_table(chosen, options.output, options.adherence)
    (options.output / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if failed else 0


def setting(text: str) -> tuple[str, Any]:
    """`name=value`, the value as JSON, or as it stands where it is none."""
    name, mark, value = text.partition("=")
    if not mark:
        raise ValueError(f"--set {text}: write name=value, such as denoiser.batch=48")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    raise SystemExit(main())
