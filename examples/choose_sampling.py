"""Which sampler, steps, shift and guidance follow the prompts best? Tried on validation prompts, never on the test set.

python examples/choose_sampling.py runs/pond/denoiser/model -o runs/sampling --steps 20 40 --shift 1 3 --guidance 3 5

makes a clip of every prompt with every combination, reads the written files, and prints a table: how many clips show
each attribute that was asked for, and everything, with networks evaluated per clip. Prompts are of seed 1000. What has
been measured is kept in the folder, so that more settings can be added.

At which noise level is what decided? `--truth-at 0.5 0.7 0.9` begins at these levels from the true clip of the prompt,
noised so far, instead of from noise alone (1): an attribute that survives from a level on is decided above it.

What is lost without any motion? `--frames 1` asks for pictures of the same scenes, in canonical words. As a clip,
`--frames N` makes so many frames instead of the model's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from carrara.core.config import write_json
from carrara.core.media import write_video
from carrara.core.types import VideoShape, check_frames
from carrara.core.weights import fingerprint
from carrara.data.pond.captions import caption
from carrara.data.pond.render import render
from carrara.diffusion.conditioning import cut
from carrara.diffusion.samplers import SAMPLERS, evaluations
from carrara.evaluation.adherence.verdicts import ATTRIBUTES, Asked, adherence
from carrara.evaluation.prompts import Prompt, draw_prompts
from carrara.evaluation.statistics import Share
from carrara.systems.latent import LatentVideo, Sampling, Start
from carrara.systems.phases import to_bytes, to_unit

VALIDATION_SEED, BATCH = 1000, 4
ROWS = (*ATTRIBUTES, "all")


def as_picture(prompt: Prompt) -> Prompt:
    """A picture of the prompt's scene: nothing is asked of motions and cameras."""
    scene = replace(prompt.scene, still=True)
    said = caption(scene, prompt.level, prompt.seed, canonical=True)
    return replace(prompt, scene=scene, text=said.text, asked=Asked.stated(scene, said))


def measure(
    system: LatentVideo, prompts: Sequence[Prompt], sampling: Sampling, level: float = 1.0, frames: int | None = None
) -> list[dict[str, bool]]:
    """The verdicts on a clip of each prompt, begun from the truth at a noise level; 1 is from noise alone. frames: of a
    clip, None for the model's."""
    defaults, verdicts = system.defaults, []
    shape = VideoShape(defaults.frames if frames is None else frames, defaults.height, defaults.width)
    with tempfile.TemporaryDirectory() as home, torch.no_grad():
        path = Path(home) / "clip.mp4"
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            begun = None
            if level < 1:
                truth = to_unit(render([p.scene for p in part], shape, defaults.fps).video)
                begun = Start(system.autoencoder.encode(truth), level)
            latents = system.sample([p.text for p in part], [p.seed for p in part], shape, sampling, start=begun)
            video = system.finish(system.autoencoder.decode(latents), [p.text for p in part])
            for prompt, frames in zip(part, to_bytes(video)):
                write_video(path, frames, defaults.fps, overwrite=True)
                verdicts.append(dict(adherence(path, prompt.asked)[0]))
    return verdicts


def row(name: str, verdicts: Sequence[Mapping[str, bool]], networks: int) -> str:
    """A line of the table."""
    cells = []
    for attribute in ROWS:
        asked = [found[attribute] for found in verdicts if attribute in found]
        cells.append(f"{Share(sum(asked), len(asked)).value:.0%}" if asked else "")
    return "| " + " | ".join([name, str(networks), *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--actors", type=int, choices=(1, 2), help="only prompts with so many actors")
    parser.add_argument("--sampler", nargs="+", default=["unipc"], choices=sorted(SAMPLERS))
    parser.add_argument("--steps", nargs="+", type=int, default=[30])
    parser.add_argument("--shift", nargs="+", type=float, default=[1.0])
    parser.add_argument("--guidance", nargs="+", type=float, default=[4.0])
    parser.add_argument("--truth-at", nargs="+", type=float, default=[1.0], metavar="LEVEL")
    parser.add_argument("--frames", type=int, help="of a clip, instead of the model's; 1: pictures")
    options = parser.parse_args()
    if wrong := [level for level in options.truth_at if not 0 < level <= 1]:
        parser.error(f"--truth-at {wrong[0]:g}: must be a noise level above 0, at most 1")
    system = LatentVideo.load(options.model)
    if options.frames is not None:
        try:
            check_frames(options.frames, system.stride.time)
        except ValueError as error:
            parser.error(f"--{error}")
    prompts = draw_prompts(options.prompts, VALIDATION_SEED)
    if options.actors:
        prompts = [prompt for prompt in prompts if len(prompt.scene.actors) == options.actors]
    if options.frames == 1:
        prompts = [as_picture(prompt) for prompt in prompts]
    kept = options.output / "sampling.json"
    about: dict[str, Any] = {
        "model": fingerprint(sorted(options.model.rglob("*.safetensors"))),
        "prompts": [p.text for p in prompts],
        "frames": options.frames,
    }
    past: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else about | {"settings": {}}
    if {name: past.get(name) for name in about} != about:
        raise SystemExit(f"{kept}: measured on another model, other prompts or clips; give another folder")
    print("| setting | networks | " + " | ".join(ROWS) + " |")
    print("|---" * (2 + len(ROWS)) + "|")
    for sampler, steps, shift, guidance, level in product(
        options.sampler, options.steps, options.shift, options.guidance, options.truth_at
    ):
        name = f"{sampler}, {steps} steps, shift {shift:g}, guidance {guidance:g}"
        name += f", truth at {level:g}" if level < 1 else ""
        sampling = replace(system.defaults.sampling, sampler=sampler, steps=steps, shift=shift, guidance=guidance)
        if name not in past["settings"]:
            past["settings"][name] = measure(system, prompts, sampling, level, options.frames)
            write_json(kept, past)
        sides, left = 1 if guidance == 1 else 2, cut(sampling.points(), level).steps if level < 1 else steps
        print(row(name, past["settings"][name], sides * evaluations(sampler, left)), flush=True)


if __name__ == "__main__":
    main()
