"""`carrara data prepare` and `carrara data inspect`: their options, and what they print."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional

from carrara.core.options import Flag, option, parse
from carrara.data.prepare.settings import Settings


@dataclass(frozen=True)
class Prepare:
    """Prepare your videos and pictures for training: cut, filtered, at one rate, in buckets of a few sizes.

    SRC is a folder of videos, pictures and WebDataset tars, with captions in metadata.jsonl or metadata.csv, in .txt
    files beside them, or without. Run the same command again to go on after an interruption.
    """

    source: Positional[Annotated[str, option(metavar="SRC")]]
    """Folder of what there is."""
    folder: Positional[Annotated[str, option(metavar="DST")]]
    """Folder to write: shards, manifest.jsonl, dropped.jsonl and report/index.html."""
    fps: float = Settings.fps
    """Frames per second of the clips."""
    frames: Annotated[str, option(metavar="N,...")] = ",".join(map(str, Settings.frames))
    """Frames of a clip, 1 + 4k; of several the longest that fits a shot is cut first."""
    sizes: Annotated[str, option(metavar="WxH,...")] = ",".join(f"{w}x{h}" for w, h in Settings.sizes)
    """Buckets; each video goes to the one that fits its shape best."""
    multiple: int = Settings.multiple
    """What sides must be multiples of; 32 for models with a stride of 16 and patches of 2."""
    chroma: int = Settings.chroma
    """How colour is stored: 420, or 444 without loss of its resolution."""
    upscale: float = Settings.most_upscaled
    """How many times a source may be enlarged."""
    crop: float = Settings.most_cropped
    """Share of the picture that may be cut away."""
    least_rate: float = Settings.least_rate
    """Share of a clip's frames that must differ in time."""
    cuts: float = Settings.cut_sensitivity
    """Sensitivity to cuts between shots: above 1 finds more."""
    black: float = Settings.black
    """Brightness up to which a frame is black; 0 keeps black."""
    frozen: float = Settings.frozen
    """Change up to which a clip stands still; 0 keeps stills."""
    duplicate: float = Settings.duplicate
    """Difference up to which two clips are one; 0 keeps duplicates."""
    no_images: Flag = False
    """Leave pictures out."""
    caption_column: Annotated[str, option(metavar="NAME")] = ""
    """Column with the captions; "caption" or "text" if not given."""
    licence: Annotated[str, option(metavar="TEXT")] = ""
    """Licence of all that has none in a metadata file."""
    captioner: Annotated[str, option(metavar="COMMAND")] = ""
    """Command that prints a caption, for clips without one; {clip} is the video, {sheet} a picture of its frames."""
    caption_model: Annotated[str, option(metavar="DIR")] = ""
    """Folder of a transformers image-to-text model that captions them instead."""
    caption_prompt: Annotated[str, option(metavar="TEXT")] = Settings.caption_prompt
    """What a caption model that takes instructions is asked."""
    shard_mb: int = Settings.shard_bytes >> 20
    """Megabytes of a shard."""
    most_pixels: int = Settings.most_pixels
    """Pixels of a frame that are still decoded."""
    seconds: float = Settings.seconds
    """Time for one file."""
    stall: float = Settings.stall
    """Seconds without progress, after which a file is given up."""
    workers: int = 0
    """Processes; as many as there are cores if 0."""
    ray: Annotated[str, option(metavar="ADDRESS")] = ""
    """Ray cluster that does the work instead (`local` starts one here); both folders must be the same everywhere."""


@dataclass(frozen=True)
class Inspect:
    """What a prepared folder holds, and whether it is whole."""

    folder: Positional[Annotated[str, option(metavar="DST")]]
    """Prepared folder."""
    verify: Flag = False
    """Read every byte and compare it with what was written."""


def prepare(args: list[str]) -> int:
    """`carrara data prepare`."""
    options = parse(Prepare, args, "carrara data prepare")
    if options.workers < 0:
        raise ValueError(f"--workers {options.workers}: must be at least 1, or 0 for one for each core")
    from carrara.core.progress import progress_bar
    from carrara.data.prepare.run import prepare as run

    settings = Settings(
        fps=options.fps,
        frames=parse_counts(options.frames),
        sizes=parse_sizes(options.sizes),
        multiple=options.multiple,
        chroma=options.chroma,
        most_upscaled=options.upscale,
        most_cropped=options.crop,
        least_rate=options.least_rate,
        cut_sensitivity=options.cuts,
        black=options.black,
        frozen=options.frozen,
        duplicate=options.duplicate,
        images=not options.no_images,
        caption_column=options.caption_column,
        licence=options.licence,
        captioner=options.captioner,
        caption_model=options.caption_model,
        caption_prompt=options.caption_prompt,
        shard_bytes=options.shard_mb << 20,
        most_pixels=options.most_pixels,
        seconds=options.seconds,
        stall=options.stall,
    )
    for name in ("source", "folder"):
        if not getattr(options, name):
            raise ValueError(f"{'SRC' if name == 'source' else 'DST'} is empty; name a folder")
    with progress_bar("files") as show:
        index = run(
            options.source,
            options.folder,
            settings,
            workers=options.workers or _cores(),
            ray=options.ray,
            tell=lambda line: print(f"carrara: {line}", file=sys.stderr),
            progress=show,
        )
    dropped = ", ".join(f"{count} {reason}" for reason, count in index["dropped"].items())
    print(f"{options.folder}  {index['clips']} clips, {index['images']} pictures, {index['captioned']} with a caption")
    print(f"dropped: {dropped or 'nothing'}")
    print(f"{options.folder}/report/index.html")
    return 0


def inspect(args: list[str]) -> int:
    """`carrara data inspect`."""
    options = parse(Inspect, args, "carrara data inspect")
    from carrara.data.prepare.inspecting import describe

    for name, value in describe(options.folder, options.verify):
        print(f"{name:<10} {value}".rstrip())
    return 0


def parse_counts(text: str) -> tuple[int, ...]:
    """ "17,33" as numbers. Raises ValueError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--frames {text!r}: expected whole numbers joined by commas, like 17,33") from None


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """ "256x256,320x192" as (width, height) pairs. Raises ValueError."""
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        width, _, height = part.lower().strip().partition("x")
        if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
            raise ValueError(f"--sizes {part!r}: expected WIDTHxHEIGHT, joined by commas, like 256x256,320x192")
        found.append((int(width), int(height)))
    return tuple(found)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


COMMANDS: dict[str, Any] = {"prepare": prepare, "inspect": inspect}
