"""How fast the recipe `pond` renders and encodes the clips that its denoiser learns from, beside the matrix rate.

    python benchmarks/cache.py [--threads 2] [--clips 1024]

Floor on two CPU cores: 100,000 clips of 17 x 64 x 64, with four frames of each encoded alone, in 45 minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measuring import matrix_rate
from torch.utils.flop_counter import FlopCounterMode

from carrara.recipes.pond import pond
from carrara.recipes.pond_data import ENCODE_BATCH, encode_clips
from carrara.systems.find import find_model
from carrara.systems.folder import read_autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clips", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, recipe, autoencoder = torch.device("cpu"), pond(), read_autoencoder(find_model("pond") / "vae")
    source = recipe.source(recipe.denoiser.mix, device)

    def cache(first: int, count: int) -> None:
        with TemporaryDirectory() as home:
            encode_clips(Path(home) / "latents", source, lambda: autoencoder, first, count, "", recipe.denoiser.shard)

    with FlopCounterMode(display=False) as counter:
        cache(0, ENCODE_BATCH)
    work = counter.get_total_flops() / ENCODE_BATCH
    rate = matrix_rate(torch.bfloat16, device)
    begin = time.perf_counter()
    cache(ENCODE_BATCH, options.clips)
    each = (time.perf_counter() - begin) / options.clips
    print(
        f"{1 / each:.1f} clips/s on {options.threads} threads, rendered, encoded and written; "
        f"100,000 in {100_000 * each / 60:.0f} minutes\n{work / 1e9:.1f} GFLOP a clip, "
        f"{work / each / rate:.0%} of the bfloat16 matrix rate ({rate / 1e9:.0f} GFLOP/s)"
    )


if __name__ == "__main__":
    main()
