"""Pictures, clips and masks that a clip is made from: read, checked and fitted before anything is computed.

Odd files are the rule: pictures that are animated, transparent or turned by their EXIF tag, clips of another size or
rate. What can be meant in one way only is done (a turned picture is turned back, pixels that are not square are made
square); what is ambiguous is a ValueError of one line that names the file and the remedy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from carrara.core.files import check_file, sha256
from carrara.core.media import read_video
from carrara.generation.conditions import IN_MEMORY, Source

_ASPECT = 0.02  # sides that differ by less than this are scaled a little differently, and nobody sees it
_TOGETHER = 16  # frames that are resized at a time
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_WHITE = 128  # from which value on a mask is white


@dataclass(frozen=True, eq=False)
class Footage:
    """A clip as it was given: frames uint8 `t h w 3`; fps None where nothing says it; `name` for errors."""

    frames: Tensor
    fps: float | None
    name: str


def digest(source: Source) -> str:
    """SHA-256 of a file, or of frames in memory. Raises ValueError for a file that is not there."""
    if isinstance(source, Tensor):
        head = f"{source.dtype} {tuple(source.shape)}".encode()
        return hashlib.sha256(head + source.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    path = _there(source)
    try:
        return sha256(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def read_picture(source: Source, role: str) -> Footage:
    """A still picture as one frame, upright. Raises ValueError for one that moves, is transparent or is no picture."""
    if isinstance(source, Tensor):
        frames = source[None] if source.ndim == 3 else source
        _check_frames(frames, role)
        name, found = f"the {role}", frames
    else:
        path = _there(source)
        _check_still(path, role)
        from carrara.core import pictures

        name, found = str(path), torch.from_numpy(pictures.read(path, 20_000, 4 << 30)[0])
    if len(found) != 1:
        raise ValueError(f"{name}: holds {len(found)} frames, and {role} is one picture; to go on from a clip: extend")
    return Footage(found, None, name)


def read_clip(source: Source, role: str, least: int, why: str) -> Footage:
    """A clip of at least so many frames. Raises ValueError for one that is shorter, foreign or damaged."""
    if isinstance(source, Tensor):
        _check_frames(source, role)
        clip = Footage(source, None, f"the clip of {role}")
    else:
        path = _there(source)
        _check_opaque(path)
        frames, fps, _ = read_video(path, square=True)
        clip = Footage(frames, fps, str(path))
    if len(clip.frames) < least:
        said = "1 frame" if len(clip.frames) == 1 else f"{len(clip.frames)} frames"
        raise ValueError(f"{clip.name}: {said}, and {role} needs at least {least}: {why}")
    return clip


def read_mask(source: Source, clip: Footage) -> Tensor:
    """Where a clip is to be painted on, bool `t h w`, from one picture for all of its frames or from one for each."""
    if isinstance(source, Tensor):
        if source.dtype != torch.bool or source.ndim not in (2, 3):
            raise ValueError(f"the mask is {source.dtype} of shape {tuple(source.shape)}: expected bool h w or t h w")
        mask, name = source if source.ndim == 3 else source[None], "the mask"
    else:
        path = _there(source)
        name = str(path)
        _check_opaque(path)
        mask = read_video(path, square=True)[0].float().mean(-1) >= _WHITE
    count, height, width = clip.frames.shape[:3]
    if mask.shape[1:] != (height, width):
        said = f"{mask.shape[2]}x{mask.shape[1]}, and {clip.name} is {width}x{height}"
        raise ValueError(f"{name}: {said}; draw the mask at the clip's own size")
    if len(mask) not in (1, count):
        raise ValueError(
            f"{name}: a mask of {len(mask)} frames for a clip of {count}; give one picture for all, or {count} frames"
        )
    if not mask.any():
        raise ValueError(f"{name}: marks nothing; make it white where to paint")
    return mask.expand(count, -1, -1)


def fit_frames(footage: Footage, height: int, width: int, fit: str | None) -> Tensor:
    """Frames scaled to this size, uint8 `t height width 3`, cropped in the middle or padded with black as `fit` says.

    Raises ValueError for another aspect ratio without a `fit`.
    """
    frames = footage.frames
    h, w = frames.shape[1:3]
    if (h, w) == (height, width):
        return frames
    shape = _fitted(footage, height, width, fit)
    parts = []
    for part in frames.split(_TOGETHER):
        x = rearrange(part, "t h w c -> t c h w").float()
        x = F.interpolate(x, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255).round()
        parts.append(rearrange(_framed(x, height, width), "t c h w -> t h w c").to(torch.uint8))
    return torch.cat(parts).contiguous()


def fit_mask(mask: Tensor, footage: Footage, height: int, width: int, fit: str | None) -> Tensor:
    """A mask of the footage's frames as `fit_frames` fits them: True wherever it touches a pixel, False in borders."""
    if mask.shape[1:] == (height, width):
        return mask
    shape = _fitted(footage, height, width, fit)
    found = [
        _framed(F.interpolate(part[:, None].float(), shape, mode="area"), height, width)[:, 0] > 0
        for part in mask.split(_TOGETHER)
    ]
    fitted = torch.cat(found)
    if not fitted.any():
        raise ValueError(f"the mask of {footage.name} marks only what is cropped away; fit=pad keeps all of the clip")
    return fitted


