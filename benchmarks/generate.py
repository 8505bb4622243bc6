"""What a user waits for: `carrara --help`, and one clip from a cold start; wall time and peak memory.

python benchmarks/generate.py [--model pond] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path


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
                "a red ball bounces on the grass",
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


if __name__ == "__main__":
    main()
