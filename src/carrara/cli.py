"""The commands. Each is a frozen dataclass whose fields are its options, and a function that does the work.

A user's mistake is one line on stderr and exit code 2, never a traceback; Ctrl-C is exit code 130. Nothing heavy is
imported before a command runs, so that `carrara --help` is immediate.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from carrara.core.config import choose, nearest
from carrara.core.options import parse

Whole = Annotated[int | None, arg(metavar="INT")]
Number = Annotated[float | None, arg(metavar="NUMBER")]
Text = Annotated[str | None, arg(metavar="TEXT")]
USAGE = """usage: carrara COMMAND ...

An open text-to-video diffusion system.

  generate "PROMPT" ...   make clips from text; --from FILE makes a clip again
  info MODEL              what a model is, makes and knows
  train RECIPE            train a model, or a part of one
  evaluate MODEL          measure a model
  data pond DIR           write clips of the simulated world, with captions and truth

`carrara COMMAND --help` lists a command's options; `carrara --version` the version."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line and exit."""
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
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        import carrara

        print(carrara.__version__)
        return 0
    return choose("command", args[0], COMMANDS)(args[1:])


@dataclass(frozen=True)
class Generate:
    """Make clips from text: one for each prompt."""

    prompts: Positional[Annotated[tuple[str, ...], arg(metavar="PROMPT ...")]] = ()
    """What to show, one clip each."""
    output: Annotated[str | None, arg(aliases=["-o"], metavar="FILE|DIR")] = None
    """File (.mp4, .gif, .webp, .png) or folder; default out/<prompt>.mp4."""
    source: Annotated[str | None, arg(name="from", metavar="FILE")] = None
    """Make the clip of this file again, byte for byte on the same machine; or decode saved latents."""
    negative: Text = None
    """What not to show."""
    seed: Whole = None
    """Start of the noise; drawn and printed if not given. Several prompts take seed, seed + 1, ..."""
    frames: Whole = None
    """Number of frames, 4k + 1."""
    size: Annotated[str | None, arg(metavar="WxH")] = None
    """Width and height in pixels, such as 128x96."""
    fps: Number = None
    """Frames per second."""
    steps: Whole = None
    """Sampling steps."""
    guidance: Number = None
    """How strongly the prompt is followed; 1 is off."""
    sampler: Text = None
    """Solver, such as unipc, euler, ddim."""
    shift: Number = None
    """How far the noise levels are shifted towards noise."""
    model: Text = None
    """Bundled model or model folder; default pond."""
    sheet: bool = False
    """Also write the frames side by side, as a .png beside the clip."""
    overwrite: bool = False
    """Replace files that exist."""


@dataclass(frozen=True)
class Info:
    """What a model is, makes and knows."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]] = "pond"
    """Bundled model or model folder."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: does it show what the prompts ask for?"""

    model: Positional[Annotated[str, arg(metavar="MODEL")]] = "pond"
    """Bundled model or model folder."""
    output: Annotated[str, arg(aliases=["-o"], metavar="DIR")] = "runs/evaluation"
    """Folder for the clips and the scores."""
    prompts: int = 200
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


def generate(args: list[str]) -> int:
    """`carrara generate`."""
    options = parse(Generate, args, "carrara generate")
    return _remake(options) if options.source else _make(options)


def _make(options: Generate) -> int:
    from carrara.core.media import check_format

    if not options.prompts:
        raise ValueError('no prompt; say what to show, for example: carrara generate "a red ball bounces on the grass"')
    outputs = output_paths(options.prompts, options.output)
    for path in outputs:
        check_outputs(path, options)
    size = None if options.size is None else parse_size(options.size)

    from carrara.generation.request import Request, unknown_words
    from carrara.generation.run import load

    settings = ("negative", "frames", "fps", "steps", "guidance", "sampler", "shift")
    wanted = {name: getattr(options, name) for name in settings} | {"size": size, "model": options.model or "pond"}
    model = load(options.model or "pond")
    plans = []
    for index, (prompt, path) in enumerate(zip(options.prompts, outputs)):
        seed = None if options.seed is None else options.seed + index
        plan = model.plan(Request(prompt, seed=seed, **wanted))
        check_format(path, plan.shape, plan.fps)
        plans.append(plan)
    for prompt in options.prompts:
        if warning := unknown_words(prompt, model.system):
            print(f"carrara: {warning}", file=sys.stderr)
    for plan, path in zip(plans, outputs):
        begin = time.perf_counter()
        model.write(plan, path, options.overwrite)
        _finish(path, plan.seed, begin, options)
    return 0


def _remake(options: Generate) -> int:
    allowed = {"source", "output", "model", "sheet", "overwrite"}
    given = [f.name for f in fields(options) if f.name not in allowed and getattr(options, f.name) not in (None, ())]
    if given:
        shown = "the prompt" if given[0] == "prompts" else f"--{given[0]}"
        raise ValueError(f"--from takes every setting from the file: leave out {shown}, or generate without --from")
    source = Path(options.source or "")
    if not source.is_file():
        raise ValueError(f"{source}: no such file")

    import torch

    from carrara.generation.manifest import Software
    from carrara.generation.request import Request
    from carrara.generation.run import load, read_source

    latents, manifest = read_source(source)
    suffix = source.suffix if latents is None else ".mp4"
    output = options.output or f"out{os.sep}"
    (path,) = output_paths([manifest.prompt], output, suffix)
    check_outputs(path, options)
    model = load(options.model or manifest.model)
    model.check_fingerprint(manifest, source)
    plan = replace(model.plan(Request.from_manifest(manifest)), model=manifest.model)
    torch.set_num_threads(manifest.software.threads)
    if differences := manifest.differences(Software.here(model.system)):
        print(f"carrara: the bytes may differ: {'; '.join(differences)}", file=sys.stderr)
    begin = time.perf_counter()
    if latents is None:
        model.write(plan, path, options.overwrite)
    else:
        model.write_latents(latents, manifest, path, options.overwrite)
    _finish(path, plan.seed, begin, options)
    return 0


