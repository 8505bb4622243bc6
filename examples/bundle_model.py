"""Give a trained model other sampling defaults and write it, in float16, where it is to be found.

python examples/bundle_model.py runs/pond/denoiser/model -o src/carrara/models/pond --steps 30 --shift 2 --guidance 4

The solver's settings for diffusers are written from the same defaults, so that both programs make the same clip. A
model that is there already is replaced once the new one is whole and loads; its README.md, the model card, stays.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from carrara.systems.latent import LatentVideo

CARD = "README.md"


def bundle(model: Path, output: Path, changes: Mapping[str, Any]) -> LatentVideo:
    """Write `model` with these changes of its sampling to `output`, and return it as it is read from there."""
    system = LatentVideo.load(model)
    sampling = replace(system.defaults.sampling, **changes)
    sampling.points()  # raises for steps and shifts that cannot be
    system.defaults = replace(system.defaults, sampling=sampling)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as home:
        made = Path(home) / "model"
        system.save(made)
        LatentVideo.load(made)
        if (output / CARD).is_file():
            shutil.copy(output / CARD, made / CARD)
        if output.exists():
            output.rename(Path(home) / "before")
        made.rename(output)
    return LatentVideo.load(output)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--shift", type=float)
    parser.add_argument("--guidance", type=float)
    options = vars(parser.parse_args(arguments))
    model, output = options.pop("model"), options.pop("output")
    if output.exists() and not (output / "model_index.json").is_file():
        raise SystemExit(f"{output}: holds no model; give a model folder to replace, or one that does not exist")
    try:
        made = bundle(model, output, {name: value for name, value in options.items() if value is not None})
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"{output}: {made.defaults.sampling}")


if __name__ == "__main__":
    main()
