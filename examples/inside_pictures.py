"""Make the pictures of docs/inside.md: a clip emerging, the attention of a patch, the frame-by-frame baseline, and what
the refiner does.

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
from carrara.generation.run import Model
from carrara.systems.phases import to_bytes

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
PROMPT, SEED = "a blue car moves right on the sand", 1
FRAMES = 7  # of each row
REFINED = (
    "a yellow star moves right on the sand",
    "a red fish swims in the pond",
    "a large purple bird goes down in the sky",
    "a green frog jumps over the pond",
)


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
    if model.system.refiner is not None:
        save("refined.png", refined(model))


def refined(model: Model) -> torch.Tensor:
    """Of each prompt the frames as they are decoded, and below as the refiner draws them again."""
    rows = []
    for prompt in REFINED:
        plan = model.plan(Request(prompt, seed=SEED, model=model.name))
        decoded = torch.cat(list(model.system.decode_chunks(model.sample(plan))), dim=2)
        for video in (decoded, model.system.finish(decoded, [prompt])):
            frames = to_bytes(video)[0]
            times = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()
            name = prompt if video is decoded else "drawn again"
            rows.append(captioned(strip(enlarge(frames[times], 128)), name))
    return above(rows)


def save(name: str, picture: torch.Tensor) -> None:
    """With a palette, which keeps pictures of this kind small."""
    image = Image.fromarray(picture.numpy()).quantize(256, kmeans=4)
    image.save(PICTURES / name, optimize=True)
    print(PICTURES / name, (PICTURES / name).stat().st_size)


if __name__ == "__main__":
    main()
