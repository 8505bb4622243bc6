"""Measuring a model: prompts from scenes it has never seen, clips from the model, verdicts from the files' pixels.

The prompts come from fixed seeds outside the range that training draws from, half of them with combinations of
attributes that training never shows together. Beside the model stand two ceilings on the same scenes: *truth* (the
pond's own renders through the same file format: what the reader can read at all) and, given an autoencoder,
*reconstruction* (those renders through it: what any denoiser on its latents could reach).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from carrara.core.config import write_json
from carrara.core.media import read_video, write_video
from carrara.core.progress import progress_bar
from carrara.core.types import Decoder, Encoder, VideoShape
from carrara.data.pond.captions import LEVELS, caption
from carrara.data.pond.render import render
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.world import Scene
from carrara.evaluation.adherence import ATTRIBUTES, Asked, score
from carrara.evaluation.reading import Reading, read_clip
from carrara.evaluation.statistics import Share, failure_sheet, table, tally

# Seeds of scenes. Training draws below 2**40, evaluation from there on: no prompt is a scene of the training.
HELD_IN_START, HELD_OUT_START = 2**40, 2**41
MOST_PROMPTS = 10_000  # of one evaluation; its seeds are those from seed * MOST_PROMPTS
MOST_SEED = 1_000_000
PROMPTS_MIX = Mix(two=0.15, wall=0.0, camera=0.0)
ROWS = (*ATTRIBUTES, "all")
MOST_FAILURES = 40


class Generates(Protocol):
    """Makes one video file per prompt: writes `paths[i]` (its extension names the format) from `prompts[i]` and
    `seeds[i]`. Called with a few prompts at a time; may raise for a request that it cannot fulfil."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None: ...


@dataclass(frozen=True)
class Prompt:
    """A scene, what is said of it, and what that commits to; split: "held in" or "held out"."""

    scene: Scene
    text: str
    level: str
    asked: Asked
    seed: int
    split: str


@dataclass(frozen=True)
class Result:
    """One clip: what was asked, what was read, and the verdicts; the frames only of some failures, to be shown."""

    prompt: Prompt
    reading: Reading
    verdicts: Mapping[str, bool]
    frames: np.ndarray | None = field(default=None, repr=False)

    def plain(self) -> dict[str, Any]:
        prompt = self.prompt
        return {
            "prompt": prompt.text,
            "level": prompt.level,
            "split": prompt.split,
            "seed": prompt.seed,
            "asked": prompt.asked.plain(),
            "read": self.reading.plain(),
            "verdicts": dict(self.verdicts),
        }


