"""`carrara generate`: its options, where its files go, and what it says. Free of torch until it runs."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from carrara.core.options import Number, Text, Whole, parse


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


def generate(args: list[str]) -> int:
    """The command itself, with the arguments that follow its name."""
    options = parse(Generate, args, "carrara generate")
    for flag, value in (("--output", options.output), ("--from", options.source), ("--model", options.model)):
        if value == "":
            raise ValueError(f"{flag} is empty: say which, or leave it out")
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
