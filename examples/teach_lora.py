"""Teach a model a colour that it has never seen, by adapters that learn for minutes; and what it forgets by that.

python examples/teach_lora.py OUT [--model MODEL] [--minutes 3] [--help]

A few dozen clips of the pond with actors in the new colour are rendered, told in words among which one is new, and
encoded by the model's autoencoder. Two adapters learn: one from these clips alone, one with as many steps on clips of
the old colours. Before and after, the same prompts and seeds are made, with the new word and with the old colours, and
every clip is read as the evaluation reads it.

OUT/teach.json: shares with 95% intervals; OUT/teach.png: the same prompts before, after, and after with old clips;
OUT/alone, OUT/together: the runs, whose adapters are in lora/model.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carrara.core.config import to_dict
from carrara.core.media import write_picture
from carrara.core.options import parse
from carrara.core.types import VideoShape
from carrara.data.latents import LatentBatch, write_latents
from carrara.data.pond import lexicon, world
from carrara.data.pond.captions import LEVELS, caption
from carrara.data.pond.render import render
from carrara.data.pond.sampling import SINGLES, sample_scene
from carrara.data.pond.validity import table_reason
from carrara.data.pond.world import Scene
from carrara.diffusion.fields import TimeDraw
from carrara.systems.latent import LatentVideo
from carrara.systems.phases import film, to_bytes, to_unit

TAUGHT_SCENES, KEPT_SCENES, ASKED_SCENES = 2**35, 2**35 + 2**20, 2**41 + 2**40  # beside what any model was trained on
BATCH = 8  # clips rendered and encoded at a time


@dataclass(frozen=True)
class Teach:
    """What is taught, by how much, and how it is measured."""

    out: str
    """Folder to write."""
    model: str = "pond"
    """Bundled model or model folder."""
    colour: str = "magenta"
    """The new word."""
    rgb: tuple[int, int, int] = (235, 0, 150)
    """What it means, sRGB."""
    clips: int = 48
    """Clips in the new colour."""
    kept: int = 96
    """Clips in old colours, for the second adapter."""
    minutes: float = 3.0
    """Of training, for each adapter."""
    updates: int = 0
    """Steps of the adapter that learns from new clips alone, instead of minutes; the other takes twice as many, half
    of them on old clips."""
    rank: int = 16
    """Of the adapters."""
    targets: tuple[str, ...] = ("self_attention.*", "cross_attention.*", "mlp.*")
    """Layers that are adapted."""
    learning_rate: float = 3e-3
    """Of the adapters."""
    times: TimeDraw = field(default_factory=lambda: TimeDraw(uniform=0.25, mean=1.0))
    """How noise levels are drawn; colours are decided at high ones."""
    asked: int = 24
    """Prompts with the new word; and as many, twice over, with the old colours."""
    steps: int = 20
    """Sampling steps."""
    seed: int = 0
    """Of noise and training."""


def register(name: str, rgb: tuple[int, int, int]) -> None:
    """Make a colour one of the pond's, for painting, telling and reading. Before anything that reads is imported."""
    if name in world.COLOURS:
        raise ValueError(f"{name!r} is a colour that the pond has; teach another")
    near = min(world.COLOURS, key=lambda other: world.colour_distance(rgb, world.COLOURS[other]))
    if world.colour_distance(rgb, world.COLOURS[near]) < 30:
        raise ValueError(f"{name} {rgb} is too near to {near}: nobody could say which of them is seen")
    if "carrara.evaluation.reading.colours" in sys.modules:
        raise RuntimeError("the reader has already listed its colours")
    world.COLOURS[name] = rgb
    lexicon.COLOURS[name] = (name,)


def scenes_of(first: int, count: int, colour: str | None, new: str) -> list[Scene]:
    """Scenes of one actor: all of this colour, or of any but the new one."""
    found: list[Scene] = []
    for seed in range(first, first + 100 * count):
        scene = sample_scene(seed, SINGLES)
        if colour is not None:
            scene = scene.with_actor(0, colour=colour)
        if table_reason(scene) is None and (colour is not None or scene.actors[0].colour != new):
            found.append(scene)
        if len(found) == count:
            return found
    raise ValueError(f"{colour}: goes with too few scenes of the pond")


