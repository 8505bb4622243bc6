"""How fast the bundled autoencoder trains, encodes and decodes, beside the matrix rate of the same run.

python benchmarks/autoencoder.py [--threads 2] [--batch 8]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from carrara.autoencoders.losses import autoencoder_loss
from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import small_128


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of some runs, after one to warm up."""
    run()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2048, 2048, generator=generator).bfloat16()
    rate = 2 * 2048**3 / seconds(lambda: matrix @ matrix, 10)
    autoencoder = VideoAutoencoder(small_128()).initialise(generator)
    video = torch.rand(options.batch, 3, 17, 128, 128, generator=generator) * 2 - 1

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            reconstruction, posterior = autoencoder.reconstruct(video, generator)
            loss = autoencoder_loss(video, reconstruction, posterior)["loss"]
        loss.backward()

    @torch.no_grad()
    def encode() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return autoencoder.encode(video)

    latents = encode()

    @torch.no_grad()
    def decode() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return autoencoder.decode(latents)

    print(
        f"{rate / 1e9:.0f} GFLOP/s bfloat16 matrices; 17 x 128 x 128, batch {options.batch}, {options.threads} threads"
    )
    for name, run in (("train", train), ("encode", encode), ("decode", decode)):
        taken, work = seconds(run), flops(run)
        print(
            f"{name:<7} {options.batch / taken:6.1f} clips/s  {work / options.batch / 1e9:6.1f} GFLOP a clip  "
            f"{work / taken / rate:4.0%} of the matrix rate"
        )


if __name__ == "__main__":
    main()
