"""Make the picture of the README: a row of frames for each prompt, from the bundled model with its defaults.

python examples/readme_picture.py [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import carrara
from carrara.core.media import write_picture
from carrara.systems.phases import film

PROMPTS = (
    "a red ball bounces on the grass",
    "a green frog jumps over the pond",
    "a yellow bird takes flight in the night sky",
    "a blue car moves right on the sand",
)


def main() -> None:
    model = carrara.load(sys.argv[1] if len(sys.argv) > 1 else "pond")
    clips = torch.stack([model.generate(prompt, seed=1).frames for prompt in PROMPTS])
    path = Path(__file__).parents[1] / "docs" / "pictures" / "readme.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, film(clips, count=7))
    print(path)


if __name__ == "__main__":
    main()
