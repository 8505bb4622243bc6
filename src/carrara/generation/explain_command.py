"""`carrara explain`: its options, its files, and what it says. Free of torch until it runs."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from carrara.core.options import Whole, option, parse
from carrara.generation.clip_options import ClipOptions, load_model
from carrara.generation.command import output_paths, parse_size

if TYPE_CHECKING:
    from carrara.generation.explain import Explanation

KINDS = ("emerging.png", "emerging.mp4", "attention.png", "attention.mp4")


@dataclass(frozen=True)
class Explain(ClipOptions):
    """See inside: how a clip emerges from noise, and what a patch of it attends to in its other frames.

    Writes two pictures and two films for each prompt. Steps, blocks and patches are counted from 1.
    """

    prompts: Positional[Annotated[tuple[str, ...], option(metavar="PROMPT ...")]] = ()
    """What to show, one clip each."""
    output: Annotated[str, option(aliases=["-o"], metavar="DIR")] = "out"
    """Folder for <prompt>-emerging.png, .mp4 and <prompt>-attention.png, .mp4."""
    patch: Annotated[str | None, option(metavar="F,R,C")] = None
    """Whose attention: latent frame, row and column of a patch; by default the one that stands out most."""
    step: Whole = None
    """At which step of the sampler; by default half way."""
    block: Whole = None
    """Which block of the transformer to show head by head; by default all blocks, mean over heads."""


def explain(args: list[str]) -> int:
    """The command itself, with the arguments that follow its name."""
    options = parse(Explain, args, "carrara explain")
    for flag, value in (("--output", options.output), ("--model", options.model)):
        if value == "":
            raise ValueError(f"{flag} is empty: say which, or leave it out")
    if not options.prompts:
        raise ValueError('no prompt; say what to show, for example: carrara explain "a red ball bounces on the grass"')
    outputs = explained_paths(options.prompts, options.output)
    from carrara.core.media import check_format, check_output

    for path in (path for paths in outputs for path in paths):
        check_output(path, options.overwrite)
    size = None if options.size is None else parse_size(options.size)
    patch = None if options.patch is None else parse_patch(options.patch)

    from carrara.generation.asked import unknown_words, unusual_size
    from carrara.generation.explain import View, check_view
    from carrara.generation.explain import explain as look_inside
    from carrara.generation.request import Request
    from carrara.systems.latent import LatentVideo

    wanted = {name: getattr(options, name) for name in ("negative", "frames", "fps")} | options.sampling()
    wanted |= {"size": size, "model": options.model or "pond"}
    model = load_model(options.model, options.lora, precision=options.precision)
    if not isinstance(model.system, LatentVideo):
        raise ValueError(f"{model.name}: explain shows the attention of a transformer on latents, which this has not")
    plans = []
    for index, prompt in enumerate(options.prompts):
        seed = None if options.seed is None else options.seed + index
        plan = model.plan(Request(prompt, seed=seed, **wanted))
        view = check_view(View(patch, options.step, options.block), plan, model.system)
        check_format(outputs[index][1], plan.shape, plan.fps)
        plans.append(plan)
    for prompt in options.prompts:
        if warning := unknown_words(prompt, model.system):
            print(f"carrara: {warning}", file=sys.stderr)
    if warning := unusual_size(plans[0].shape, model.system):  # all are of one size
        print(f"carrara: {warning}", file=sys.stderr)
    for plan, paths in zip(plans, outputs):
        begin = time.perf_counter()
        explanation = look_inside(model, plan, view)
        write(explanation, paths, options.block, options.overwrite)
        print(f"{paths[0]}  seed {plan.seed}  {time.perf_counter() - begin:.1f} s", *paths[1:], sep="\n")
        print(told(explanation), flush=True)
    return 0


def write(explanation: Explanation, paths: tuple[Path, ...], block: int | None, overwrite: bool = False) -> None:
    """Draw and write the four files, in the order of `KINDS`; each carries the manifest of the clip it explains."""
    from carrara.core.media import write_video
    from carrara.generation.explain_pictures import attention_film, attention_sheet, emerging_film, emerging_sheet

    attention, fps = explanation.attention, explanation.clip.fps
    about = {"explains": explanation.clip.manifest.to_json(), "patch": _place(attention.patch)}
    about["step"] = str(attention.step)
    drawn = (
        (emerging_sheet(explanation.emerging)[None], 1.0),
        (emerging_film(explanation), fps),
        (attention_sheet(explanation, block)[None], 1.0),
        (attention_film(explanation, block), fps),
    )
    for path, (frames, rate) in zip(paths, drawn):
        write_video(path, frames, rate, about, overwrite)


def told(explanation: Explanation) -> str:
    """What the attention maps show, in one sentence with its chance level."""
    attention = explanation.attention
    mean, keen = attention.map(), attention.keenest
    found = f"{attention.found(mean):.0%}, in block {keen} {attention.found(attention.map(keen)):.0%}"
    return (
        f"patch {_place(attention.patch)} at step {attention.step} of {attention.total} takes "
        f"{attention.elsewhere(mean):.0%} from other frames; of that, {found} from what stands out there "
        f"({attention.chance:.0%} of the patches)"
    )


def explained_paths(prompts: tuple[str, ...], output: str) -> list[tuple[Path, ...]]:
    """The files of each prompt, in the order of `KINDS`."""
    from carrara.core.media import EXTENSIONS

    if Path(output).suffix in EXTENSIONS and not Path(output).is_dir():
        raise ValueError(f"{output}: explain writes {len(KINDS)} files; give a folder, for example -o out/")
    stems = output_paths(prompts, f"{output}/", suffix="")
    return [tuple(stem.with_name(f"{stem.name}-{kind}") for kind in KINDS) for stem in stems]


def _place(patch: tuple[int, int, int]) -> str:
    return ",".join(map(str, patch))


def parse_patch(text: str) -> tuple[int, int, int]:
    """ "2,3,4" as (latent frame, row, column), counted from 1."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*", text)
    if not match:
        raise ValueError(f"patch={text!r}: expected FRAME,ROW,COLUMN counted from 1, such as 2,3,4")
    return int(match[1]), int(match[2]), int(match[3])
