"""Clips of any model as one measurement wants them: at one size, each timed, with the memory that one takes.

Called as the evaluation calls whatever it measures. A clip is made at the model's own size, with as many frames as are
asked for, and what is larger is averaged over squares of pixels; what the model makes is timed, not the file.

    python -m carrara.generation.measured MODEL FRAMES HEIGHT WIDTH FPS ALONE PRECISION

makes one clip and prints the bytes that the process held at most: of all of it, the interpreter, libraries and weights
included, which is why it is a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import reduce
from torch import Tensor

from carrara.core.media import read_video, write_video
from carrara.core.types import VideoShape
from carrara.generation.baseline import frame_by_frame
from carrara.generation.request import Request
from carrara.generation.run import GenerationError, Model, load

_STATUS = Path("/proc/self/status")
_SECONDS = "seconds"


@dataclass
class MeasuredClips:
    """A model's clips at `shape` and `fps`. alone: every frame made alone, from noise of its own."""

    model: Model
    shape: VideoShape
    fps: float
    alone: bool = False

    @classmethod
    def open(
        cls, folder: Path, shape: VideoShape, fps: float, alone: bool = False, precision: str = ""
    ) -> MeasuredClips:
        """Load a model folder, to compute in a precision as `load` has it.

        Raises ValueError where its clips cannot be brought to the shape and the rate.
        """
        model = load(str(folder), device="cpu", precision=precision)
        made = model.system.defaults
        factors = {made.height / shape.height, made.width / shape.width}
        if len(factors) > 1 or not min(factors).is_integer() or made.fps != fps:
            raise ValueError(
                f"{folder}: makes {made.width}x{made.height} at {made.fps:g} frames per second; clips of "
                f"{shape.width}x{shape.height} at {fps:g} are compared, so it must make a multiple of that size"
            )
        return cls(model, shape, fps, alone)

    @property
    def makes(self) -> VideoShape:
        """Its own clip."""
        defaults = self.model.system.defaults
        return VideoShape(self.shape.frames, defaults.height, defaults.width)

    @property
    def about(self) -> dict[str, str]:
        """What makes them: the same says the same clips."""
        alone = {"frames": "alone"} if self.alone else {}
        return {"weights": self.model.system.fingerprint, "precision": self.model.system.precision} | alone

    def clip(self, prompt: str, seed: int) -> Tensor:
        """One clip, uint8 `t h w 3`, at the model's own size."""
        plan = self.model.plan(Request(prompt, seed=seed, frames=self.shape.frames, model=self.model.name))
        if self.alone:
            return frame_by_frame(self.model, plan, "fresh")
        return torch.cat(list(self.model.frames(plan, progress=False)))

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None:
        """Write `paths[i]`, replacing what is there, from `prompts[i]` and `seeds[i]`; the file says its seconds."""
        for prompt, seed, path in zip(prompts, seeds, paths):
            began = time.perf_counter()
            frames = self.clip(prompt, seed)
            spent = f"{time.perf_counter() - began:.3f}"
            about = {"prompt": prompt, "seed": str(seed), "model": self.model.name, _SECONDS: spent}
            write_video(path, shrink_to(frames, self.shape), self.fps, about, overwrite=True)

    def seconds(self, paths: Sequence[Path]) -> list[float]:
        """How long each of these clips took, in whichever process it was written."""
        return [float(read_video(path)[2][_SECONDS]) for path in paths]

    def peak(self) -> int | None:
        """Bytes that a process which makes one clip holds at most; None where the system does not say."""
        if not _STATUS.is_file():
            return None
        shape = self.shape
        sizes = (shape.frames, shape.height, shape.width)
        said = (self.model.name, *sizes, self.fps, int(self.alone), self.model.system.precision)
        done = subprocess.run(
            [sys.executable, "-m", "carrara.generation.measured", *map(str, said)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise GenerationError(f"{self.model.name}: no clip to measure memory of: {done.stderr.strip()[-300:]}")
        return int(done.stdout.split()[-1])


def shrink_to(frames: Tensor, shape: VideoShape) -> Tensor:
    """uint8 `t h w 3` averaged over squares of pixels to the shape's sides, of which its own are a multiple."""
    factor = frames.shape[1] // shape.height
    if factor == 1:
        return frames
    means = reduce(frames.float(), "t (h p) (w q) c -> t h w c", "mean", p=factor, q=factor)
    return means.round().to(torch.uint8)


def _main(arguments: Sequence[str]) -> None:
    folder, *sizes, fps, alone, precision = arguments
    made = MeasuredClips.open(Path(folder), VideoShape(*map(int, sizes)), float(fps), alone == "1", precision)
    made.clip("a ball", 0)
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")))


if __name__ == "__main__":
    _main(sys.argv[1:])
