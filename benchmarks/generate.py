"""What a user waits for: `carrara --help`, one clip from a cold start (wall time and peak memory), a warm one in each
precision.

python benchmarks/generate.py [--model pond] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a red ball bounces on the grass"


def measure(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of one command."""
    begin = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    command = [sys.executable, "-m", "carrara", *arguments]
    process = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"carrara {' '.join(arguments)} failed with status {status}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def warm(model: str, repeats: int) -> dict[str, float]:
    """Median wall seconds of a clip of a loaded model, by precision, measured in turn."""
    import carrara

    models = {precision: carrara.load(model, precision=precision) for precision in ("float32", "bfloat16")}
    found: dict[str, list[float]] = {precision: [] for precision in models}
    for repeat in range(repeats + 1):
        for precision, loaded in models.items():
            begin = time.perf_counter()
            loaded.generate(PROMPT, seed=1, progress=False)
            if repeat:  # the first one warms up
                found[precision].append(time.perf_counter() - begin)
    return {precision: statistics.median(seconds) for precision, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pond")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = str(Path(folder) / "clip.mp4")
        commands = {
            "carrara --help": ["--help"],
            "carrara generate": [
                "generate",
                PROMPT,
                "-o",
                clip,
                "--overwrite",
                "--seed",
                "1",
            ],
        }
        commands["carrara generate"] += ["--model", options.model]
        for name, arguments in commands.items():
            runs = [measure(arguments) for _ in range(options.repeats)]
            print(
                f"{name:<17} {min(r[0] for r in runs):5.2f} to {max(r[0] for r in runs):.2f} s wall, "
                f"peak {max(r[1] for r in runs):.0f} MB"
            )
    seconds = warm(options.model, options.repeats)
    ratio = seconds["float32"] / seconds["bfloat16"]
    said = ", ".join(f"{precision} {value:.2f} s" for precision, value in seconds.items())
    print(f"{'warm clip':<17} {said}: bfloat16 is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
