"""Overfit a model on a handful of your own clips, and see whether each caption brings its own clip back.

carrara data prepare HANDFUL prepared
python examples/overfit_clips.py prepared -o runs/overfit --minutes 20 20

Trains an autoencoder and a transformer on a prepared folder, nothing held out; then makes a clip for each caption and
asks which of the true clips it is nearest to, by the mean square error of pixels (chance: one in the number of clips).
The picture shows for each caption the true clip, its reconstruction, and what was made. Writes overfit.json and
overfit.png beside the run.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from carrara.autoencoders.losses import psnr
from carrara.core.media import write_picture
from carrara.core.types import VideoShape
from carrara.data.prepared import Prepared
from carrara.recipes import RECIPES
from carrara.recipes.clips import ClipsRecipe
from carrara.systems.latent import LatentVideo
from carrara.systems.phases import film, to_bytes, to_unit


def recipe(data: Path, name: str, minutes: tuple[float, float] | None, threads: int) -> ClipsRecipe:
    """The recipe for so many minutes of its two stages, nothing held out."""
    made = RECIPES[name]()
    assert isinstance(made, ClipsRecipe)
    made = replace(made, data=str(data), held_out=0.0)
    if minutes:
        plans = [
            replace(stage.train, minutes=length, steps=None, threads=threads, validate_every=500, picture_every=1000)
            for stage, length in zip((made.autoencoder, made.denoiser), minutes)
        ]
        made = replace(
            made,
            autoencoder=replace(made.autoencoder, train=plans[0]),
            denoiser=replace(made.denoiser, train=plans[1], caption_dropout=0.05),
        )
    return made


def captioned_clips(prepared: Prepared, most: int) -> list[int]:
    """Clips of the shape that has most of them whose captions are all different."""
    best: list[int] = []
    for numbers in prepared.members:
        first: dict[str, int] = {}
        for number in numbers:
            caption = prepared.rows[number].caption
            if caption and prepared.bucket(number).frames > 1:
                first.setdefault(caption, number)
        best = max(best, list(first.values()), key=len)
    if len(best) < 2:
        raise ValueError(f"{prepared.folder}: needs at least two captioned clips of one shape, to tell them apart")
    return best[:most]


@torch.no_grad()
def make(system: LatentVideo, captions: list[str], shape: VideoShape, seed: int) -> Tensor:
    """A clip for each caption, uint8 `n t h w 3`, all from the same noise: only the words differ."""
    sampling = system.defaults.sampling
    clips = [system.sample([caption], [seed], shape, sampling) for caption in captions]
    return torch.cat([to_bytes(system.autoencoder.decode(latents)) for latents in clips])


@torch.no_grad()
def study(model: Path, prepared: Prepared, most: int, seed: int, folder: Path) -> dict[str, object]:
    """Make, compare, draw; returns what was found."""
    system, numbers = LatentVideo.load(model), captioned_clips(prepared, most)
    shape, captions = prepared.bucket(numbers[0]), [prepared.rows[n].caption or "" for n in numbers]
    true = torch.stack([prepared.frames(number) for number in numbers])
    parts = [system.autoencoder.decode(system.autoencoder.encode(to_unit(clip[None]))) for clip in true]
    again, made = to_bytes(torch.cat(parts)), make(system, captions, shape, seed)
    near = torch.stack([psnr(to_unit(clip[None]).expand(len(true), -1, -1, -1, -1), to_unit(true)) for clip in made])
    nearest = near.argmax(dim=1).tolist()
    rows = torch.stack([true, again, made], dim=1).flatten(0, 1)
    write_picture(folder / "overfit.png", film(rows))
    found = {
        "right": sum(place == number for number, place in enumerate(nearest)),
        "of": len(numbers),
        "psnr_reconstructed": [round(float(value), 2) for value in psnr(to_unit(again), to_unit(true))],
        "psnr_made": [round(float(near[number, number]), 2) for number in range(len(numbers))],
        "psnr_best_other": [
            round(float(torch.cat([row[:number], row[number + 1 :]]).max()), 2) for number, row in enumerate(near)
        ],
        "captions": captions,
        "brings": [captions[place] for place in nearest],
    }
    (folder / "overfit.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="PREPARED")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/overfit"), metavar="RUN")
    parser.add_argument(
        "--recipe", default="clips", choices=[name for name in RECIPES if name in ("clips", "clips-tiny")]
    )
    parser.add_argument("--minutes", type=float, nargs=2, metavar=("AUTOENCODER", "DENOISER"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clips", type=int, default=8, help="clips that are compared, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    minutes = tuple(options.minutes) if options.minutes else None
    model = recipe(options.data, options.recipe, minutes, options.threads).run(options.output)
    found = study(model, Prepared(options.data), options.clips, options.seed, options.output)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    print(f"{found['right']} of {found['of']} captions bring their own clip back: {options.output / 'overfit.png'}")


if __name__ == "__main__":
    main()
