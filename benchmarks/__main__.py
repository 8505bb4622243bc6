"""Every benchmark, one after the other, each in its own process: `make bench`.

Run it on a machine that does nothing else. Figures are ratios within one run wherever that is possible.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = ("pond", "cache", "autoencoder", "transformer", "unet", "generate", "inference", "memory", "stream_decode")


def main() -> None:
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / f"{name}.py")], check=True)


if __name__ == "__main__":
    main()
