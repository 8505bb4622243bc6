"""Everything that a clip is made from, read, checked against what it was, and fitted to one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from carrara.generation.conditions import Conditions, Source
from carrara.generation.inputs import digest, fit_frames, fit_mask, read_clip, read_mask, read_picture

SAME_RATE = 0.01  # rates that differ by less are one rate, rounded
_MOTION = "a motion takes a latent frame beyond the first; for one picture use image"
_BETWEEN = "there must be something between"


@dataclass(frozen=True, eq=False)
class Material:
    """What was read: pictures uint8 `h w 3`, clips uint8 `t h w 3`, a mask bool `t h w`, all of one size; fps of the
    clip where its file says it, and its name; hashes: SHA-256 of every input, by its name in `Conditions.sources`."""

    image: Tensor | None = None
    last: Tensor | None = None
    clip: Tensor | None = None
    second: Tensor | None = None
    mask: Tensor | None = None
    fps: float | None = None
    name: str = ""
    hashes: tuple[tuple[str, str], ...] = ()


def gather(conditions: Conditions, height: int, width: int, expected: Mapping[str, str], step: int = 4) -> Material:
    """Read and fit everything that is given. expected: the SHA-256 that inputs must have, by name, where known; step:
    frames of a latent frame.

    Raises ValueError for what cannot be used, or is not what it was.
    """
    hashes = {name: digest(source) for name, source in conditions.sources().items()}
    for name, found in hashes.items():
        if (then := expected.get(name, found)) != found:
            source = conditions.sources()[name]
            raise ValueError(
                f"{source}: not the file that the clip was made from (SHA-256 {found[:12]}, then {then[:12]})"
            )
    fit, kind = conditions.fit, conditions.clip

    def picture(source: Source | None, role: str) -> Tensor | None:
        return None if source is None else fit_frames(read_picture(source, role), height, width, fit)[0]

    pictures = Material(
        picture(conditions.image, "image"), picture(conditions.last, "last"), hashes=tuple(hashes.items())
    )
    if kind is None:
        return pictures
    motion = (1 + step, _MOTION)
    least, why = {"extend": motion, "between": motion, "interpolate": (2, _BETWEEN)}.get(kind, (1, ""))
    if conditions.between is not None:
        one, two = (read_clip(source, kind, least, why) for source in conditions.between)
        if one.fps and two.fps and abs(one.fps / two.fps - 1) > SAME_RATE:
            raise ValueError(
                f"{one.name} has {one.fps:g} frames a second and {two.name} {two.fps:g}: convert one of them"
            )
        second = fit_frames(two, height, width, fit)
        return replace(
            pictures, clip=fit_frames(one, height, width, fit), second=second, fps=one.fps or two.fps, name=one.name
        )
    footage = read_clip(getattr(conditions, kind), kind, least, why)
    mask = None
    if conditions.mask is not None:
        mask = fit_mask(read_mask(conditions.mask, footage), footage, height, width, fit)
    return replace(
        pictures, clip=fit_frames(footage, height, width, fit), mask=mask, fps=footage.fps, name=footage.name
    )
