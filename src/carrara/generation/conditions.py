"""What is known of a clip beside its prompt: pictures and clips, and what is to become of them.

One value for every mode, so that modes combine where that means something; `check` refuses what does not, with the
reason. What a condition means for the frames is in `modes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from carrara.core.config import nearest
from carrara.diffusion.conditioning import KNOWN_BY

Source = str | Path | Tensor
"""A file, or frames in memory: uint8 `h w 3` for a picture, `t h w 3` for a clip, bool `h w` or `t h w` for a mask."""

FITS = ("crop", "pad")
FACTORS = (2, 4)
PICTURES = ("image", "last")
CLIPS = ("extend", "between", "interpolate", "inpaint", "edit")
EDIT_STRENGTH = 0.6
_HEAVIEST = 1000  # of guide weights
# What may be said together with each kind of clip (None: with none), beside `fit` and `known_by`.
_TOGETHER: dict[str | None, set[str]] = {
    None: {"image", "last", "loop"},
    "extend": {"before", "last", "loop"},
    "between": set(),
    "interpolate": {"factor"},
    "inpaint": {"mask", "strength"},
    "edit": {"strength", "mask", "image"},
}
_NEEDS = {
    "before": "extend: which clip should come after it?",
    "factor": "interpolate: between the frames of which clip?",
    "mask": "inpaint: which clip is painted on?",
    "strength": "edit or inpaint: which clip is changed?",
}


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a clip is made from. None and False: not asked for.

    image, last: its first and its last picture; extend: a clip to go on from, or, with `before`, to lead up to;
    between: two clips to connect; loop: the end leads back to the beginning; interpolate: a clip to which frames are
    added, `factor` times as many; inpaint: a clip to paint on where `mask` is white; edit: a clip to change, as far as
    `strength` says, in (0, 1]; fit: "crop" or "pad" for pictures of another shape; known_by: how what is known is kept,
    "hold" for models trained for it, else "replace" or "guide"; guide_weight: how strongly "guide" pulls.
    """

    image: Source | None = None
    last: Source | None = None
    extend: Source | None = None
    before: bool = False
    between: tuple[Source, Source] | None = None
    loop: bool = False
    interpolate: Source | None = None
    factor: int | None = None
    inpaint: Source | None = None
    mask: Source | None = None
    edit: Source | None = None
    strength: float | None = None
    fit: str | None = None
    known_by: str | None = None
    guide_weight: float | None = None

    def __eq__(self, other: object) -> bool:
        """Equal where the same is asked of the same files, or of the same tensors."""
        if not isinstance(other, Conditions):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def said(self) -> dict[str, Any]:
        """What is asked for, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    @property
    def clip(self) -> str | None:
        """The kind of clip that is given, one of `CLIPS`; None for none."""
        return next((name for name in CLIPS if getattr(self, name) is not None), None)

    @property
    def pictured(self) -> bool:
        """Whether a picture or a clip is given, so that a prompt is not needed."""
        return self.clip is not None or self.image is not None or self.last is not None

    def sources(self) -> dict[str, Source]:
        """Everything that is read, by name: the two clips of `between` are "between 1" and "between 2"."""
        said = self.said()
        found = {name: said[name] for name in (*PICTURES, *CLIPS, "mask") if name in said and name != "between"}
        pair = dict(zip(("between 1", "between 2"), self.between or ()))
        return {**found, **pair}

    def recorded(self) -> dict[str, Any]:
        """As JSON values for a manifest: files by their path as it was given, frames in memory by IN_MEMORY."""
        return {name: _recorded(value) for name, value in self.said().items()}

    @classmethod
    def from_recorded(cls, values: Mapping[str, Any], where: str) -> Conditions:
        """The inverse. Raises ValueError for an unknown name."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{where}: no condition {name!r}; {nearest(name, known)}")
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)

    def check(self) -> None:
        """Refuse what cannot be meant together, before anything is read. Raises ValueError with the reason."""
        clips = [name for name in CLIPS if getattr(self, name) is not None]
        if len(clips) > 1:
            raise ValueError(f"{clips[0]} and {clips[1]}: each is another way to use a clip; make one after the other")
        kind = self.clip
        for name in self.said():
            if name in ("fit", "known_by", "guide_weight", kind):
                continue
            if name not in _TOGETHER[kind]:
                if kind is None or (name in _NEEDS and name != "strength"):
                    raise ValueError(f"{name}: needs {_NEEDS[name]}")
                raise ValueError(f"{name} and {kind}: {_why_not(name, kind)}")
        if self.loop and self.last is not None:
            raise ValueError("loop and last: a loop ends where it begins; leave one of them out")
        if self.before and (self.loop or self.last is not None):
            said = "loop" if self.loop else "last"
            raise ValueError(f"before and {said}: what is made before a clip ends with that clip; leave out {said}")
        if kind == "inpaint" and self.mask is None:
            raise ValueError("inpaint: needs a mask, a picture or a clip that is white where to paint")
        if self.fit is not None and not self.pictured:
            raise ValueError("fit: says what to do with pictures and clips of another shape, and none is given")
        if self.between is not None and (not isinstance(self.between, (tuple, list)) or len(self.between) != 2):
            raise ValueError("between: give two clips, the one before and the one after")
        self._check_values()

    def _check_values(self) -> None:
        for name, source in self.sources().items():
            if not isinstance(source, (str, Path, Tensor)):
                kind = type(source).__name__
                raise ValueError(f"{name} is a {kind}: expected a path, or a torch tensor (torch.from_numpy makes one)")
            if isinstance(source, (str, Path)) and not str(source):
                raise ValueError(f"{name} is empty: say which file, or leave it out")
        for name, value in (("before", self.before), ("loop", self.loop)):
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: must be True or False")
        factor = self.factor
        if factor is not None and not (isinstance(factor, int) and factor in FACTORS):
            raise ValueError(f"factor={factor!r}: must be 2 or 4, how many times as many frames there will be")
        strength = self.strength
        if strength is not None and (
            isinstance(strength, bool) or not isinstance(strength, (int, float)) or not isfinite(strength)
        ):
            raise ValueError(f"strength={strength!r}: must be a number")
        if strength is not None and not 0 < strength <= 1:
            raise ValueError(f"strength={strength:g}: must be more than 0, which changes nothing, and at most 1")
        if self.fit is not None and self.fit not in FITS:
            raise ValueError(f"unknown fit {self.fit!r}; {nearest(str(self.fit), FITS)}")
        if self.known_by is not None and self.known_by not in KNOWN_BY:
            raise ValueError(f"unknown known_by {self.known_by!r}; {nearest(str(self.known_by), KNOWN_BY)}")
        weight = self.guide_weight
        if weight is not None and self.known_by != "guide":
            raise ValueError(f"guide_weight={weight}: says how strongly known_by=guide pulls; say that too")
        if weight is not None and not (isinstance(weight, (int, float)) and 0 <= weight <= _HEAVIEST):
            raise ValueError(f"guide_weight={weight}: must be a number from 0, which is replace, to {_HEAVIEST}")


IN_MEMORY = "(frames in memory)"


def _recorded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_recorded(item) for item in value]
    return IN_MEMORY if isinstance(value, Tensor) else str(value) if isinstance(value, Path) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return bool(one == other)


def _why_not(name: str, kind: str) -> str:
    if name in PICTURES and kind in ("extend", "between", "interpolate"):
        return "the clip gives these frames itself"
    if name == "loop":
        return "the given clip already says how it ends; loop a clip with extend and loop"
    if name in PICTURES:
        return "the clip gives the frames; to spread a changed first picture use edit and image"
    return f"{name} says nothing about {kind}; leave it out"
