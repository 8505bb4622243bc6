"""The options that every command has that makes clips with a model. Free of torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction, arg

from carrara.core.options import Flag, Number, Text, Whole, option

if TYPE_CHECKING:
    from carrara.generation.run import Model

Adapters = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FOLDER[:WEIGHT]")]


@dataclass(frozen=True)
class SamplingOptions:
    """The model, and how it samples where that is not as its makers chose."""

    steps: Whole = None
    """Sampling steps."""
    guidance: Number = None
    """How strongly the prompt is followed; 1 is off."""
    low_guidance: Number = None
    """The same of the low-noise expert, of models that have two; guidance is then the high-noise one's."""
    sampler: Text = None
    """Solver, such as unipc, euler, ddim."""
    shift: Number = None
    """How far the noise levels are shifted towards noise."""
    reuse: Number = None
    """Approximate: skip the transformer where its first block changed by less than this share, such as 0.05."""
    interval: Annotated[tuple[float, float] | None, option(metavar="LOW HIGH")] = None
    """Approximate: noise levels in [0, 1] between which guidance acts, such as 0.2 0.8."""
    precision: Text = None
    """What networks compute in, float32 or bfloat16; default float32, or what a foreign model was published in."""
    lora: Adapters = ()
    """Adapter to put on the model, and how much it counts, by default 1; may be repeated."""

    def sampling(self) -> dict[str, Any]:
        """What a `Request` takes of it."""
        names = ("steps", "guidance", "low_guidance", "sampler", "shift", "reuse", "interval")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ClipOptions(SamplingOptions):
    """What is said of a clip besides its prompt."""

    negative: Text = None
    """What not to show."""
    seed: Whole = None
    """Start of the noise; drawn and printed if not given. Several prompts take seed, seed + 1, ..."""
    frames: Whole = None
    """Number of frames, made in one pass: 4k + 1, or 2k + 1 for the bundled model."""
    size: Annotated[str | None, option(metavar="WxH")] = None
    """Width and height in pixels, such as 128x96."""
    fps: Number = None
    """Frames per second."""
    model: Text = None
    """Bundled model or model folder; default pond."""
    overwrite: Flag = False
    """Replace files that exist."""


def load_model(
    name: str | None,
    loras: Sequence[str],
    offload: bool = False,
    compile: bool = False,
    device: str = "cpu",
    precision: str | None = None,
) -> Model:
    """The model of this name, pond if none, with its adapters; says where one was trained on another model."""
    from carrara.generation.run import load

    model = load(name or "pond", offload, loras, compile, device, precision or "")
    if loras:
        from carrara.generation.adapters import other_base

        if warning := other_base(model.system, loras):
            print(f"carrara: {warning}", file=sys.stderr)
    return model
