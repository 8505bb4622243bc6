"""The commands. Each is a frozen dataclass whose fields are its options, and a function that does the work.

A user's mistake is one line on stderr and exit code 2, never a traceback; Ctrl-C is exit code 130. Nothing heavy is
imported before a command runs, so that `carrara --help` is immediate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from carrara.core.config import choose
from carrara.core.options import Whole, parse
from carrara.generation.clip_options import SamplingOptions, load_model
from carrara.generation.command import generate, parse_size
from carrara.generation.explain_command import explain
from carrara.generation.lora_command import lora

if TYPE_CHECKING:
    from carrara.evaluation.report.sections import Section
    from carrara.systems.parts import ModelFolder

USAGE = """usage: carrara COMMAND ...

An open text-to-video diffusion system.

  generate "PROMPT" ...   make clips from text; --from FILE makes a clip again
  explain "PROMPT" ...    see a clip emerge from noise, and what its patches attend to
  info MODEL              what a model is, makes and knows
  train RECIPE            train a model, or a part of one
  evaluate MODEL          measure a model; --clips DIR measures any videos
  systems                 the systems in one table at equal compute; --run DIR makes it anew
  lora merge ADAPTER ...  adapters: into a model's weights, for other programs, explained
  data pond DIR           write clips of the simulated world, with captions and truth
  data prepare SRC DST    prepare your own videos for training; data inspect DST looks at them

`carrara COMMAND --help` lists a command's options; `carrara --version` the version."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line and exit."""
    # Threads that wait for work by spinning make everything many times slower where other programs want the cores too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported
    raise SystemExit(run(list(sys.argv[1:] if args is None else args)))


def run(args: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        print("\ncarrara: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # help was printed
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, RuntimeError, MemoryError, OSError) as error:
        if os.environ.get("CARRARA_DEBUG"):
            raise
        mistake = isinstance(error, ValueError)
        print(f"carrara: {_one_line(error)}", file=sys.stderr)
        return 2 if mistake else 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] == "--version":
        import carrara

        print(carrara.__version__)
        return 0
    return choose("command", args[0], COMMANDS)(args[1:])


@dataclass(frozen=True)
class Info:
    """What a model is, makes and knows."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]] = "pond"
    """Bundled model, model folder of any layout, or a name on the hub."""


@dataclass(frozen=True)
class Evaluate(SamplingOptions):
    """Measure a model beside its ceilings and controls, or any videos (--clips)."""

    model: Positional[Annotated[str | None, arg(metavar="MODEL")]] = None
    """Bundled model or model folder; pond if none."""
    suite: Literal["quick", "full"] = "quick"
    """How much is measured of a model."""
    clips: Annotated[str | None, arg(metavar="DIR")] = None
    """Folder of videos to measure instead of a model."""
    against: Annotated[str | None, arg(metavar="DIR")] = None
    """Folder of videos to hold them against."""
    only: Annotated[str, arg(metavar="PARTS")] = ""
    """Parts to measure, joined by commas; all if none."""
    fvd: Annotated[str | None, arg(metavar="PATH")] = None
    """I3D's weights (a file) or a VideoMAE folder: distances on their features as well."""
    baseline: bool = False
    """Measure the model frame by frame as well (the full suite always does)."""
    output: Annotated[str, arg(aliases=["-o"], metavar="DIR")] = "runs/evaluation"
    """Folder for the clips and the report."""
    prompts: Whole = None
    """How many prompts."""
    seed: int = 0
    """Seed of prompts and noise."""


@dataclass(frozen=True)
class Pond:
    """Write clips of the simulated world with captions (metadata.jsonl) and their truth."""

    folder: Positional[Annotated[str, arg(metavar="DIR")]]
    """Folder to write to."""
    clips: int = 16
    """How many clips."""
    size: Annotated[str, arg(metavar="WxH")] = "128x128"
    """Width and height in pixels."""
    frames: int = 17
    """Frames of each clip."""
    fps: float = 8.0
    """Frames per second."""
    seed: int = 0
    """Seed of the first scene; the others follow."""
    split: Literal["train", "held_out"] = "train"
    """Scenes as training sees them, or with pairs of attributes that it never sees."""
    overwrite: bool = False
    """Replace an earlier folder of this kind."""


