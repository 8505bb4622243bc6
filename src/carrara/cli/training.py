"""`carrara train`: a recipe with its settings changed, and its run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from carrara.cli.telling import one_line
from carrara.core.config import choose
from carrara.core.options import parse


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
    from carrara.training.loop import Stopped
    from carrara.training.parallel import place

    try:
        model = recipe.run(folder)
    except Stopped as stop:
        print(f"carrara: {one_line(stop)}", file=sys.stderr)
        return stop.exit_code
    if place()[0] != 0:
        return 0  # one process of several tells
    runs = (model / "model_index.json").is_file()  # not every recipe trains what makes clips from prompts
    prompt = getattr(recipe, "example", "a red ball bounces on the grass")
    print(f'{model}  try: carrara generate --model {model} "{prompt}" -o {model.parent}/try.mp4' if runs else model)
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
