"""Make the pictures of docs/inside.md: a clip emerging, the attention of a patch, and the frame-by-frame baseline.

python examples/inside_pictures.py [MODEL] [PROMPT] [SEED]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

import carrara
from carrara.generation.baseline import NOISES, frame_by_frame
from carrara.generation.drawing import above, captioned, enlarge, strip
from carrara.generation.explain import explain
from carrara.generation.explain_command import told
from carrara.generation.explain_pictures import attention_sheet, emerging_sheet
from carrara.generation.request import Request

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
PROMPT, SEED = "a blue car moves right on the sand", 1
FRAMES = 7  # of each row


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    model = carrara.load(given.get(0, "pond"))
    plan = model.plan(Request(given.get(1, PROMPT), seed=int(given.get(2, SEED)), model=model.name))
    explanation = explain(model, plan)
    print(told(explanation))
    save("emerging.png", emerging_sheet(explanation.emerging))
    save("attention.png", attention_sheet(explanation))
    rows = {"the model: all frames together": explanation.clip.frames}
    for noise in NOISES:
        rows[f"frame by frame, {noise} noise"] = frame_by_frame(model, plan, noise)
    times = torch.linspace(0, plan.shape.frames - 1, min(FRAMES, plan.shape.frames)).round().long()
    save(
        "frame_by_frame.png", above([captioned(strip(enlarge(clip[times], 128)), name) for name, clip in rows.items()])
    )


def save(name: str, picture: torch.Tensor) -> None:
    """With a palette, which keeps pictures of this kind small."""
    image = Image.fromarray(picture.numpy()).quantize(256, kmeans=4)
    image.save(PICTURES / name, optimize=True)
    print(PICTURES / name, (PICTURES / name).stat().st_size)


if __name__ == "__main__":
    main()