def info(args: list[str]) -> int:
    """`carrara info`."""
    options = parse(Info, args, "carrara info")
    from carrara.generation.loading import find_model, is_latent
    from carrara.generation.run import load

    folder = find_model(options.model)
    if is_latent(folder):
        from carrara.systems.folder import recognise

        found = recognise(folder)
        if found.foreign:
            return explain_foreign(options.model, found)
    system = load(options.model).system
    defaults, stride = system.defaults, system.stride
    parts = {"denoiser": system.denoiser, "autoencoder": system.autoencoder, "text encoder": system.text_encoder}
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    words = system.known_words()
    rows = {
        "model": options.model,
        "folder": folder,
        "weights": f"sha256 {system.fingerprint}",
        "parameters": ", ".join(f"{name} {count:.1f} M" for name, count in millions.items() if count),
        "clip": f"{defaults.frames} frames of {defaults.width}x{defaults.height} at {defaults.fps:g} fps",
        "sizes": f"multiples of {stride.space * system.patch[2]}x{stride.space * system.patch[1]}, "
        + (f"{stride.time}k+1 frames" if stride.time > 1 else "any number of frames"),
        "sampling": f"{defaults.sampler}, {defaults.steps} steps, guidance {defaults.guidance:g}, "
        f"shift {defaults.shift:g}",
        "prompt": f"at most {defaults.max_prompt_tokens} tokens",
        "words": f"{len(words)}: {', '.join(words[:200])}{' ...' if len(words) > 200 else ''}",
    }
    for name, value in rows.items():
        print(f"{name:<11} {value}")
    return 0


def explain_foreign(name: str, found: ModelFolder) -> int:
    """What a foreign folder is, holds and needs, without loading it; then, as an error, what keeps it from running."""
    from carrara.generation.memory import available_memory, peak_memory
    from carrara.systems.inspect import explain_folder

    explained = explain_folder(found, available_memory(), peak_memory)
    for label, value in (("model", name), ("folder", found.folder), *explained.rows):
        print(f"{label:<13} {value}")
    if explained.problems:
        raise ValueError(explained.problems[0])
    return 0


