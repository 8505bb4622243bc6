"""`carrara data`: clips of the simulated world, and the user's own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional

from carrara.core.config import choose
from carrara.core.options import Flag, option, parse
from carrara.generation.command import parse_size


@dataclass(frozen=True)
class Pond:
    """Write clips of the simulated world with captions (metadata.jsonl) and their truth."""

    folder: Positional[Annotated[str, option(metavar="DIR")]]
    """Folder to write to."""
    clips: int = 16
    """How many clips."""
    size: Annotated[str, option(metavar="WxH")] = "128x128"
    """Width and height in pixels."""
    frames: int = 17
    """Frames of each clip."""
    fps: float = 8.0
    """Frames per second."""
    seed: int = 0
    """Seed of the first scene; the others follow."""
    split: Literal["train", "held_out"] = "train"
    """Scenes as training sees them, or with pairs of attributes that it never sees."""
    overwrite: Flag = False
    """Replace an earlier folder of this kind."""


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
