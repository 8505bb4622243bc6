"""Where measured clips come from: the model, its autoencoder, the truth, and the truth made wrong in time.

Clips of the first three are written as video files and read back, because files are what a user gets; the controls are
made of the truth's files as these are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from carrara.core.media import read_video, write_video
from carrara.core.progress import progress_bar
from carrara.core.types import Decoder, Encoder, VideoShape
from carrara.data.pond.render import render
from carrara.evaluation.controls import CONTROLS, Control
from carrara.evaluation.kept import Made, digest
from carrara.evaluation.prompts import Prompt

MODEL, RECONSTRUCTION, TRUTH = "model", "reconstruction", "truth"
BATCH = 8  # clips that are made at a time


class Generates(Protocol):
    """Makes one video file per prompt: writes `paths[i]` (its extension names the format) from `prompts[i]` and
    `seeds[i]`. Called with a few prompts at a time; may raise for a request that it cannot fulfil."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None: ...


@dataclass(frozen=True)
class Source:
    """Clips of one origin, in the order of the prompts. control: what is done to them as they are read."""

    name: str
    paths: tuple[Path, ...]
    control: Control | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """Frames uint8 `t h w 3` and their rate, clip by clip; a control is seeded by the clip's number."""
        for number, path in enumerate(self.paths):
            frames, fps, _ = read_video(path)
            shown = frames.numpy()
            yield (shown if self.control is None else self.control(shown, number)), fps


def make_sources(
    prompts: Sequence[Prompt],
    folder: Path,
    makers: Mapping[str, Generates],
    shape: VideoShape,
    fps: float,
    codec: tuple[Encoder, Decoder] | None,
    progress: bool | None = None,
    by: str | None = None,
) -> list[Source]:
    """Write the clips of every maker, of the autoencoder and of the truth, each into a folder of its name.

    makers: what generates, by name; by: what makes clips (`kept.identity`), of which those that it made before
    for the same prompts stay. Returns these sources in that order, then the controls.
    """
    found, asked = [], [digest(asdict(prompt)) for prompt in prompts]
    for name in (*makers, *((RECONSTRUCTION,) if codec else ()), TRUTH):
        home = folder / name.replace(" ", "-").replace(",", "")
        home.mkdir(parents=True, exist_ok=True)
        paths = tuple(home / f"{index:04d}.mp4" for index in range(len(prompts)))
        made = Made(home, None if name == TRUTH else by)
        missing = [n for n, path in enumerate(paths) if not made.has(path, asked[n])]
        with progress_bar(f"{name}: clips", progress) as show:
            for start in range(0, len(missing), BATCH):
                chosen = missing[start : start + BATCH]
                part, places = [prompts[n] for n in chosen], [paths[n] for n in chosen]
                if name in makers:
                    makers[name]([p.text for p in part], [p.seed for p in part], places)
                else:
                    write_truth(part, places, shape, fps, codec if name == RECONSTRUCTION else None)
                made.add(places, [asked[n] for n in chosen])
                show(len(prompts) - len(missing) + start + len(part), len(prompts))
        found.append(Source(name, paths))
    return [*found, *(Source(name, found[-1].paths, control) for name, control in CONTROLS.items())]


def write_truth(
    prompts: Sequence[Prompt],
    paths: Sequence[Path],
    shape: VideoShape,
    fps: float,
    codec: tuple[Encoder, Decoder] | None = None,
) -> None:
    """Render the prompts' scenes into files, through an autoencoder if one is given."""
    video = render([prompt.scene for prompt in prompts], shape, fps).video
    for frames, path in zip(video, paths):
        write_video(path, frames if codec is None else reconstruct(frames, *codec), fps, overwrite=True)


@torch.no_grad()
def reconstruct(frames: Tensor, encoder: Encoder, decoder: Decoder) -> Tensor:
    """Frames uint8 `t h w 3` through an autoencoder and back."""
    video = rearrange(frames.float() / 127.5 - 1, "t h w c -> 1 c t h w")
    decoded = decoder.decode(encoder.encode(video)).float()
    return rearrange((decoded.clamp(-1, 1) + 1) * 127.5, "1 c t h w -> t h w c").round().to(torch.uint8)
