"""`carrara generate`: its options, where its files go, and what it says. Free of torch until it runs."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from carrara.core.files import check_file
from carrara.core.options import Flag, Number, Text, Whole, option, parse
from carrara.generation.clip_options import ClipOptions, load_model

if TYPE_CHECKING:
    from carrara.generation.conditions import Conditions

File = Annotated[str | None, option(metavar="FILE")]


@dataclass(frozen=True)
class Generate(ClipOptions):
    """Make clips from text: one for each prompt; and from pictures and clips, whose modes docs/modes.md explains."""

    prompts: Positional[Annotated[tuple[str, ...], option(metavar="PROMPT ...")]] = ()
    """What to show, one clip each."""
    output: Annotated[str | None, option(aliases=["-o"], metavar="FILE|DIR")] = None
    """File (.mp4, .gif, .webp, .png) or folder; default out/<prompt>.mp4."""
    source: Annotated[str | None, option(name="from", metavar="FILE")] = None
    """Make the clip of this file again, byte for byte on the same machine; or decode saved latents."""
    seconds: Number = None
    """Duration of what is made; more than one pass gives is made in windows."""
    window: Whole = None
    """Frames of such a window, a number as for --frames; default the model's own clip."""
    prompt_at: Annotated[UseAppendAction[tuple[tuple[float, str], ...]], arg(metavar="SECONDS TEXT")] = ()
    """From this time on another prompt holds; may be repeated."""
    images: Flag = False
    """Make one frame, a .png."""
    image: File = None
    """Picture that the clip begins with."""
    last: File = None
    """Picture that the clip ends with."""
    loop: Flag = False
    """The end leads back to the beginning."""
    extend: File = None
    """Clip to go on from; it stays as it is."""
    before: Flag = False
    """With --extend: make what comes before the clip instead."""
    between: Annotated[tuple[str, str] | None, option(metavar="FILE FILE")] = None
    """Two clips to connect; both stay as they are."""
    interpolate: File = None
    """Clip to add frames to; its own stay as they are."""
    factor: Whole = None
    """With --interpolate: how many times as many frames, 2 or 4; default 2."""
    inpaint: File = None
    """Clip to paint on, where --mask is white; the rest stays as it is."""
    mask: File = None
    """Picture, or clip of as many frames, that is white where to paint."""
    edit: File = None
    """Clip to change, as far as --strength says."""
    strength: Number = None
    """Noise level at which sampling begins on the clip, up to 1; default 0.6, with --inpaint 1."""
    fit: Text = None
    """What to do with pictures and clips of another shape: crop or pad."""
    known_by: Text = None
    """How what is known is kept: hold, or, for a model not trained for it, replace or guide."""
    guide_weight: Number = None
    """With --known-by guide: how strongly the rest is pulled towards what is known."""
    device: Text = None
    """Where to compute: cpu, cuda, or auto, a GPU where torch sees one; default auto."""
    offload: Flag = False
    """Hold only the blocks of the transformer that are in use, for a model larger than memory."""
    compile: Flag = False
    """Compile the transformer: faster steps after some seconds; for long clips or many prompts."""
    sheet: Flag = False
    """Also write the frames side by side, as a .png beside the clip."""


def generate(args: list[str]) -> int:
    """The command itself, with the arguments that follow its name."""
    options = parse(Generate, args, "carrara generate")
    for flag, value in (("--output", options.output), ("--from", options.source), ("--model", options.model)):
        if value == "":
            raise ValueError(f"{flag} is empty: say which, or leave it out")
    return _remake(options) if options.source else _make(options)


