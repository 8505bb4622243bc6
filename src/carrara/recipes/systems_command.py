"""`carrara systems`: the recorded scoreboard, or a new one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from carrara.core.config import read_json
from carrara.core.options import Flag, Text, option, parse
from carrara.evaluation.scoreboard import markdown
from carrara.recipes.scoreboard import BOARD, RECORDED, Opens, Scoreboard
from carrara.recipes.systems import SYSTEMS, contest, contest_tiny, listing
from carrara.training.loop import Stopped


@dataclass(frozen=True)
class Systems:
    """The systems in one table at equal compute: as recorded, or trained and measured anew (--run)."""

    run: Annotated[str | None, option(metavar="DIR")] = None
    """Folder to train and measure in; the same command goes on after a stop."""
    flops: float = 1e15
    """Compute to train each system with, in FLOP."""
    seeds: int = 1
    """Trainings of each system."""
    prompts: int = 60
    """Prompts that each is asked."""
    rows: Annotated[str, option(metavar="ROWS")] = ""
    """Systems, joined by commas; all if none."""
    pond: Annotated[str | None, option(metavar="RUN")] = None
    """Finished run of the recipe pond, whose autoencoder and latents are used; if none they are made."""
    precision: Text = None
    """What networks compute in when they make clips, float32 or bfloat16; default float32."""
    tiny: Flag = False
    """Networks too small to learn anything, to see that it works."""


def systems(args: list[str], opens: Opens, recorded: Path = RECORDED) -> int:
    """Run the command. opens: loads a model and makes its clips; recorded: the table that comes with the package."""
    options = parse(Systems, args, "carrara systems")
    if options.run is None:
        if options != Systems():
            raise ValueError("these options are for a new table; say where to make it with --run DIR")
        print(markdown(read_json(recorded)) if recorded.is_file() else listing())
        return 0
    rows = tuple(options.rows.split(",")) if options.rows else tuple(SYSTEMS)
    pond = None if options.pond is None else Path(options.pond)
    whole = contest_tiny() if options.tiny else contest()
    folder = Path(options.run)
    precision = options.precision or ""
    board = Scoreboard(whole, opens, options.flops, options.seeds, options.prompts, rows, pond, precision, _tell)
    try:
        made = board.make(folder)
    except Stopped as stop:
        _tell(str(stop))
        return stop.exit_code
    print(markdown(made))
    _tell(f"{folder / BOARD}, {folder / 'scoreboard.png'}, {folder / 'pictures'}")
    return 0


def _tell(line: str) -> None:
    print(f"carrara: {line}", file=sys.stderr)
