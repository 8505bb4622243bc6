"""What a system that read words beside images alone cannot know: which way "left" and "right" are for what moves.

python examples/make_a_video_blind.py MODEL OUT [CLIPS]

The same subjects, colours and seeds are asked for moving left and moving right, CLIPS times each (40), and every clip
is read as the evaluation reads it. OUT/blind.json says how many of the clips whose subject is seen to travel go the way
that they were told, with a 95% interval; OUT/blind.png shows some of both.

The prediction for Make-A-Video, which one run can refute: the interval does not lie above one half. (It may lie below:
captions of two things say which is to the left of the other, and from there it is further to the right.) A model that
learned from captioned clips, such as the bundled one, must lie above one half under the same command; if it does not,
the test says nothing of either. Networks compute in bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from carrara.core.config import write_json
from carrara.core.media import write_picture
from carrara.core.types import VideoShape
from carrara.evaluation.reading.clip import read_clip
from carrara.evaluation.reading.relations import travel
from carrara.evaluation.statistics import Share
from carrara.systems.phases import film, to_bytes
from carrara.systems.registry import load_system
from carrara.systems.system import System

WAYS = {"left": -1, "right": 1}
COLOURS = ("red", "blue", "yellow", "green", "purple")
SUBJECTS = ("car", "ball")
PICTURED = 4  # seeds whose clips the picture shows
LEAST = 0.1  # world units of travel, below which nothing is said to move sideways


def way_of(frames: torch.Tensor, fps: float, least: float = LEAST) -> int:
    """1 where the one who is seen in `t h w 3` comes to the right, -1 to the left, 0 where neither can be told."""
    seen = read_clip(frames, fps).actors
    gone = travel(seen[0]) if seen else 0.0
    return 0 if abs(gone) < least else (1 if gone > 0 else -1)


def judge(ways: dict[str, list[int]]) -> dict[str, Any]:
    """Of the clips that go either way: how many as they were told, and how many to the right under either word."""
    obeyed = [found == WAYS[told] for told, each in ways.items() for found in each if found]
    share = Share(sum(obeyed), len(obeyed))
    low, _ = share.interval
    right = {told: Share(each.count(1), len(each) - each.count(0)).plain() for told, each in ways.items()}
    above = low > 0.5 if obeyed else None
    return {"as_told": share.plain(), "to_the_right_when_told": right, "above_one_half": above}


def study(system: System, out: Path, clips: int) -> dict[str, Any]:
    """Make the clips, read them, and write what was found, anew with every pair, for a stop leaves what is known."""
    made = system.defaults
    shape = VideoShape(made.frames, made.height, made.width)
    ways: dict[str, list[int]] = {told: [] for told in WAYS}
    rows: list[torch.Tensor] = []
    result: dict[str, Any] = {}
    for seed in range(clips):
        subject = f"a {COLOURS[seed % len(COLOURS)]} {SUBJECTS[seed // len(COLOURS) % len(SUBJECTS)]}"
        for told, found in ways.items():
            prompt = f"{subject} moves {told} on the sand"
            latents = system.sample([prompt], [seed], shape, made.sampling)
            clip = to_bytes(system.finish(torch.cat(list(system.decode_chunks(latents)), dim=2), [prompt]))
            found.append(way_of(clip[0], made.fps))
            if seed < PICTURED:
                rows.append(film(clip, 8))
        result = {"clips": 2 * (seed + 1), **judge(ways)}
        if seed < PICTURED:
            write_picture(out / "blind.png", torch.cat(rows))
        write_json(out / "blind.json", result)
        print(f"{result['clips']} of {2 * clips} clips: {result['as_told']}", flush=True)
    return result


def main() -> None:
    if len(sys.argv) not in (3, 4) or (len(sys.argv) == 4 and not (sys.argv[3].isdigit() and int(sys.argv[3]))):
        raise SystemExit(__doc__)
    clips = int(sys.argv[3]) if len(sys.argv) == 4 else 40
    system = load_system(Path(sys.argv[1]), precision="bfloat16")
    print(json.dumps(study(system, Path(sys.argv[2]), clips)))


if __name__ == "__main__":
    main()
