"""How good is every mode? Each on scenes of the pond, beside copying, cross-fading and the prompt alone, as one table.

python examples/measure_modes.py -o runs/modes --cases 12

makes the answers of `mode_tasks.py` and `mode_lengths.py` for each scene, measures them (`mode_measures.py`) and prints
means with 95% intervals; modes.md in the folder is the table, and for the first scenes a picture of every mode shows
its answers one below the other. What has been measured is kept in modes.json, so that cases and modes can be added. A
seed from 1000 on draws other scenes, for whoever tunes something:

python examples/measure_modes.py -o runs/guide --seed 1000 --only extend --weights 1 2 5 10
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mode_lengths import LENGTHS
from mode_measures import NAMES, SHARES, Measured, measure
from mode_tasks import MODES, Case, Mode, draw_scenes
from torch import Tensor

from carrara.core.config import nearest, to_dict, write_json
from carrara.core.media import write_picture
from carrara.diffusion.conditioning import GUIDE_WEIGHT
from carrara.evaluation.statistics import mean_estimate
from carrara.generation.run import Model, load
from carrara.systems.phases import film

ALL: Mapping[str, Mode] = {**MODES, **LENGTHS}
SHOWN = 9  # frames of an answer in a picture
HEADS = {
    "told": "told, dB",
    "made": "made, dB",
    "velocity": "velocity error",
    "whole": "in view",
    "seam": "flicker at the seam",
}
Found = dict[str, dict[str, dict[str, Measured]]]  # mode, answer, case


def run(
    model: Model,
    cases: int,
    seed: int,
    modes: Sequence[str],
    weights: Sequence[float],
    folder: Path,
    sheets: int = 0,
    half: bool = False,
) -> Found:
    """Measure what is not in the folder yet; everything that is in it. half: matrix products in bfloat16."""
    kept = folder / "modes.json"
    system = model.system
    about: dict[str, Any] = {
        "model": model.name,
        "fingerprint": system.fingerprint,
        "sampling": to_dict(system.defaults.sampling),
        "seed": seed,
        "half": half,
    }
    past = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {**about, "found": {}}
    if {name: past.get(name) for name in about} != about:
        raise SystemExit(f"{kept}: measured on another model, with other settings or seed; give another folder")
    found: Found = past["found"]
    folder.mkdir(parents=True, exist_ok=True)
    for place, (number, scene) in enumerate(draw_scenes(cases, seed)):
        case, key = Case(model, number, scene), str(number)
        for name in modes:
            task, answers = ALL[name](case, weights)
            made: dict[str, Tensor] = {}
            for label, answer in answers.items():
                measured = found.setdefault(name, {}).setdefault(label, {})
                if key not in measured:
                    with torch.autocast(system.device.type, torch.bfloat16, enabled=half):
                        made[label] = answer()
                    measured[key] = {n: _plain(value) for n, value in measure(task, made[label]).items()}
            if made:
                write_json(kept, past)
            if place < sheets and made:
                _picture(made, folder / f"{name.replace(' ', '-').replace(',', '')}-{place + 1}.png")
        print(f"{place + 1} of {cases}: {case.prompt}", flush=True)
    return found


def table(found: Found, modes: Iterable[str]) -> list[str]:
    """A line for every answer."""
    lines = ["| mode | clips | " + " | ".join(HEADS.get(name, name) for name in NAMES) + " |"]
    lines.append("|---" * (2 + len(NAMES)) + "|")
    for mode in modes:
        for label, measured in found.get(mode, {}).items():
            cells = [cell(name, [one.get(name) for one in measured.values()]) for name in NAMES]
            lines.append(f"| {mode}: {label} | {len(measured)} | " + " | ".join(cells) + " |")
    return lines


def cell(name: str, values: Iterable[float | None]) -> str:
    """A mean with its interval; "exact" where every clip is."""
    known = [math.inf if value == "exact" else value for value in values if value is not None]
    if not known:
        return ""
    finite = [value for value in known if math.isfinite(value)]
    if not finite:
        return "exact"
    text = mean_estimate(finite, share=name in SHARES).text()
    return text if len(finite) == len(known) else f"{text}, {len(known) - len(finite)} exact"


def _plain(value: float | None) -> Any:
    return "exact" if value == math.inf else value


def _picture(made: Mapping[str, Tensor], path: Path) -> None:
    """Every answer a row of frames, in the table's order; they may be of other lengths, so each is sampled alone."""
    rows = [film(frames[None], SHOWN) for frames in made.values()]
    wide = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, 0, 0, wide - row.shape[1])) for row in rows]
    write_picture(path, torch.cat(padded), overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="pond", help="bundled model or model folder")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(ALL), metavar="MODE", help=", ".join(ALL))
    parser.add_argument("--weights", nargs="+", type=float, default=[GUIDE_WEIGHT], help="of reconstruction guidance")
    parser.add_argument("--sheets", type=int, default=2, help="scenes that are shown in pictures")
    parser.add_argument("--bfloat16", action="store_true", help="matrix products in bfloat16: nearly twice as fast")
    options = parser.parse_args()
    for name in options.only:
        if name not in ALL:
            raise SystemExit(f"unknown mode {name!r}; {nearest(name, ALL)}")
    model = load(options.model)
    settings = (options.only, options.weights, options.output, options.sheets, options.bfloat16)
    found = run(model, options.cases, options.seed, *settings)
    how = "bfloat16" if options.bfloat16 else "float32"
    about = f"Model {model.name}, {model.system.fingerprint[:12]}, {how}; scenes of seed {options.seed}."
    lines = [about, "", *table(found, options.only)]
    (options.output / "modes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