def _fitted(footage: Footage, height: int, width: int, fit: str | None) -> tuple[int, int]:
    """To which (height, width) the frames are scaled before they are cropped or padded."""
    h, w = footage.frames.shape[1:3]
    wide, high = width / w, height / h
    if abs(wide / high - 1) <= _ASPECT:
        return height, width
    if fit is None:
        raise ValueError(
            f"{footage.name}: {w}x{h}, and the clip to be made is {width}x{height}; "
            "crop cuts off what does not fit and pad adds black borders: say which with fit, or another size"
        )
    scale = max(wide, high) if fit == "crop" else min(wide, high)
    return max(1, round(h * scale)), max(1, round(w * scale))


def _framed(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of x `... h w`, or x in the middle of zeros, at this size."""
    h, w = x.shape[-2:]
    top, left = (h - height) // 2, (w - width) // 2  # negative where there is less than is wanted
    x = x[..., max(0, top) : max(0, top) + height, max(0, left) : max(0, left) + width]
    below, right = height - x.shape[-2] - max(0, -top), width - x.shape[-1] - max(0, -left)
    return F.pad(x, (max(0, -left), right, max(0, -top), below))


def _there(source: Source) -> Path:
    if str(source) == IN_MEMORY:
        raise ValueError("this clip was made from frames in memory, which are in no file; make it again from Python")
    return check_file(str(source))


def _check_frames(frames: Tensor, role: str) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise ValueError(f"{role} is {frames.dtype} of shape {tuple(frames.shape)}: expected uint8 t h w 3")


def _check_still(path: Path, role: str) -> None:
    """Refuse what is not one opaque picture of 8 bits; only the file's header and its alpha channel are read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if (count := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(
                    f"{path}: is animated ({count} pictures), and {role} is one; save the one that is meant"
                )
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{path}: has more than 8 bits a channel; save it as an ordinary 8-bit picture")
    except UnidentifiedImageError:
        raise ValueError(
            f"{path}: not a readable picture; {role} is a .png, .jpg or .webp, a clip goes to extend"
        ) from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture, or damaged ({error})") from None
    _check_opaque_picture(path)


def _check_opaque(path: Path) -> None:
    """Refuse transparency: what would show through is not in the file."""
    if path.suffix.lower() in _PICTURES:
        _check_opaque_picture(path)
        return
    from carrara.core.mp4 import is_see_through

    if is_see_through(path):
        raise ValueError(f"{path}: has an alpha channel; put it on a background and save it without")


def _check_opaque_picture(path: Path) -> None:
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            for picture in ImageSequence.Iterator(image):
                if _transparent(picture):
                    raise ValueError(f"{path}: is partly transparent; put it on a background and save it without alpha")
    except UnidentifiedImageError:
        pass  # whoever reads it will say what it is
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture, or damaged ({error})") from None


def _transparent(picture: Any) -> bool:
    if picture.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in picture.info:
        return False
    return picture.convert("RGBA").getchannel("A").getextrema()[0] < 255
