"""Do the pond-motion distances see what they must? Truth against truth beside known damage, mild to strong.

    python examples/validate_distances.py [--clips 256] [--side 64] [--network FOLDER] [--output FILE]

Prints a table and writes the numbers as JSON. The clips are of scenes that no training draws.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

from carrara.core.config import write_json
from carrara.core.media import read_video, write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.evaluation.distribution import corruptions as c
from carrara.evaluation.distribution.distances import FRECHET, KERNEL, distances
from carrara.evaluation.distribution.motion_net import RATE, load_motion_net, motion_features

REFERENCE, TRUTH = 2**38 + 100_000, 2**38 + 200_000  # first scenes
MIX = Mix(two=0.15, wall=0.0, camera=0.0)

Damage = Callable[[Tensor, Tensor, Generator], Tensor]  # clip, mask of actors


def recoded(clip: Tensor, mask: Tensor, generator: Generator) -> Tensor:
    """Through an MP4 file, as every clip of an evaluation goes."""
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "clip.mp4", clip, RATE)
        return read_video(Path(folder) / "clip.mp4")[0]


def without_actors(clip: Tensor, mask: Tensor, generator: Generator) -> Tensor:
    """In the second half the actors are gone: pixels of the first frame's still background are unknown, so its mean."""
    gone = clip.clone()
    half = len(clip) // 2
    background = clip.float()
    background[mask > 0] = float("nan")
    plate = background.nanmedian(dim=0).values.nan_to_num(128).to(torch.uint8)
    gone[half:] = torch.where(mask[half:, ..., None] > 0, plate, clip[half:])
    return gone


def plain(corruption: c.Corruption) -> Damage:
    return lambda clip, mask, generator: corruption(clip, generator)


LADDERS: dict[str, dict[str, Damage]] = {
    "harmless": {"truth": lambda clip, mask, generator: clip, "recoded as MP4": recoded},
    "time": {
        "frozen": plain(c.frozen),
        "shuffled": plain(c.shuffled),
        "reversed": plain(c.reversed_),
        "actors vanish half-way": without_actors,
    },
    "colour": {
        "recoloured": plain(c.recoloured),
        "actors recoloured": lambda clip, mask, generator: c.actors_recoloured(clip, mask),
    },
    "swapped neighbours": {f"{share:g}": plain(c.swapped_neighbours(share)) for share in (0.25, 0.5, 1.0)},
    "stuttering": {f"{hold} frames": plain(c.stuttering(hold)) for hold in (2, 4, 8)},
    "noise": {f"{level:g}": plain(c.noisy(level)) for level in (0.02, 0.05, 0.1, 0.2)},
    "blur": {f"{sigma:g}": plain(c.blurred(sigma)) for sigma in (0.01, 0.02, 0.04, 0.08)},
}


def scenes_rendered(first: int, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Clips and masks of scenes, every second one of a combination that training holds out."""
    videos, masks = [], []
    for at in range(first, first + count, 16):
        numbers = range(at, min(at + 16, first + count))
        scenes = [sample_scene(number, MIX, ("train", "held_out")[number % 2]) for number in numbers]
        made = render(scenes, VideoShape(17, side, side), RATE)
        videos.append(made.video)
        masks.append(made.mask)
    return torch.cat(videos), torch.cat(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--network", default=None)
    parser.add_argument("--output", default="out/distances.json")
    options = parser.parse_args()
    net = load_motion_net(options.network)
    reference, _ = scenes_rendered(REFERENCE, options.clips, options.side)
    known = motion_features(net, ((clip, RATE) for clip in reference))
    videos, masks = scenes_rendered(TRUTH, options.clips, options.side)
    found = {}
    for ladder, steps in LADDERS.items():
        for name, damage in steps.items():
            generator = Generator().manual_seed(0)
            damaged = ((damage(clip, mask, generator), RATE) for clip, mask in zip(videos, masks))
            made = distances(motion_features(net, damaged), known)
            found[f"{ladder}: {name}"] = made.plain_values()
            truth = found["harmless: truth"]
            cells = []
            for measure in (FRECHET, KERNEL):
                estimate = made.of(measure)
                if estimate is None:
                    cells.append(made.reason)
                    continue
                apart = truth[measure] is not None and estimate.low > truth[measure]["high"]
                cells.append(f"{estimate.value:8.3f} [{estimate.low:.3f}, {estimate.high:.3f}]{' *' if apart else ''}")
            print(f"{ladder:20} {name:24} {cells[0]:32} {cells[1]}", flush=True)
    about = {"clips": options.clips, "side": options.side, "reference": REFERENCE, "truth": TRUTH, "seed": 0}
    write_json(Path(options.output), {"about": about, "distances": found})


if __name__ == "__main__":
    main()
