"""Video files: one way in and one way out for MP4, GIF, WebP and PNG contact sheets.

Frames are uint8 `t h w 3`, sRGB. Every format carries the frame rate and a mapping of strings ("metadata") as one line
of JSON in its comment field. A file appears under its name only when it is whole, and equal frames give equal bytes.
Codecs live beside this file: `mp4.py` (PyAV) and `pictures.py` (Pillow), imported when they are used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from carrara.core.config import nearest
from carrara.core.files import check_file, check_folder
from carrara.core.names import safe_name
from carrara.core.types import VideoShape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "EXTENSIONS",
    "check_output",
    "contact_sheet",
    "read_video",
    "safe_name",
    "write_picture",
    "write_video",
]

EXTENSIONS = (".mp4", ".gif", ".webp", ".png")
_PICTURES = (".gif", ".webp", ".png", ".jpg", ".jpeg", ".bmp")  # what Pillow reads; the rest goes to FFmpeg
_FASTEST_GIF = 50  # frames/s: durations are whole hundredths of a second, and players show 1/100 as 1/10


@dataclass(frozen=True)
class Record:
    """What a file says of itself beside its pixels."""

    fps: float
    shape: VideoShape
    metadata: Mapping[str, str]

    def pack(self, ascii_only: bool = False) -> str:
        """One line of JSON. A value that is itself canonical JSON of an object stands there unescaped, to be read."""
        content = {
            "fps": self.fps,
            "frames": [self.shape.frames, self.shape.height, self.shape.width],
            "metadata": {key: _unescaped(value) for key, value in self.metadata.items()},
        }
        return json.dumps(content, ensure_ascii=ascii_only)

    @classmethod
    def unpack(cls, text: str | None) -> Record | None:
        """The inverse; None for a text that `pack` did not write."""
        try:
            content = json.loads(text or "")
            frames, height, width = (int(side) for side in content["frames"])
            metadata = {str(k): v if isinstance(v, str) else _canonical(v) for k, v in content["metadata"].items()}
            return cls(float(content["fps"]), VideoShape(frames, height, width), metadata)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def write_video(
    path: str | Path,
    frames: Tensor | np.ndarray | Iterable[Any],
    fps: float,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    shape: VideoShape | None = None,
) -> None:
    """Write a clip; the extension chooses the format: .mp4 (H.264, BT.709), .gif, .webp, .png (contact sheet).

    frames: uint8 `t h w 3`, a torch tensor or a numpy array; or an iterable of such chunks together with the `shape`
    that they add up to (then MP4 is written in constant memory). Raises ValueError, before the first chunk is asked
    for, where the path or the shape cannot be written. If anything fails or is interrupted, no file is left.
    """
    path = Path(path)
    check_output(path, overwrite)
    whole = getattr(frames, "shape", None)
    if whole is not None:
        if len(whole) != 4:
            raise ValueError(f"frames of shape {tuple(whole)}: expected uint8 t h w 3")
        shape, frames = VideoShape(*(int(side) for side in whole[:3])), [frames]
    if shape is None:
        raise ValueError("frames come in chunks: pass shape=VideoShape(frames, height, width) as well")
    check_format(path, shape, fps)
    record = Record(float(fps), shape, dict(metadata or {}))
    chunks = _checked(frames, shape)
    with _temporary(path, overwrite) as partial:
        if path.suffix.lower() == ".mp4":
            from carrara.core import mp4

            mp4.write(partial, chunks, shape, fps, record.pack())
        else:
            from carrara.core import pictures

            pictures.write(partial, np.concatenate(list(chunks)), fps, record)


def read_video(
    path: str | Path,
    max_frames: int = 20_000,
    max_bytes: int = 4 << 30,
    longest: int | None = None,
    square: bool = False,
) -> tuple[Tensor, float, dict[str, str]]:
    """Read a clip: (frames uint8 `t h w 3` sRGB, frames per second, metadata).

    Reads what `write_video` writes (a contact sheet is cut into its frames again) and ordinary videos and pictures,
    upright where the file asks for rotation. Metadata is the mapping that was written, or else the file's own tags.
    longest: of a longer clip only so many frames, the first, are read; what follows is not even looked at.
    square: a video whose pixels are not square is made as wide as it is meant to be shown; without it the frames are
    the stored pixels.
    Raises ValueError for a file that is missing, foreign, damaged or cut short, or that decodes to more than
    `max_frames` frames or `max_bytes` bytes.
    """
    import torch

    path = check_file(path)
    if path.suffix.lower() in _PICTURES:
        from carrara.core import pictures

        frames, fps, metadata = pictures.read(path, max_frames, max_bytes)
        frames = frames[:longest]
    else:
        from carrara.core import mp4

        frames, fps, metadata = mp4.read(path, max_frames, max_bytes, longest, square)
    return torch.from_numpy(frames), fps, metadata


def write_picture(path: str | Path, image: Tensor | np.ndarray, overwrite: bool = True) -> None:
    """Write one picture, uint8 `h w 3`, as PNG."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are written as .png")
    write_video(path, image[None], fps=1, overwrite=overwrite)


