"""Preparing real files beside the least that any program must do: decode, resize, encode, with the same settings.

    python benchmarks/prepare.py CLIPS [--files 12] [--workers 1] [--rounds 3]

The bare program decodes every frame and resizes and encodes those that the wanted rate shows, one file after the
other, with PyAV alone: no cuts, no filters, no colour matrix, no checks, no shards. Both have one thread for each
process; with `--workers 0` both run in this process, and what every run has once (shards, the report with its pictures)
is told apart from what every file costs. Floor: 0.8 of its rate, in source frames per second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
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


def run_bare(jobs: list[tuple[str, str]], workers: int) -> list[tuple[int, int]]:
    """The bare program on every file, in so many processes, or in this one."""
    if not workers:
        return [bare(job) for job in jobs]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(bare, jobs))


@contextmanager
def measured(rates: list[tuple[float, float]]) -> Iterator[list[int]]:
    """Appends frames per processor-second, of all processes that have ended meanwhile, and per second."""
    count: list[int] = []
    wall, before = time.perf_counter(), os.times()
    yield count
    after = os.times()
    rates.append((count[0] / (sum(after[:4]) - sum(before[:4])), count[0] / (time.perf_counter() - wall)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", help="folder of videos")
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = sorted(path for path in Path(options.clips).rglob("*") if path.suffix.lower() in VIDEOS)
    if not found:
        raise SystemExit(f"{options.clips}: no videos; name a folder of clips")
    chosen = found[:: max(1, len(found) // options.files)]
    rates: dict[str, list[tuple[float, float]]] = {"bare": [], "prepare": []}
    files: list[float] = []  # frames per processor-second of this process, up to the end of the last file
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "in")
        source.mkdir()
        for path in chosen:
            shutil.copy(path, source / path.name)
        jobs = [(str(path), str(Path(place, f"{path.name}.mp4"))) for path in sorted(source.iterdir())]
        for number in range(options.rounds):
            with measured(rates["bare"]) as count:
                counts = run_bare(jobs, options.workers)
                count.append(sum(decoded for decoded, _ in counts))
            with measured(rates["prepare"]) as count:
                begin, ends = time.process_time(), [0.0]
                index = prepare(
                    source,
                    Path(place, f"out{number}"),
                    workers=options.workers,
                    progress=lambda done, total, ends=ends: ends.append(time.process_time()),
                )
                count.append(sum(decoded for decoded, _ in counts))
            files.append(count[0] / (ends[-1] - begin))
        kept = sum(shard["clips"] * shard["bucket"][0] for shard in index["shards"])
    decoded, encoded = (sum(count[side] for count in counts) for side in (0, 1))
    print(f"{len(jobs)} files, {decoded} frames decoded; encoded: {encoded} bare, {kept} in pieces that were kept")
    middle = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    for name, (busy, wall) in middle.items():
        print(f"{name:<8} {wall:7.1f} source frames/s, {busy:7.1f} per processor-second")
    ratios = [middle["prepare"][clock] / middle["bare"][clock] for clock in (1, 0)]
    print(f"ratio    {ratios[0]:7.2f}                  {ratios[1]:7.2f}  (floor 0.8)")
    if not options.workers:
        each = sorted(files)[len(files) // 2] / middle["bare"][0]
        print(f"without what is done once for a folder       {each:7.2f}")


if __name__ == "__main__":
    main()
