"""Does joint training help a VDM? Its base network with no, 4 and 8 independent images behind every clip, each trained
with the same compute, from the same seeds.

python examples/vdm_images.py OUT [--flops 1e14] [--images 0 4 8] [--seeds 3]

Trains what is missing below OUT (after a stop it goes on) and writes OUT/images.json and OUT/images.png: the error on
held-out clips, the mean over levels of noise and at each, without images behind them; how many clips and images were
shown; and clips of seed 0, a row for each count. Ratios are to the first count, seed by seed, with 95% intervals over
seeds: runs of a seed begin with the same weights and see the same clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from carrara.core.config import read_json, write_json
from carrara.core.media import write_picture
from carrara.evaluation.statistics import mean_estimate
from carrara.recipes.compute import COMPUTE
from carrara.recipes.runs import seeded
from carrara.recipes.systems import contest
from carrara.recipes.vdm import VDMRecipe
from carrara.training.metrics import read_metrics

Losses = Mapping[str, float]


def run_of(recipe: VDMRecipe, images: int, seed: int, flops: float) -> VDMRecipe:
    """The recipe's base alone, with so many images behind a clip."""
    return seeded(replace(recipe, base=replace(recipe.base, images=images, flops=flops), only_base=True), seed)


def trained(recipe: VDMRecipe, folder: Path) -> dict[str, Any]:
    """What a run came to, trained first where it is not."""
    recipe.run(folder)
    last = [line for line in read_metrics(folder / "base" / "metrics.jsonl") if line["kind"] == "validation"][-1]
    stage = read_json(folder / COMPUTE)["stages"][0]
    clips = stage["steps"] * recipe.base.batch
    return {
        "clips": clips,
        "images": clips * recipe.base.images,
        "losses": {name: value for name, value in last.items() if name.startswith("loss")},
    }


def compared(losses: Mapping[int, Sequence[Losses]]) -> dict[str, dict[str, Any]]:
    """For every count of images and every loss its mean over seeds, and its ratio to that of the first count."""
    first = next(iter(losses.values()))
    table: dict[str, dict[str, Any]] = {}
    for count, seeds in losses.items():
        row = table[str(count)] = {}
        for name in seeds[0]:
            ratio = mean_estimate([own[name] / other[name] for own, other in zip(seeds, first, strict=True)])
            mean = sum(own[name] for own in seeds) / len(seeds)
            row[name] = {"mean": mean, "ratio": ratio.value, "low": ratio.low, "high": ratio.high}
    return table


def table(rows: Mapping[str, Mapping[str, Any]], shown: Mapping[str, Mapping[str, int]]) -> str:
    """The mean loss and the losses by level, a line for each count of images."""
    names = list(next(iter(rows.values())))
    lines = ["  ".join([f"{'images':>6}", f"{'clips':>7}", *(f"{name.removeprefix('loss_'):>8}" for name in names)])]
    for count, row in rows.items():
        cells = (f"{row[name]['mean']:8.4f}" for name in names)
        mean = row["loss_mean"]
        ratio = f"mean: {mean['ratio']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] of the first"
        lines.append("  ".join([f"{count:>6}", f"{shown[count]['clips']:>7}", *cells, ratio]))
    return "\n".join(lines)


def study(recipe: VDMRecipe, out: Path, flops: float, images: Sequence[int], seeds: int) -> dict[str, Any]:
    """Train every run, seed by seed, and write what they come to, as far as seeds are whole."""
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in images}
    for seed in range(seeds):
        for count in images:
            print(f"{count} images, seed {seed}", flush=True)
            found[count].append(trained(run_of(recipe, count, seed, flops), out / f"images-{count}" / f"seed-{seed}"))
        rows = compared({count: [run["losses"] for run in runs] for count, runs in found.items()})
        shown = {str(count): {name: runs[0][name] for name in ("clips", "images")} for count, runs in found.items()}
        write_json(out / "images.json", {"flops": flops, "seeds": seed + 1, "shown": shown, "losses": rows})
        print(table(rows, shown), flush=True)
    write_picture(out / "images.png", torch.cat([last_picture(out / f"images-{count}" / "seed-0") for count in images]))
    return read_json(out / "images.json")


def last_picture(folder: Path) -> torch.Tensor:
    """What a base drew for the fixed prompts when it was done, `h w 3`."""
    with Image.open(max((folder / "base" / "pictures").glob("step-*.png"))) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--flops", type=float, default=1e14, help="of every run")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 4, 8], help="behind every clip")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    try:
        study(contest().vdm, args.out, args.flops, args.images, args.seeds)
    except ValueError as error:
        raise SystemExit(f"{error}") from error


if __name__ == "__main__":
    main()