def contact_sheet(frames: Tensor | np.ndarray, columns: int | None = None) -> Tensor:
    """Frames `t h w 3` uint8 side by side in reading order, with a small white gap: `H W 3` uint8."""
    import torch

    from carrara.core import pictures

    return torch.from_numpy(pictures.arrange(as_array(frames), columns))


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Refuse a path that could not be written later. To be called before any computing; leaves nothing behind."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise ValueError(f"{path}: cannot write {suffix or 'a file without extension'}; {nearest(suffix, EXTENSIONS)}")
    try:
        if "\0" in str(path):
            raise ValueError(f"{str(path)!r}: a file name cannot contain a zero byte")
        if path.is_dir():
            raise ValueError(f"{path}: is a folder; give a file name, for example {path / 'video.mp4'}")
        if path.exists() and not overwrite:
            raise ValueError(f"{path}: exists already; pass --overwrite (overwrite=True) or another name")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); choose another path") from None
    check_folder(path.absolute().parent, path)


def check_format(path: str | Path, shape: VideoShape, fps: float) -> None:
    """Refuse sizes and rates that the format of this path cannot hold. To be called before any computing."""
    suffix = Path(path).suffix.lower()
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not (isfinite(fps) and 0 < fps <= 1000):
        raise ValueError(f"fps={fps}: must be a number above 0, at most 1000")
    if min(shape.frames, shape.height, shape.width) < 1:
        said = f"{shape.frames} frames of {shape.width}x{shape.height}"
        raise ValueError(f"{said}: a clip has at least one frame of at least one pixel")
    if suffix == ".mp4" and (shape.height % 2 or shape.width % 2):
        even = f"{shape.width + shape.width % 2}x{shape.height + shape.height % 2}"
        raise ValueError(f"{shape.width}x{shape.height}: H.264 needs even sides; nearest {even}, or write .webp")
    if suffix == ".gif" and fps > _FASTEST_GIF:
        raise ValueError(f"fps={fps:g}: GIF shows at most {_FASTEST_GIF} frames per second; write .mp4 or .webp")
    if suffix in (".webp", ".gif", ".mp4") and max(shape.height, shape.width) > 16383:
        raise ValueError(f"{shape.width}x{shape.height}: {suffix} holds at most 16383 pixels a side; write .png")


def as_array(frames: Any) -> np.ndarray:
    """uint8 `t h w 3` as a numpy array, from torch or numpy. Raises ValueError for other shapes and types."""
    array = np.asarray(frames.detach().cpu() if hasattr(frames, "detach") else frames)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"frames are {array.dtype} {array.shape}: expected uint8 t h w 3")
    return array


def check_limits(path: Path, count: int, frame_bytes: int, max_frames: int, max_bytes: int) -> None:
    """Refuse a file that decodes to more frames or bytes than the reader wants to hold."""
    if count > max_frames:
        raise ValueError(f"{path}: more than {max_frames} frames; cut it shorter (or raise max_frames, from Python)")
    if count * frame_bytes > max_bytes:
        most = f"{max_bytes / 2**30:.1f} GiB"
        raise ValueError(f"{path}: decodes to more than {most}; make it smaller (or raise max_bytes, from Python)")


def _checked(chunks: Iterable[Any], shape: VideoShape) -> Iterator[np.ndarray]:
    count = 0
    for chunk in chunks:
        array = as_array(chunk)
        count += len(array)
        if array.shape[1:3] != (shape.height, shape.width) or count > shape.frames:
            raise ValueError(f"a chunk of shape {array.shape} ends at frame {count}, which does not fit {shape}")
        yield array
    if count != shape.frames:
        raise ValueError(f"{count} frames came, {shape.frames} were announced")


@contextmanager
def _temporary(path: Path, overwrite: bool) -> Iterator[Path]:
    """A name beside `path` that becomes `path` if all goes well and vanishes if not, Ctrl-C included."""
    partial = path.absolute().parent / f".carrara-{os.getpid()}-{os.urandom(4).hex()}{path.suffix.lower()}"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        check_output(path, overwrite)  # once more: the name may have been taken meanwhile
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _unescaped(value: str) -> Any:
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, dict) and _canonical(parsed) == value else value
