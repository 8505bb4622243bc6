"""Overfit a model on a handful of your own clips, and see whether each caption brings its own clip back.

carrara data prepare HANDFUL prepared
python examples/overfit_clips.py prepared -o runs/overfit --minutes 7 5

Trains an autoencoder and a transformer on a prepared folder, nothing held out; then makes a clip for each caption and
asks which of the true clips it is nearest to, by the mean square error of pixels (chance: one in the number of clips).
The picture shows for each caption the true clip, its reconstruction, and what was made. Writes overfit.json and
overfit.png beside the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from carrara.autoencoders.losses import psnr
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.media import write_picture
from carrara.core.types import VideoShape
from carrara.data.prepared import Prepared
from carrara.denoisers.dit import DiTConfig
from carrara.recipes.clips import ClipsRecipe, clips, clips_tiny
from carrara.recipes.clips_data import Views
from carrara.recipes.clips_start import ONE_LEVEL
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.phases import film, to_bytes, to_unit


def handful() -> ClipsRecipe:
    """A small model for a handful of clips of about 64 x 48: six of 9 frames each came back in 12 minutes of a core."""
    made = clips()
    eye = VideoAutoencoderConfig(32, None, 16, (1, 2, 2), 1, temporal_downsample=(False, True), patch=2)
    rates = {"learning_rate": 1e-3, "matrix_learning_rate": 2e-3, "ema": 0.99, "warmup": 20}
    plans = [
        replace(stage.train, minutes=minutes, validate_every=500, picture_every=1000, **rates)
        for stage, minutes in ((made.autoencoder, 7.0), (made.denoiser, 5.0))
    ]
    views = Views(pixels=40_000, side=32, frames=5)
    autoencoder = replace(made.autoencoder, model=eye, views=views, train=plans[0])
    denoiser = replace(
        made.denoiser,
        model=DiTConfig(heads=4, head_dim=32, layers=4, ffn_dim=256),
        train=plans[1],
        batch=6,
        text_width=64,
        text_layers=1,
        fields=ONE_LEVEL,
        keyframes=0,
        sampling=Sampling(steps=20, guidance=2.0, shift=1.0),
    )
    return replace(made, autoencoder=autoencoder, denoiser=denoiser)


SIZES: dict[str, Callable[[], ClipsRecipe]] = {"handful": handful, "clips": clips, "clips-tiny": clips_tiny}


def recipe(data: Path, name: str, minutes: tuple[float, float] | None, threads: int) -> ClipsRecipe:
    """The recipe of a size, with nothing held out, for so many minutes of its two stages."""
    made = replace(SIZES[name](), data=str(data), held_out=0.0)
    if not minutes:
        return made
    plans = [
        replace(stage.train, minutes=length, steps=None, threads=threads)
        for stage, length in zip((made.autoencoder, made.denoiser), minutes)
    ]
    return replace(
        made, autoencoder=replace(made.autoencoder, train=plans[0]), denoiser=replace(made.denoiser, train=plans[1])
    )


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
    parser.add_argument("--recipe", default="handful", choices=list(SIZES))
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