def _make(options: Generate) -> int:
    from carrara.core.media import check_format

    wanted = conditions_of(options)
    wanted.check()
    prompts = options.prompts or (("",) if wanted.pictured else ())
    if not prompts:
        raise ValueError('no prompt; say what to show, for example: carrara generate "a red ball bounces on the grass"')
    outputs = output_paths(names_of(prompts, wanted), options.output, ".png" if options.images else ".mp4")
    for path in outputs:
        check_outputs(path, options)
    size = None if options.size is None else parse_size(options.size)
    frames = options.frames
    if options.images:
        if frames is not None or options.seconds is not None or options.window is not None:
            raise ValueError("--images makes one frame: leave out --frames, --seconds and --window")
        frames = 1
    elif frames is not None and options.window is not None:
        raise ValueError("--frames and --window: frames are made in one pass; give --seconds with --window")

    from carrara.generation.asked import unknown_words, unread_prompt, unusual_size
    from carrara.generation.request import Request

    settings = ("negative", "fps", "seconds", "window", "prompt_at")
    values = {name: getattr(options, name) for name in settings} | {"size": size, "frames": frames}
    values |= options.sampling()
    there, precision = options.device or "auto", options.precision
    model = load_model(options.model, options.lora, options.offload, options.compile, there, precision)
    plans = []
    for index, (prompt, path) in enumerate(zip(prompts, outputs)):
        seed = None if options.seed is None else options.seed + index
        request = Request(prompt, seed=seed, model=options.model or "pond", conditions=wanted, **values)
        plan = model.plan(request)
        check_format(path, plan.shape, plan.fps)
        plans.append(plan)
    warnings = [
        unknown_words(prompt, model.system) for prompt in (*prompts, *(later for _, later in options.prompt_at))
    ]
    plan = plans[0]  # all are of one size, and of the same frames
    for warning in (*warnings, unread_prompt(plan, model.system), unusual_size(plan.shape, model.system)):
        if warning:
            print(f"carrara: {warning}", file=sys.stderr)
    for plan, path in zip(plans, outputs):
        begin = time.perf_counter()
        model.write(plan, path, options.overwrite)
        _finish(path, plan.seed, begin, options)
    return 0


def conditions_of(options: Generate) -> Conditions:
    """What the options say beside the prompt."""
    from carrara.generation.conditions import Conditions

    return Conditions(**{field.name: getattr(options, field.name) for field in fields(Conditions)})


def names_of(prompts: Sequence[str], conditions: Conditions) -> list[str]:
    """What files are named after: the prompt, or without one the clip or picture that they are made from."""
    stems = [Path(str(source)).stem for source in conditions.sources().values()]
    return [prompt or " ".join((*stems[:1], conditions.clip or "moving")) for prompt in prompts]


def _remake(options: Generate) -> int:
    allowed = {"source", "output", "model", "lora", "device", "offload", "compile", "sheet", "overwrite"}
    given = [f.name for f in fields(options) if f.name not in allowed and getattr(options, f.name) != f.default]
    if given:
        shown = "the prompt" if given[0] == "prompts" else f"--{given[0].replace('_', '-')}"
        raise ValueError(f"--from takes every setting from the file: leave out {shown}, or generate without --from")
    source = check_file(options.source or "")

    import torch

    from carrara.generation.latents import read_source
    from carrara.generation.manifest import Software
    from carrara.generation.request import Request
    from carrara.generation.run import load
    from carrara.systems.compiling import has_compiler

    saved, manifest = read_source(source)
    suffix = source.suffix if saved is None else ".mp4"
    output = options.output or f"out{os.sep}"
    (path,) = output_paths(names_of([manifest.prompt], manifest.asked()), output, suffix)
    check_outputs(path, options)
    loras = options.lora or tuple(f"{path}:{weight!r}" for path, weight, _ in manifest.loras)
    compiled = options.compile or (manifest.software.compiled and has_compiler())
    there = "cuda" if manifest.software.device.startswith("cuda") and torch.cuda.is_available() else "cpu"
    name, precision = options.model or manifest.model, manifest.software.precision
    model = load(name, options.offload, loras, compiled, options.device or there, precision)
    model.check_fingerprint(manifest, source)
    plan = replace(model.plan(Request.from_manifest(manifest)), model=manifest.model)
    torch.set_num_threads(manifest.software.threads)
    if differences := manifest.differences(Software.here(model.system)):
        print(f"carrara: the bytes may differ: {'; '.join(differences)}", file=sys.stderr)
    begin = time.perf_counter()
    model.write(plan, path, options.overwrite, saved=saved)
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
    is_folder = not output or output.endswith(("/", os.sep)) or os.path.isdir(folder) or not folder.suffix
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
