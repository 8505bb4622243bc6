"""`carrara evaluate`: a model by all that it can do, or any videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from carrara.cli.telling import tell
from carrara.core.options import Flag, Whole, option, parse
from carrara.generation.clip_options import SamplingOptions, load_model

if TYPE_CHECKING:
    from carrara.evaluation.report.sections import Section


@dataclass(frozen=True)
class Evaluate(SamplingOptions):
    """Measure a model beside its ceilings and controls, or any videos (--clips)."""

    model: Positional[Annotated[str | None, option(metavar="MODEL")]] = None
    """Bundled model or model folder; pond if none."""
    suite: Literal["quick", "full"] = "quick"
    """How much is measured of a model."""
    clips: Annotated[str | None, option(metavar="DIR")] = None
    """Folder of videos to measure instead of a model."""
    against: Annotated[str | None, option(metavar="DIR")] = None
    """Folder of videos to hold them against."""
    only: Annotated[str, option(metavar="PARTS")] = ""
    """Parts to measure, joined by commas; all if none."""
    fvd: Annotated[str | None, option(metavar="PATH")] = None
    """I3D's weights (a file) or a VideoMAE folder: distances on their features as well."""
    baseline: Flag = False
    """Measure the model frame by frame as well (the full suite always does)."""
    output: Annotated[str, option(aliases=["-o"], metavar="DIR")] = "runs/evaluation"
    """Folder for the clips and the report."""
    prompts: Whole = None
    """How many prompts."""
    seed: int = 0
    """Seed of prompts and noise."""


def evaluate(args: list[str]) -> int:
    """`carrara evaluate`."""
    options = parse(Evaluate, args, "carrara evaluate")
    only = tuple(options.only.split(",")) if options.only else ()
    if options.clips is None:
        if options.against is not None:
            raise ValueError("--against: what is held against these videos? Give --clips DIR as well")
        sections = evaluate_model(options, only)
    else:
        if options.model is not None:
            raise ValueError(f"{options.model!r} and --clips: give a model or a folder of videos, not both")
        of_videos = {"clips", "against", "only", "fvd", "output"}
        said = [each.name for each in fields(options) if getattr(options, each.name) != each.default]
        if given := [name for name in said if name not in of_videos]:
            raise ValueError(
                f"--{given[0]} and --clips: videos are measured as they are; leave it out, or give a model"
            )
        from carrara.evaluation.videos import evaluate_videos

        sections = evaluate_videos(
            options.clips, options.output, against=options.against, only=only, fvd=options.fvd, tell=tell
        )
    for section in sections:
        if section.tables:
            print(f"{section.tables[0].text()}\n")
    print(f"{options.output}/report.html")
    return 0


def evaluate_model(options: Evaluate, only: Sequence[str]) -> list[Section]:
    """Measure a model by all that it can do; returns the report's sections."""
    from carrara.core.config import to_dict
    from carrara.core.files import check_folder
    from carrara.core.types import VideoShape
    from carrara.evaluation.subject import Subject
    from carrara.evaluation.suite import evaluate as measure
    from carrara.generation.baseline import baselines
    from carrara.generation.request import Request
    from carrara.systems.latent import LatentVideo
    from carrara.systems.latent_scores import LatentContinues, LatentScores

    check_folder(options.output)
    model = load_model(options.model, options.lora, precision=options.precision)
    system, defaults = model.system, model.system.defaults

    def request(prompt: str, seed: int) -> Request:
        return Request(prompt, seed=seed, model=model.name, **options.sampling())

    def make(prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        for prompt, seed, path in zip(prompts, seeds, paths):
            model.write(model.plan(request(prompt, seed)), path, overwrite=True, progress=False)

    plan, latent = model.plan(request("a ball", 0)), isinstance(system, LatentVideo)
    subject = Subject(
        shape=VideoShape(defaults.frames, defaults.height, defaults.width),
        fps=defaults.fps,
        generates=make,
        baselines=baselines(model, request) if options.baseline or options.suite == "full" else {},
        codec=(system.autoencoder, system.autoencoder),
        continues=LatentContinues(system, plan.sampling) if latent and "levels" in defaults.knows else None,
        scores_noise=LatentScores(system) if latent and not defaults.strides else None,
        about={
            "model": model.name,
            "weights": system.fingerprint,
            "adapters": [f"{path}:{weight:g}, sha256 {made_by}" for path, weight, made_by in model.loras],
            "sampling": to_dict(plan.sampling),
            **({"precision": system.precision} if system.precision else {}),
        },
    )
    return measure(
        subject,
        options.output,
        suite=options.suite,
        only=only,
        prompts=options.prompts,
        seed=options.seed,
        fvd=options.fvd,
        tell=tell,
    )