def draw_prompts(count: int, seed: int = 0, mix: Mix = PROMPTS_MIX) -> list[Prompt]:
    """`count` prompts, alternately from the held-in and the held-out split, the caption levels in turn.

    Raises ValueError for a count or seed outside the ranges kept free for evaluation.
    """
    if not 1 <= count <= MOST_PROMPTS:
        raise ValueError(f"prompts={count}: must be from 1 to {MOST_PROMPTS}")
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed={seed}: must be from 0 to {MOST_SEED}")
    levels, prompts = tuple(LEVELS), []
    for index in range(count):
        split, start = (("held in", HELD_IN_START), ("held out", HELD_OUT_START))[index % 2]
        scene_seed = start + seed * MOST_PROMPTS + index
        scene = sample_scene(scene_seed, mix, "train" if split == "held in" else "held_out")
        level = levels[index // 2 % len(levels)]
        said = caption(scene, level, scene_seed, canonical=index // (2 * len(levels)) % 2 == 0)
        prompts.append(Prompt(scene, said.text, level, Asked.stated(scene, said), scene_seed, split))
    return prompts


def judge(prompts: Sequence[Prompt], paths: Sequence[Path], show: Callable[[int, int], None]) -> list[Result]:
    """Read the written files and score them."""
    results, failures = [], 0
    for number, (prompt, path) in enumerate(zip(prompts, paths)):
        frames, fps, _ = read_video(path)
        reading = read_clip(frames.numpy(), fps)
        verdicts = score(reading, prompt.asked)
        failures += not verdicts["all"]
        kept = not verdicts["all"] and failures <= MOST_FAILURES
        results.append(Result(prompt, reading, verdicts, frames.numpy() if kept else None))
        show(number + 1, len(prompts))
    return results


def write_truth(
    prompts: Sequence[Prompt],
    paths: Sequence[Path],
    shape: VideoShape,
    fps: float,
    codec: tuple[Encoder, Decoder] | None,
) -> None:
    """Render the prompts' scenes into files, through an autoencoder if one is given."""
    for start in range(0, len(prompts), 8):
        part = prompts[start : start + 8]
        video = render([prompt.scene for prompt in part], shape, fps).video
        for frames, path in zip(video, paths[start : start + 8]):
            write_video(path, frames if codec is None else reconstruct(frames, *codec), fps, overwrite=True)


@torch.no_grad()
def reconstruct(frames: Tensor, encoder: Encoder, decoder: Decoder) -> Tensor:
    """Frames uint8 `t h w 3` through an autoencoder and back."""
    video = rearrange(frames.float() / 127.5 - 1, "t h w c -> 1 c t h w")
    decoded = decoder.decode(encoder.encode(video)).float()
    return rearrange((decoded.clamp(-1, 1) + 1) * 127.5, "1 c t h w -> t h w c").round().to(torch.uint8)


def evaluate(
    make: Generates | None,
    folder: str | Path,
    *,
    prompts: int = 200,
    seed: int = 0,
    shape: VideoShape | None = None,
    fps: float = 8.0,
    codec: tuple[Encoder, Decoder] | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Score a model on fixed prompts, beside the ceilings; prints the table, and returns and writes the report.

    make: the model (None: only the ceilings); shape, fps: of the ceilings' renders, the model's own clip for a fair
    comparison (17 x 128 x 128 at 8 if None); codec: the model's encoder and decoder, for the reconstruction ceiling;
    about: what the report should say of the model and its sampler settings. Writes into `folder`: the clips, one
    folder per source; `adherence.json`; `failures.png`. The same arguments give the same prompts and seeds.
    """
    folder = Path(folder)
    drawn = draw_prompts(prompts, seed)
    shape = shape or VideoShape(17, 128, 128)
    results: dict[str, list[Result]] = {}
    sources: dict[str, Callable[[Sequence[Prompt], Sequence[Path]], None]] = {}
    if make is not None:
        sources["model"] = lambda part, paths: make([p.text for p in part], [p.seed for p in part], paths)
    if codec is not None:
        sources["reconstruction"] = lambda part, paths: write_truth(part, paths, shape, fps, codec)
    sources["truth"] = lambda part, paths: write_truth(part, paths, shape, fps, None)
    for name, write in sources.items():
        paths = [folder / name / f"{index:04d}.mp4" for index in range(len(drawn))]
        (folder / name).mkdir(parents=True, exist_ok=True)
        with progress_bar(f"{name}: clips", progress) as show:
            for start in range(0, len(drawn), 8):
                write(drawn[start : start + 8], paths[start : start + 8])
                show(min(start + 8, len(drawn)), len(drawn))
        with progress_bar(f"{name}: reading", progress) as show:
            results[name] = judge(drawn, paths, show)
    report = summarise(results, prompts, seed, shape, fps, about or {})
    write_json(folder / "adherence.json", report)
    shown = results["model" if make is not None else "truth"]
    failures = [(r.frames, r.prompt.text, describe(r)) for r in shown if r.frames is not None]
    failure_sheet(folder / "failures.png", failures)
    print(table(breakdown(results), ROWS))
    return report


def breakdown(results: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, Share]]:
    """Shares by attribute: per source, and for the first source also per split."""
    columns: dict[str, dict[str, Share]] = {}
    for number, (name, found) in enumerate(results.items()):
        columns[name] = tally([r.verdicts for r in found], ROWS)
        for split in ("held in", "held out") if number == 0 else ():
            columns[f"{name}, {split}"] = tally([r.verdicts for r in found if r.prompt.split == split], ROWS)
    return columns


def summarise(
    results: Mapping[str, Sequence[Result]],
    prompts: int,
    seed: int,
    shape: VideoShape,
    fps: float,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The report: protocol, shares with intervals (overall, by split, level and number of actors), and every clip."""
    report: dict[str, Any] = {
        "protocol": {
            "prompts": prompts,
            "seed": seed,
            "scene seeds": {
                "held in": HELD_IN_START + seed * MOST_PROMPTS,
                "held out": HELD_OUT_START + seed * MOST_PROMPTS,
            },
            "renders": {"frames": shape.frames, "height": shape.height, "width": shape.width, "fps": fps},
            "interval": "Wilson 95%",
            "model": dict(about),
        },
        "scores": {},
    }
    for name, found in results.items():
        groups: dict[str, list[Mapping[str, bool]]] = {"everything": [r.verdicts for r in found]}
        for r in found:
            actors = "one actor" if len(r.prompt.scene.actors) == 1 else "two actors"
            for group in (r.prompt.split, r.prompt.level, actors):
                groups.setdefault(group, []).append(r.verdicts)
        report["scores"][name] = {
            group: {key: share.plain() for key, share in tally(verdicts, ROWS).items()}
            for group, verdicts in groups.items()
        }
    report["clips"] = {name: [r.plain() for r in found] for name, found in results.items()}
    return report


def describe(result: Result) -> str:
    """What was read of a clip, on one line, wrong things first."""
    reading = result.reading
    wrong = ", ".join(name for name, right in result.verdicts.items() if not right and name != "all")
    actors = "; ".join(f"{a.size} {a.colour} {a.kind} {a.motion}" for a in reading.actors)
    return f"wrong: {wrong} | read: {reading.count} on {reading.background}: {actors}"
