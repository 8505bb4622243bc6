"""Overfit a model on a handful of your own clips, and see whether each caption brings its own clip back.

carrara data prepare HANDFUL prepared
python examples/overfit_clips.py prepared -o runs/overfit --minutes 7 5

Trains an autoencoder and a transformer on a prepared folder, nothing held out; then makes a clip for each caption and
asks which of the true clips it is nearest to, by the mean square error of pixels (chance: one in the number of
captions, where each has as many clips). The picture shows for each caption its nearest true clip, that clip's
reconstruction, and what was made. Writes overfit.json and
overfit.png beside the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

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


def captioned_clips(prepared: Prepared, most: int) -> dict[str, list[int]]:
    """The clips of each caption, at most so many captions, of the shape that has most different ones."""
    best: dict[str, list[int]] = {}
    for numbers in prepared.members:
        found: dict[str, list[int]] = {}
        for number in numbers:
            caption = prepared.rows[number].caption
            if caption and prepared.bucket(number).frames > 1:
                found.setdefault(caption, []).append(number)
        best = max(best, found, key=len)
    if len(best) < 2:
        raise ValueError(f"{prepared.folder}: needs clips of one shape with two captions at least, to tell them apart")
    return dict(list(best.items())[:most])


@torch.no_grad()
def study(model: Path, prepared: Prepared, most: int, seed: int, folder: Path) -> dict[str, object]:
    """Make a clip for each caption, all from the same noise; compare, draw; returns what was found."""
    system, told = LatentVideo.load(model), captioned_clips(prepared, most)
    captions = list(told)
    owners = [caption for caption, numbers in told.items() for _ in numbers]
    true = torch.stack([prepared.frames(number) for numbers in told.values() for number in numbers])
    shape = VideoShape(*true.shape[1:4])
    shown, rows = [], []
    for caption in captions:
        latents = system.sample([caption], [seed], shape, system.defaults.sampling)
        made = system.autoencoder.decode(latents)
        near = torch.tensor([float(psnr(made, to_unit(clip[None]))) for clip in true])
        own = torch.tensor([owner == caption for owner in owners])
        clip = true[int(near.where(own, -torch.inf).argmax())][None]
        again = system.autoencoder.decode(system.autoencoder.encode(to_unit(clip)))
        shown.append(torch.cat([clip, to_bytes(again), to_bytes(made)]))
        values = {
            "reconstructed": float(psnr(again, to_unit(clip))),
            "made": float(near[own].max()),
            "best_other": float(near[~own].max()),
        }
        brings = owners[int(near.argmax())]
        rows.append({"caption": caption, "brings": brings, **{name: round(value, 2) for name, value in values.items()}})
    write_picture(folder / "overfit.png", film(torch.cat(shown)))
    found = {"right": sum(row["caption"] == row["brings"] for row in rows), "of": len(rows), "psnr": rows}
    (folder / "overfit.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="PREPARED")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/overfit"), metavar="RUN")
    parser.add_argument("--recipe", default="handful", choices=list(SIZES))
    parser.add_argument("--minutes", type=float, nargs=2, metavar=("AUTOENCODER", "DENOISER"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clips", type=int, default=8, help="captions that are tried, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    minutes = tuple(options.minutes) if options.minutes else None
    model = recipe(options.data, options.recipe, minutes, options.threads).run(options.output)
    found = study(model, Prepared(options.data), options.clips, options.seed, options.output)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    print(f"{found['right']} of {found['of']} captions bring their own clip back: {options.output / 'overfit.png'}")


if __name__ == "__main__":
    main()
