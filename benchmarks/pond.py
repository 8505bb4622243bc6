"""How fast the pond makes clips: sampling, simulation and rendering together, on two threads.

    python benchmarks/pond.py [--threads 2] [--seconds 5] [--device cpu]

Floors on two CPU cores: 300 clips/s at 17 x 64 x 64, or 80 at 17 x 128 x 128.
"""

from __future__ import annotations

import argparse
import time

import torch

from carrara.core.types import VideoShape
from carrara.data.pond.render import render
from carrara.data.pond.sampling import sample_scene


def clips_per_second(shape: VideoShape, batch: int, seconds: float, device: str) -> tuple[float, float]:
    """Clips per second of wall time and of processor time, over fresh scenes."""
    made = 0
    render([sample_scene(seed) for seed in range(batch)], shape, device=device)  # measures the shapes, warms up
    wall, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        scenes = [sample_scene(seed) for seed in range(made, made + batch)]
        render(scenes, shape, device=device).video[0, 0, 0, 0].cpu()
        made += batch
    return made / (time.perf_counter() - wall), made / (time.process_time() - busy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for side, batch in ((64, 128), (128, 64)):
        rate, busy = clips_per_second(VideoShape(17, side, side), batch, options.seconds, options.device)
        print(f"17 x {side} x {side}: {rate:.0f} clips/s on {options.threads} threads, {busy:.0f} per processor-second")


if __name__ == "__main__":
    main()
