"""Preparing real files beside the least that any program must do: decode, resize, encode, with the same settings.

    python benchmarks/prepare.py CLIPS [--files 12] [--workers 1]

The bare program decodes every frame and resizes and encodes those that the wanted rate shows, one file after the
other, with PyAV alone: no cuts, no filters, no colour matrix, no checks, no shards. Both have one thread for each
process. Floor: 0.8 of its rate, in source frames per second.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import Interpolation, VideoReformatter

from carrara.data.prepare.encode import OPTIONS
from carrara.data.prepare.fitting import fit
from carrara.data.prepare.run import prepare
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.sources import VIDEOS


def bare(job: tuple[str, str]) -> tuple[int, int]:
    """Decode, resize, encode: (frames decoded, frames encoded)."""
    source, target = job
    settings, resize = Settings(), VideoReformatter()
    decoded = encoded = 0
    with av.open(source) as container, av.open(target, "w") as out:
        read: Any = container.streams.video[0]
        read.codec_context.thread_count = 1
        size = fit(read.width, read.height, settings).size
        stream: Any = out.add_stream("libx264", rate=Fraction(settings.fps), options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in container.decode(read):
            decoded += 1
            due = int((frame.time or 0) * settings.fps) + 1
            if due <= encoded:
                continue
            small = resize.reformat(frame, *size, "yuv420p", interpolation=Interpolation.BICUBIC, threads=1)
            while encoded < due:
                small.pts, small.time_base = encoded, Fraction(1, int(settings.fps))
                out.mux(stream.encode(small))
                encoded += 1
        out.mux(stream.encode(None))
    return decoded, encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="?", default="../shared/realdata/clips")
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = sorted(path for path in Path(options.clips).rglob("*") if path.suffix.lower() in VIDEOS)
    if not found:
        raise SystemExit(f"{options.clips}: no videos; name a folder of clips")
    chosen = found[:: max(1, len(found) // options.files)]
    rates: dict[str, list[float]] = {"bare": [], "prepare": []}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "in")
        source.mkdir()
        for path in chosen:
            shutil.copy(path, source / path.name)
        jobs = [(str(path), str(Path(place, f"{path.name}.mp4"))) for path in sorted(source.iterdir())]
        with ProcessPoolExecutor(options.workers) as pool:
            list(pool.map(bare, jobs[:1]))  # imports, and a first look at the disk
            for number in range(options.rounds):
                start = time.perf_counter()
                counts = list(pool.map(bare, jobs))
                took = time.perf_counter() - start
                decoded, encoded = (sum(count[side] for count in counts) for side in (0, 1))
                rates["bare"].append(decoded / took)
                start = time.perf_counter()
                index = prepare(source, Path(place, f"out{number}"), workers=options.workers)
                rates["prepare"].append(decoded / (time.perf_counter() - start))
                kept = sum(shard["clips"] * shard["bucket"][0] for shard in index["shards"])
    print(f"{len(jobs)} files, {decoded} frames decoded; encoded: {encoded} bare, {kept} in pieces that were kept")
    middle = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    for name, value in middle.items():
        print(f"{name:<8} {value:7.1f} source frames/s")
    print(f"ratio    {middle['prepare'] / middle['bare']:7.2f}  (floor 0.8)")


if __name__ == "__main__":
    main()