def check_outputs(path: Path, options: Generate) -> None:
    """Refuse what could not be written, the clip and its sheet, before any computing."""
    from carrara.core.media import check_output

    check_output(path, options.overwrite)
    if options.sheet and path.suffix != ".png":
        check_output(path.with_suffix(".png"), options.overwrite)


def _finish(path: Path, seed: int, begin: float, options: Generate) -> None:
    """Write the sheet, from the file's own pixels, and say what was made."""
    print(f"{path}  seed {seed}  {time.perf_counter() - begin:.1f} s", flush=True)
    if options.sheet and path.suffix != ".png":
        from carrara.core.media import read_video, write_video

        write_video(path.with_suffix(".png"), *read_video(path), overwrite=options.overwrite)
        print(path.with_suffix(".png"), flush=True)


def info(args: list[str]) -> int:
    """`carrara info`."""
    options = parse(Info, args, "carrara info")
    from carrara.generation.run import find_model, load

    system = load(options.model).system
    defaults, stride = system.defaults, system.stride
    parts = {"transformer": system.denoiser, "vae": system.autoencoder, "text encoder": system.text_encoder}
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    words = system.known_words()
    rows = {
        "model": options.model,
        "folder": find_model(options.model),
        "weights": f"sha256 {system.fingerprint}",
        "parameters": ", ".join(f"{name} {count:.1f} M" for name, count in millions.items()),
        "clip": f"{defaults.frames} frames of {defaults.width}x{defaults.height} at {defaults.fps:g} fps",
        "sizes": f"multiples of {stride.space * system.patch[2]}x{stride.space * system.patch[1]}, "
        f"{stride.time}k+1 frames",
        "sampling": f"{defaults.sampler}, {defaults.steps} steps, guidance {defaults.guidance:g}, "
        f"shift {defaults.shift:g}",
        "prompt": f"at most {defaults.max_prompt_tokens} tokens",
        "words": f"{len(words)}: {', '.join(words[:200])}{' ...' if len(words) > 200 else ''}",
    }
    for name, value in rows.items():
        print(f"{name:<11} {value}")
    return 0


def train(args: list[str]) -> int:
    """`carrara train RECIPE [--setting value ...] [-o FOLDER]`."""
    from carrara.recipes import RECIPES  # type: ignore[attr-defined,unused-ignore]

    if not args or args[0].startswith("-"):
        wants_help = bool({"-h", "--help"} & set(args))
        print("usage: carrara train RECIPE [-o FOLDER] [--setting value ...]\n\nrecipes:")
        for name in sorted(RECIPES):
            print(f"  {name:<20} {(RECIPES[name].__doc__ or '').strip().splitlines()[0]}")
        if wants_help:
            return 0
        raise ValueError(f"no recipe; {nearest('', RECIPES)}")
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
    config: Any = parse(type(default), rest, f"carrara train {name}", default)
    config.run(folder)
    return 0


def evaluate(args: list[str]) -> int:
    """`carrara evaluate`."""
    options = parse(Evaluate, args, "carrara evaluate")
    from carrara.evaluation.suite import evaluate as measure
    from carrara.generation.run import find_model

    measure(find_model(options.model), Path(options.output), prompts=options.prompts, seed=options.seed)
    return 0


def data(args: list[str]) -> int:
    """`carrara data pond`."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: carrara data pond DIR [OPTIONS]\n\n`carrara data pond --help` lists the options.")
        return 0 if args else 2
    choose("data set", args[0], {"pond": None})
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


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "generate": generate,
    "info": info,
    "train": train,
    "evaluate": evaluate,
    "data": data,
}


def parse_size(text: str) -> tuple[int, int]:
    """ "128x96" as (width, height)."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×*]\s*(\d{1,6})\s*", text)
    if not match:
        raise ValueError(f"size={text!r}: expected WIDTHxHEIGHT, such as 128x96")
    return int(match[1]), int(match[2])


def output_paths(prompts: Sequence[str], output: str | None, suffix: str = ".mp4") -> list[Path]:
    """Where each prompt's clip goes: into the folder under a safe name, or to the one file that is named."""
    from carrara.core.names import safe_name

    folder = Path(output) if output else Path("out")
    is_folder = not output or output.endswith(("/", os.sep)) or folder.is_dir() or not folder.suffix
    if not is_folder:
        if len(prompts) > 1:
            raise ValueError(f"{output}: one file for {len(prompts)} prompts; give a folder, for example -o out/")
        return [folder]
    paths: list[Path] = []
    for prompt in prompts:
        name, count = safe_name(prompt), 1
        while (path := folder / (f"{name}-{count}{suffix}" if count > 1 else f"{name}{suffix}")) in paths:
            count += 1
        paths.append(path)
    return paths


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
