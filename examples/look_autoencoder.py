"""Judge an autoencoder: PSNR of held-out clips by motion, what is read from its reconstructions, actors at 4x zoom.

python examples/look_autoencoder.py runs/pond/autoencoder -o runs/autoencoder.png --prompts 120

RUN is a training folder (its last checkpoint's averaged weights), an autoencoder's folder, or a model folder. The
picture shows clips from the worst to the best, every other frame: the actor in the truth, below it the reconstruction.
Prompts are of seed 1000 (validation), so that nothing is chosen on the test set.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat

from carrara.autoencoders.losses import actor_boxes, psnr
from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.config import from_dict
from carrara.core.media import write_picture, write_video
from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.evaluation.adherence.verdicts import ATTRIBUTES, adherence
from carrara.evaluation.prompts import Prompt, draw_prompts
from carrara.evaluation.sources import reconstruct
from carrara.evaluation.statistics import tally
from carrara.systems.folder import read_autoencoder
from carrara.systems.phases import to_unit
from carrara.training.loop import load_ema

SIDE, ZOOM, SHOWN = 24, 4, 8  # pixels of a window around an actor, its magnification, clips in the picture


def load(folder: Path) -> VideoAutoencoder:
    """The autoencoder of a training run, of a model, or of a folder of its own."""
    for place in (folder, folder / "vae", folder / "model"):
        if (place / "config.json").is_file() and not (folder / "checkpoints").is_dir():
            return read_autoencoder(place).eval()
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["recipe"]["autoencoder"]["model"]
    autoencoder = VideoAutoencoder(from_dict(VideoAutoencoderConfig, settings, "model"))
    load_ema(folder, autoencoder)
    return autoencoder.eval()


def windows(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Every other frame of `t h w 3` around the first actor, `n side side 3`."""
    found = []
    for t in range(0, len(frames), 2):
        places = (mask[t] == 1).nonzero()
        middle = places.float().mean(0) if len(places) else torch.tensor(frames.shape[1:3]) / 2
        top, left = (int((centre - SIDE / 2).clamp(0, side - SIDE)) for centre, side in zip(middle, frames.shape[1:3]))
        found.append(frames[t, top : top + SIDE, left : left + SIDE])
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("autoencoder.png"))
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    autoencoder = load(options.run)
    shape = VideoShape(17, options.size, options.size)

    whole, boxes, verdicts = [], defaultdict(list), []
    clips: list[tuple[float, Prompt, torch.Tensor]] = []
    with tempfile.TemporaryDirectory() as home:
        for prompt in draw_prompts(options.prompts, 1000):
            truth = render([prompt.scene], shape, 8.0)
            made = reconstruct(truth.video[0], autoencoder, autoencoder)
            write_video(Path(home) / "clip.mp4", made, 8.0, overwrite=True)
            verdicts.append(adherence(Path(home) / "clip.mp4", prompt.asked)[0])
            pair = to_unit(made[None]), to_unit(truth.video)
            whole.append(float(psnr(*pair)))
            inside = float(psnr(*pair, actor_boxes(truth.mask)))
            if len(prompt.scene.actors) == 1 and inside == inside:
                boxes[prompt.scene.actors[0].motion].append(inside)
                rows = [windows(video, truth.mask[0]) for video in (truth.video[0], made)]
                clips.append((inside, prompt, rearrange(torch.stack(rows), "r n h w c -> (r h) (n w) c")))
    every = [value for values in boxes.values() for value in values]
    print(f"{options.run}: {options.prompts} held-out clips")
    print(f"PSNR  whole frame {np.mean(whole):.2f} dB  boxes of single actors {np.mean(every):.2f} dB")
    print("boxes by motion  " + "  ".join(f"{name} {np.mean(v):.1f}" for name, v in sorted(boxes.items())))
    for name, share in tally(verdicts, (*ATTRIBUTES, "all")).items():
        print(f"read from reconstructions  {name:<11} {share.right} of {share.total}")
    clips.sort(key=lambda clip: clip[0])
    picked = [
        clips[place] for place in sorted({round(float(place)) for place in np.linspace(0, len(clips) - 1, SHOWN)})
    ]
    sheet = rearrange([clip[2] for clip in picked], "s h w c -> (s h) w c")
    write_picture(options.output, repeat(sheet, "h w c -> (h p) (w q) c", p=ZOOM, q=ZOOM).contiguous())
    for inside, prompt, _ in picked:
        print(f"  {inside:.1f} dB  {prompt.text}")
    print(options.output)


if __name__ == "__main__":
    main()