def train(args: list[str]) -> int:
    """`carrara train RECIPE [-o FOLDER] [--setting value ...]`."""
    from carrara.recipes import RECIPES

    if not args or args[0] in ("-h", "--help"):
        said = {name: (RECIPES[name].__doc__ or "").strip().splitlines()[0] for name in sorted(RECIPES)}
        rows = [f"  {name:<{max(map(len, said))}}  {text}" for name, text in said.items()]
        usage = ["usage: carrara train RECIPE [-o FOLDER] [--setting value ...]", "", "recipes:", *rows, ""]
        usage.append("`carrara train RECIPE --help` lists a recipe's settings.")
        print("\n".join(usage), file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    recipe, folder = training_run(args)
    from carrara.core.files import check_folder
    from carrara.recipes.runs import check_run
    from carrara.training.loop import Stopped
    from carrara.training.parallel import place

    check_folder(folder)
    check_run(folder, args[0], recipe)
    try:
        model = recipe.run(folder)
    except Stopped as stop:
        print(f"carrara: {_one_line(stop)}", file=sys.stderr)
        return stop.exit_code
    if place()[0] != 0:
        return 0  # one process of several tells
    runs = (model / "model_index.json").is_file()  # not every recipe trains what makes clips from prompts
    prompt = getattr(recipe, "example", "a red ball bounces on the grass")
    print(f'{model}  try: carrara generate --model {model} "{prompt}"' if runs else model)
    return 0


def training_run(args: list[str]) -> tuple[Any, Path]:
    """The recipe with its settings changed, and its folder; nothing is run. Raises ValueError for what is unknown."""
    from carrara.recipes import RECIPES

    name, rest = args[0], list(args[1:])
    recipe = choose("recipe", name, RECIPES)
    folder = Path("runs") / name
    for flag in ("-o", "--output"):
        if flag in rest:
            at = rest.index(flag)
            if at + 1 == len(rest):
                raise ValueError(f"{flag}: needs a folder")
            folder, rest = Path(rest[at + 1]), rest[:at] + rest[at + 2 :]
    default = recipe()
    return parse(type(default), rest, f"carrara train {name}", default), folder


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
        of_models = ("baseline", "prompts", *(field.name for field in fields(SamplingOptions)))
        if given := [name for name in of_models if getattr(options, name) not in (None, (), False)]:
            raise ValueError(
                f"--{given[0]} and --clips: videos are measured as they are; leave it out, or give a model"
            )
        from carrara.evaluation.videos import evaluate_videos

        sections = evaluate_videos(
            options.clips, options.output, against=options.against, only=only, fvd=options.fvd, tell=_tell
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
    model = load_model(options.model, options.lora)
    system, defaults = model.system, model.system.defaults

    def request(prompt: str, seed: int) -> Request:
        return Request(prompt, seed=seed, model=model.name, **options.sampling())

    def make(prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        for prompt, seed, path in zip(prompts, seeds, paths):
            model.write(model.plan(request(prompt, seed)), path, overwrite=True, progress=False)

    plan = model.plan(request("a ball", 0))
    subject = Subject(
        shape=VideoShape(defaults.frames, defaults.height, defaults.width),
        fps=defaults.fps,
        generates=make,
        baselines=baselines(model, request) if options.baseline or options.suite == "full" else {},
        codec=(system.autoencoder, system.autoencoder),
        continues=LatentContinues(system, plan.sampling) if "levels" in defaults.knows else None,
        scores_noise=LatentScores(system) if isinstance(system, LatentVideo) else None,
        about={
            "model": model.name,
            "weights": system.fingerprint,
            "adapters": [f"{path}:{weight:g}" for path, weight, _ in model.loras],
            "sampling": to_dict(plan.sampling),
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
        tell=_tell,
    )


def data(args: list[str]) -> int:
    """`carrara data pond`, `prepare` and `inspect`."""
    from carrara.data.prepare.command import COMMANDS as PREPARING

    if not args or args[0] in ("-h", "--help"):
        usage = (
            "usage: carrara data pond DIR [OPTIONS]          clips of the simulated world\n"
            "       carrara data prepare SRC DST [OPTIONS]   your own videos, for training\n"
            "       carrara data inspect DST                 what a prepared folder holds\n\n"
            "`carrara data pond --help` lists the options."
        )
        print(usage, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in PREPARING:
        return PREPARING[args[0]](args[1:])
    choose("data set", args[0], {"pond": None, **PREPARING})
    options = parse(Pond, args[1:], "carrara data pond")
    width, height = parse_size(options.size)
    from carrara.core.progress import progress_bar
    from carrara.data.pond.writer import write_pond

    with progress_bar("clips") as show:
        write_pond(
            options.folder,
            options.clips,
            (width, height),
            options.frames,
            options.fps,
            options.seed,
            options.split,
            overwrite=options.overwrite,
            progress=show,
        )
    print(f"{options.folder}  {options.clips} clips")
    return 0


def systems(args: list[str]) -> int:
    """`carrara systems`."""
    from carrara.generation.measured import MeasuredClips
    from carrara.recipes.systems_command import systems as table

    return table(args, MeasuredClips.open)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "generate": generate,
    "explain": explain,
    "info": info,
    "train": train,
    "evaluate": evaluate,
    "systems": systems,
    "data": data,
    "lora": lora,
}


def _tell(line: str) -> None:
    print(f"carrara: {line}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
