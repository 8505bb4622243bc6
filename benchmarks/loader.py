"""What the loader costs a training step: both stages of `carrara train clips`, by the loop's own figures.

python benchmarks/loader.py PREPARED [--steps 20] [--threads 1]

Each stage is trained for so many steps with batches from the folder (decoded, or read from the mapped cache) and as
many with the same batches held in memory, in turn; samples per second are those of `metrics.jsonl`. The last figure is
the processor time of making a batch over that of a step, which holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from carrara.data.clip_latents import encode_prepared, open_latents
from carrara.data.clip_pixels import ClipReader
from carrara.data.prepared import Prepared
from carrara.recipes.clips import ClipsRecipe, clips
from carrara.recipes.clips_autoencoder import ClipsAutoencoderPhase
from carrara.recipes.clips_data import Split, ViewBatches, encoding, without_actors
from carrara.recipes.prepared_words import words_of
from carrara.training.config import TrainConfig
from carrara.training.loop import train
from carrara.training.metrics import read_metrics


class Trial:
    """A phase whose batches are made as they come, or of which so many are `held` from before the first step; nothing
    is written at its end."""

    def __init__(self, phase: Any, held: int = 0) -> None:
        self._phase, self._held = phase, [phase.batch(step) for step in range(held)]

    def batch(self, step: int) -> Any:
        return self._held[step] if self._held else self._phase.batch(step)

    def export(self, folder: Path) -> None:
        (folder / "nothing").touch()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._phase, name)


def rate(phase: Any, config: TrainConfig) -> float:
    """Samples per second of the run's last line, which leaves the first steps out."""
    with tempfile.TemporaryDirectory() as folder:
        train(phase, config, Path(folder))
        lines = [line for line in read_metrics(Path(folder) / "metrics.jsonl") if line["kind"] == "train"]
    return float(lines[-1]["samples_per_second"])


def compare(name: str, make: Callable[[], Any], config: TrainConfig, repeats: int) -> None:
    """Print what batches from the folder cost against those held in memory."""
    steps = config.steps or 0
    found = [(rate(Trial(make()), config), rate(Trial(make(), steps), config)) for _ in range(repeats)]
    loaded, held = (statistics.median(column) for column in zip(*found))
    phase = make()
    generator = torch.Generator()
    making, working = [], []
    for step in range(steps):
        begin = time.process_time()
        batch = phase.batch(step)
        middle = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            phase.loss(batch, step, generator.manual_seed(step))["loss"].backward()
        making.append(middle - begin)
        working.append(time.process_time() - middle)
    share = sum(making) / sum(working)
    print(
        f"{name:<12} {loaded:8.2f} samples/s loaded {held:8.2f} held  loader {max(0.0, held / loaded - 1):6.1%}", end=""
    )
    print(f"   processor time of a batch {1000 * sum(making) / steps:7.2f} ms, {share:.2%} of a step")


def phases(
    data: Path, cache: Path, threads: int, memory: int
) -> tuple[Callable[[], Any], Callable[[], Any], ClipsRecipe]:
    """Makers of the two stages' phases, untrained, on the CPU."""
    recipe = replace(clips(), data=str(data), held_out=0.0)
    prepared, stage = Prepared(data), recipe.autoencoder
    split, reader = Split.of(prepared, 0.0, 0), ClipReader(prepared, threads, memory)
    fixed = without_actors(prepared.frames(split.validation(prepared, 1)[0])[None])
    frozen = stage.begin(0)[0].eval().requires_grad_(False)
    encode_prepared(
        prepared, cache, encoding(frozen, 1 << 20, torch.device("cpu")), "untrained", frozen.latent_channels
    )
    caches = open_latents(prepared, cache, "untrained")

    def autoencoder() -> ClipsAutoencoderPhase:
        return ClipsAutoencoderPhase(
            stage.begin(0)[0], ViewBatches(reader, split, stage.views, 0), fixed, stage.loss, list
        )

    words = words_of(prepared, recipe.denoiser.words)
    return autoencoder, lambda: recipe.denoiser_phase(prepared, split, caches, frozen, None, words), recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="PREPARED")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, default=0, help="bytes of decoded clips that are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as cache:
        autoencoder, denoiser, recipe = phases(options.data, Path(cache), options.threads, options.memory)
        brief = {"minutes": None, "steps": options.steps, "validate_every": 0, "picture_every": 0, "decay_share": 0.0}
        for name, make, stage in (
            ("autoencoder", autoencoder, recipe.autoencoder),
            ("denoiser", denoiser, recipe.denoiser),
        ):
            plan = replace(stage.train, **brief, log_every=options.steps // 2, threads=options.threads)
            compare(name, make, plan, options.repeats)


if __name__ == "__main__":
    main()
