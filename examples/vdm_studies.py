"""Two studies of a trained VDM, as pictures and numbers.

python examples/vdm_studies.py guidance MODEL OUT [bfloat16]     the same prompts and seeds at several guidance scales
python examples/vdm_studies.py extension MODEL OUT [bfloat16]    longer clips by replacement and by guidance

`guidance` writes a clip for each prompt and scale into OUT/guidance-<scale>/, for `carrara evaluate --clips`, and
OUT/guidance.png with a row for each. `extension` writes OUT/extension.png and OUT/extension.json: how much a frame
differs from the one before, where a block begins and elsewhere (mean absolute difference of values in [-1, 1]). A model
whose blocks fit has no more difference at a seam than elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from carrara.core.media import write_picture, write_video
from carrara.core.names import safe_name
from carrara.core.types import VideoShape
from carrara.recipes.pond import PICTURED
from carrara.systems.cascade import blocks
from carrara.systems.phases import film, to_bytes
from carrara.systems.registry import load_system
from carrara.systems.vdm import VDM, VDMSettings

SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
WAYS = (("replace", 0.0), ("guide", 1.0), ("guide", 2.0), ("guide", 5.0), ("guide", 10.0))


def draw(system: VDM, prompts: Sequence[str], frames: int, guidance: float) -> Tensor:
    """Clips `b 3 t h w` of the model's own size, the number of a prompt being its seed."""
    made = system.defaults
    shape, sampling = VideoShape(frames, made.height, made.width), replace(made.sampling, guidance=guidance)
    return torch.cat([system.sample([prompt], [seed], shape, sampling) for seed, prompt in enumerate(prompts)])


def guidance(system: VDM, out: Path, prompts: Sequence[str], scales: Sequence[float] = SCALES) -> None:
    rows = []
    for scale in scales:
        clips = to_bytes(draw(system, prompts, system.defaults.frames, scale))
        for prompt, clip in zip(prompts, clips):
            path = out / f"guidance-{scale:g}" / f"{safe_name(prompt)}.mp4"
            write_video(path, clip, system.defaults.fps, {"prompt": prompt}, overwrite=True)
        rows.append(film(clips[:4], 8))
        print(f"guidance {scale:g}: {len(clips)} clips", flush=True)
    write_picture(out / "guidance.png", torch.cat(rows))


def extension(system: VDM, out: Path, prompts: Sequence[str], ways: Sequence[tuple[str, float]] = WAYS) -> None:
    settings = system.settings
    frames = settings.frames + 2 * (settings.frames - settings.overlap)
    # Frames that begin what is new in a block.
    seams = [block.start + block.known for block in blocks(frames, settings.frames, settings.overlap) if block.known]
    found, rows, scale = {}, [], system.defaults.sampling.guidance
    for way, weight in ways:
        clips = draw(base_alone(system, replace(settings, extend=way, weight=weight)), prompts, frames, scale)
        steps = clips.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))  # steps[i] leads to frame i + 1
        at = torch.tensor([frame - 1 for frame in seams])
        elsewhere = torch.ones(len(steps), dtype=torch.bool).index_fill(0, at, False)
        name = way if way == "replace" else f"{way} {weight:g}"
        found[name] = {"seam": float(steps[at].mean()), "elsewhere": float(steps[elsewhere].mean())}
        print(name, found[name], flush=True)
        rows.append(film(to_bytes(clips[:2]), frames))
    write_picture(out / "extension.png", torch.cat(rows))
    (out / "extension.json").write_text(json.dumps({"frames": frames, "seams": seams, **found}, indent=2) + "\n")


def base_alone(system: VDM, settings: VDMSettings) -> VDM:
    """The system without its fine stage, with other settings."""
    made = system.defaults
    if system.has_fine:
        sides = made.height // settings.space, made.width // settings.space
        made = replace(made, frames=settings.frames, height=sides[0], width=sides[1], fps=made.fps / settings.time)
    alone = VDM({"base": system.first}, system.text_encoder, system.tokenizer, made, settings)
    alone.precision = system.precision
    return alone


def main() -> None:
    if len(sys.argv) not in (4, 5) or sys.argv[1] not in ("guidance", "extension"):
        raise SystemExit(__doc__)
    out = Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    system = load_system(Path(sys.argv[2]), precision="".join(sys.argv[4:]))
    if not isinstance(system, VDM):
        raise SystemExit(f"{sys.argv[2]}: not a VDM; train one with: carrara train vdm")
    {"guidance": guidance, "extension": extension}[sys.argv[1]](system, out, PICTURED)


if __name__ == "__main__":
    main()