def told(scene: Scene) -> list[str]:
    """Ways to say it, every one of which names the colour."""
    said = [caption(scene, level, seed, seed == 0) for level in LEVELS for seed in range(3)]
    return list(dict.fromkeys(each.text for each in said if "actors.0.colour" in each.attributes))


def encode(system: LatentVideo, scenes: Sequence[Scene], folder: Path, made_by: str) -> Path:
    """The scenes' clips as latents, with their captions."""
    made = system.defaults
    shape = VideoShape(made.frames, made.height, made.width)
    keyframes = (shape.frames // 2, shape.frames - 1)

    @torch.no_grad()
    def produce(start: int, stop: int) -> Iterator[LatentBatch]:
        for at in range(start, stop, BATCH):
            some = scenes[at : min(at + BATCH, stop)]
            video = to_unit(render(some, shape, made.fps).video)
            alone = [system.autoencoder.encode(video[:, :, frame : frame + 1])[:, :, 0] for frame in keyframes]
            frames = torch.tensor([keyframes] * len(some))
            records = [{"captions": told(scene)} for scene in some]
            yield LatentBatch(system.autoencoder.encode(video), records, torch.stack(alone, dim=1), frames)

    about = {"frames": shape.frames, "height": shape.height, "width": shape.width, "fps": made.fps}
    write_latents(folder, produce, len(scenes), made_by, 1000, torch.float16, about)
    return folder


def measure(make: Callable[[str, int], Tensor], fps: float, scenes: Sequence[Scene], new: str) -> dict[str, Any]:
    """Make a clip of every scene's prompt and read it: is its colour right, its background, is it of the new colour?"""
    from carrara.evaluation.reading.clip import read_clip
    from carrara.evaluation.statistics import Share

    right, background, named, read, films = 0, 0, 0, Counter[str](), []
    for seed, scene in enumerate(scenes):
        clip = make(caption(scene, "short").text, seed)
        seen = read_clip(clip, fps)
        colour = str(seen.actors[0].colour) if seen.actors else "nobody"
        read[colour] += 1
        right += colour == scene.actors[0].colour
        named += colour == new
        background += seen.background == scene.background
        films.append(clip)
    shares = {"colour": right, "background": background, f"read as {new}": named}
    found = {name: Share(count, len(scenes)).plain() for name, count in shares.items()}
    return {**found, "read": dict(read.most_common()), "films": films}


def sampled(system: LatentVideo, steps: int, seed: int) -> Callable[[str, int], Tensor]:
    """What a model makes of a prompt: uint8 `t h w 3`."""
    made = system.defaults
    shape, sampling = VideoShape(made.frames, made.height, made.width), replace(made.sampling, steps=steps)

    def make(prompt: str, number: int) -> Tensor:
        latents = system.sample([prompt], [1000 * seed + number], shape, sampling)
        with torch.no_grad():
            return to_bytes(system.finish(system.autoencoder.decode(latents), [prompt]))[0]

    return make


def teach(asked: Teach) -> dict[str, Any]:
    """The whole study; returns what is written to teach.json."""
    from carrara.recipes.clips_autoencoder import encoder_fingerprint
    from carrara.recipes.lora import LoRA, lora
    from carrara.systems.find import find_model
    from carrara.systems.lora import apply
    from carrara.systems.lora_files import read_adapter

    out, folder = Path(asked.out), find_model(asked.model)
    system = LatentVideo.load(folder)
    made_by = encoder_fingerprint(folder / "vae")
    new = encode(system, scenes_of(TAUGHT_SCENES, asked.clips, asked.colour, asked.colour), out / "new", made_by)
    old = encode(system, scenes_of(KEPT_SCENES, asked.kept, None, asked.colour), out / "old", made_by)
    with_new = scenes_of(ASKED_SCENES, asked.asked, asked.colour, asked.colour)
    with_old = scenes_of(ASKED_SCENES + 2**20, 2 * asked.asked, None, asked.colour)

    results: dict[str, Any] = {"about": {**to_dict(asked), "weights": system.fingerprint}}
    rows: dict[str, list[Tensor]] = {}

    def judge(name: str, system: LatentVideo) -> None:
        make, parts = sampled(system, asked.steps, asked.seed), {}
        for part, scenes in (("new", with_new), ("old", with_old)):
            parts[part] = measure(make, system.defaults.fps, scenes, asked.colour)
            films = parts[part].pop("films")
            rows.setdefault(part, []).append(torch.stack(films[:6]))
        results[name] = {**results.get(name, {}), **parts}
        print(name, json.dumps(results[name]), flush=True)

    truth = dict(zip(with_new, _rendered(system, with_new)))
    results["what the autoencoder lets through"] = _ceiling(system, truth, asked.colour)
    judge("before", system)
    for name, clips in (("alone", (str(new),)), ("together", (str(new), str(old)))):
        recipe = replace(lora(), model=asked.model, clips=clips, shares=(1.0,) * len(clips), seed=asked.seed, batch=32)
        settings = replace(recipe.train, minutes=asked.minutes, learning_rate=asked.learning_rate, picture_every=0)
        if asked.updates:
            settings = replace(settings, minutes=None, steps=asked.updates * len(clips))
        begin, busy = time.perf_counter(), time.process_time()
        terms = LoRA(asked.rank, float(asked.rank), asked.targets)
        adapter = replace(recipe, train=settings, times=asked.times, lora=terms).run(out / name)
        spent = {"seconds": time.perf_counter() - begin, "processor_seconds": time.process_time() - busy}
        results[name] = {**{clock: round(value, 1) for clock, value in spent.items()}, **_steps(out / name)}
        taught = LatentVideo.load(folder)
        apply(taught, read_adapter(adapter))
        judge(name, taught)
    write_picture(out / "teach.png", _picture(rows))
    (out / "teach.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


def _rendered(system: LatentVideo, scenes: Sequence[Scene]) -> Tensor:
    made = system.defaults
    return render(scenes, VideoShape(made.frames, made.height, made.width), made.fps).video


@torch.no_grad()
def _ceiling(system: LatentVideo, truth: dict[Scene, Tensor], new: str) -> dict[str, Any]:
    """The truth of the new prompts through the autoencoder: what no adapter of the denoiser can exceed."""
    clips = iter(truth.values())

    def reconstruct(_: str, __: int) -> Tensor:
        video = to_unit(next(clips)[None])
        return to_bytes(system.autoencoder.decode(system.autoencoder.encode(video)))[0]

    found = measure(reconstruct, system.defaults.fps, list(truth), new)
    return {name: value for name, value in found.items() if name != "films"}


def _steps(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "lora/metrics.jsonl").read_text().splitlines()]
    return {"steps": lines[-1]["step"], "loss": [line["loss_mean"] for line in lines if "loss_mean" in line]}


def _picture(rows: dict[str, list[Tensor]]) -> Tensor:
    """For every prompt a row: before, alone, together; the prompts with the new word above those without."""
    return _joined([_joined([film(clips, 4) for clips in stages], 1) for stages in rows.values()], 0)


def _joined(pictures: Sequence[Tensor], axis: int, gap: int = 6) -> Tensor:
    """Pictures `h w 3` side by side (1) or one below the other (0), with white between."""
    parts = [pictures[0]]
    for picture in pictures[1:]:
        sides = list(picture.shape)
        sides[axis] = gap
        parts += [picture.new_full(sides, 255), picture]
    return torch.cat(parts, dim=axis)


def main() -> None:
    asked = parse(Teach, _positional(sys.argv[1:]), "teach_lora.py")
    register(asked.colour, asked.rgb)
    teach(asked)


def _positional(arguments: list[str]) -> list[str]:
    """The folder may come first, without its name."""
    return ["--out", *arguments] if arguments and not arguments[0].startswith("-") else arguments


if __name__ == "__main__":
    main()
