"""How much of the truth does the reader read? Fresh renders, written as MP4 and read back, attribute by attribute.

    python examples/read_truth.py [--clips 200] [--side 64] [--sets "two actors" ...] [--first SEED] [--output FILE]

Prints, for each set of scenes, how many clips are right in each attribute, and every clip that is not, with what was
read. The scenes are of numbers that neither training nor an evaluation draws.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from carrara.core.config import write_json
from carrara.core.media import write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import SINGLES, Mix, sample_scene
from carrara.data.pond.world import Scene
from carrara.evaluation.adherence.verdicts import Asked, adherence
from carrara.evaluation.prompts import FILMED, PAIRS, RELATED
from carrara.evaluation.statistics import wilson

FRAMES, FPS, BATCH = 17, 8.0, 16
FIRST = 5 << 40
SETS = {
    "one actor": SINGLES,
    "moving camera": FILMED,
    "wall": Mix(two=0.0, wall=1.0, camera=0.0),
    "two actors": PAIRS,
    "two actors, related": RELATED,
}


def drawn(mix: Mix, first: int, count: int) -> list[Scene]:
    """Scenes of both splits in turn."""
    return [sample_scene(first + n, mix, ("train", "held_out")[n % 2]) for n in range(count)]


def judge(scenes: list[Scene], side: int, first: int) -> list[dict[str, Any]]:
    """A record of every clip: its scene's number, the verdicts, and of a wrong one what it is and what was read."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for at in range(0, len(scenes), BATCH):
            part = scenes[at : at + BATCH]
            for number, video in enumerate(render(part, VideoShape(FRAMES, side, side)).video):
                write_video(path, video, FPS, overwrite=True)
                scene = part[number]
                verdicts, reading = adherence(path, Asked.everything(scene))
                record: dict[str, Any] = {"seed": first + at + number, "verdicts": verdicts}
                if not verdicts["all"]:
                    record |= {"scene": asdict(scene), "read": reading.plain()}
                found.append(record)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--output", default="out/read-truth.json")
    options = parser.parse_args()
    found = {}
    for name in options.sets:
        records = judge(drawn(SETS[name], options.first, options.clips), options.side, options.first)
        found[name] = records
        right, asked = Counter[str](), Counter[str]()
        for record in records:
            asked.update(record["verdicts"].keys())
            right.update(key for key, good in record["verdicts"].items() if good)
        low, high = wilson(right["all"], asked["all"])
        each = ", ".join(f"{key} {right[key]} of {asked[key]}" for key in asked if key != "all")
        print(
            f"{name}, {options.side} pixels: all {right['all']} of {asked['all']} [{low:.0%}, {high:.0%}]; {each}",
            flush=True,
        )
        for record in records:
            if not record["verdicts"]["all"]:
                print(f"  {record['seed']}: {', '.join(key for key, good in record['verdicts'].items() if not good)}")
    write_json(Path(options.output), {"side": options.side, "first": options.first, "sets": found})


if __name__ == "__main__":
    main()
