"""A process that trains and is killed, for `test_stop_and_resume.py`.

`python kills.py` forks one process for every line of JSON on its input, so that torch is imported once: it answers with
the process's id, and when that has ended with its exit status. `python kills.py SPEC` is one such process.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer does, for a second: before forking once is enough
from torch import Tensor, nn

from carrara.core.weights import save_weights
from carrara.data.batches import indices
from carrara.data.latents import LatentBatch, LatentCache, write_latents
from carrara.training.config import TrainConfig
from carrara.training.loop import train

EVERY = 3
CONFIG = TrainConfig(
    steps=14, warmup=2, optimizer="muon", log_every=1, validate_every=5, picture_every=0, checkpoint_every=EVERY,
    checkpoint_every_minutes=0, threads=1,
)  # fmt: skip


class Cached:
    """Learns to undo noise on the clips of a cache; says every loss to a file as soon as it is known."""

    def __init__(self, folder: Path, pause: float = 0.0) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.ModuleDict(
            {"start": nn.Linear(12, 400), "blocks": nn.ModuleList(nn.Linear(400, 400) for _ in range(3))}
        )
        self.module["end"] = nn.Linear(400, 12)
        self.cache = LatentCache.open(folder.parent / "latents", "encoder")
        self.folder, self.pause = folder, pause

    def forward(self, x: Tensor) -> Tensor:
        x = self.module["start"](x)
        for block in self.module["blocks"]:
            x = x + block(x).relu()
        return self.module["end"](x)

    def batch(self, step: int) -> Tensor:
        return self.cache[indices(step, 4, len(self.cache), 0)].latents.float()

    def loss(self, batch: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        clips = batch.flatten(1)
        noised = clips + torch.randn(clips.shape, generator=generator)
        loss = (self.forward(noised).float() - clips).square().mean()
        with (self.folder / "losses").open("a") as file:
            file.write(f"{step} {loss.item().hex()}\n")
        time.sleep(self.pause)
        return {"loss": loss}

    def validate(self) -> dict[str, float]:
        return {"mean": float(self.forward(torch.ones(1, 12)).float().mean())}

    def picture(self) -> None:
        return None

    def export(self, folder: Path) -> None:
        save_weights(self.module.state_dict(), folder / "weights.safetensors")


def write_clips(folder: Path) -> None:
    def produce(start: int, stop: int) -> Any:
        values = torch.randn(stop - start, 3, 1, 2, 2, generator=torch.Generator().manual_seed(start))
        yield LatentBatch(values, [{}] * (stop - start), None, None)

    write_latents(folder, produce, 12, "encoder", shard=4)


def run(folder: str, pause: float = 0.0, limit: int = 0, fatal: bool = False) -> None:
    """Train. limit: no file may grow beyond so many bytes; fatal: and who tries dies at that byte, as by a kill."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    phase = Cached(place, pause)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
    train(phase, CONFIG, place, {"of": "tests"}, io.StringIO())


def child(spec: dict[str, Any]) -> int:
    try:
        run(**spec)
    except (ValueError, OSError) as error:
        Path(spec["folder"], "error").write_text(f"{type(error).__name__}: {error}")
        return 2
    return 0


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            code = 70
            try:
                code = child(json.loads(line))
            finally:
                os._exit(code)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    sys.exit(child(json.loads(sys.argv[1]))) if sys.argv[1:] else serve()
