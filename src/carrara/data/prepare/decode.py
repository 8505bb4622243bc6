"""Frames of any video file with their times, one at a time: what a file does wrong becomes a reason, not a traceback.

Not standard: FFmpeg reads through a Python file and may open nothing else, so a playlist cannot reach other files and a
member of a tar is read where it lies; after a packet that cannot be decoded nothing is shown until the next key frame;
timestamps that are missing or do not rise are replaced, and a hole in time begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from carrara.core.mp4 import pixel_aspect
from carrara.data.prepare.pictures import flat, readable
from carrara.data.prepare.reasons import Unfit

_CLOSED = {"protocol_whitelist": "none"}
_BUFFER = 1 << 17  # bytes that FFmpeg asks Python for at once
_HOLE = 2.0  # seconds without a frame after which nothing is said to go on
_MOST_ERRORS = 200  # packets that cannot be decoded, after which the rest is given up
_PQ, _HLG = 16, 18  # transfer functions of high dynamic range, ITU-T H.273
_USUAL = 25.0  # frames per second, where a file says nothing sensible

Lost = Callable[[float, float, str], None]
"""Called with start, end and a sentence for a damaged stretch."""


@dataclass(frozen=True)
class Shown:
    """A decoded frame. time: seconds from the first one; fresh: a new beginning; aspect: a pixel's."""

    frame: Any
    time: float
    fresh: bool
    aspect: float = 1.0


def decode(file: BinaryIO, most_pixels: int, lost: Lost) -> Iterator[Shown]:
    """The frames of the file's main video in the order in which they are shown, in constant memory.

    Raises Unfit where there is none, or it cannot or should not be decoded.
    """
    import av

    try:
        with av.open(file, "r", options=_CLOSED, metadata_errors="ignore", buffer_size=_BUFFER) as container:
            shown = False
            for stream in _streams(container):
                _check_size(stream.codec_context.width, stream.codec_context.height, most_pixels)
                for each in _in_time(container, stream, lost):
                    _check_size(each.frame.width, each.frame.height, most_pixels)
                    if each.frame.color_trc in (_PQ, _HLG):
                        raise Unfit("hdr", f"its brightness is coded for HDR ({_names(each.frame.color_trc)})")
                    shown = True
                    yield each
                if shown:
                    return
            raise Unfit("unreadable", "no frame of it can be decoded")
    except (av.FFmpegError, UnicodeError, MemoryError, OSError) as error:
        said = getattr(error, "strerror", None) or type(error).__name__
        raise Unfit("unreadable", f"not a readable video ({said})") from None


def pictures_in_time(image: Any) -> Iterator[Shown]:
    """The frames of an animated picture that Pillow has opened."""
    import av

    time = 0.0
    for index in range(image.n_frames):
        with readable():
            image.seek(index)
            pixels = np.ascontiguousarray(flat(image))
        yield Shown(av.VideoFrame.from_ndarray(pixels, format="rgb24"), time, index == 0)
        time += (image.info.get("duration") or 100) / 1000


def _streams(container: Any) -> list[Any]:
    """The videos of a file that can be decoded, the largest first; covers of albums are none."""
    import av.stream

    cover = av.stream.Disposition.attached_pic
    found = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & cover]
    if not found:
        raise Unfit("unreadable", "it has no video that can be decoded")
    return sorted(found, key=lambda stream: -stream.codec_context.width * stream.codec_context.height)


def _in_time(container: Any, stream: Any, lost: Lost) -> Iterator[Shown]:
    stream.codec_context.thread_count = 1
    rate = float(stream.average_rate or stream.guessed_rate or _USUAL)
    step = 1 / (rate if 1 <= rate <= 240 else _USUAL)
    aspect = pixel_aspect(stream)
    last: float | None = None
    offset: float | None = None
    broken_from: float | None = None
    for frame in _frames(container, stream):
        if frame is None or frame.is_corrupt:
            broken_from = _after(last, step) if broken_from is None else broken_from
            continue
        stamp = frame.time
        if offset is None:
            offset = stamp or 0.0
        time = _after(last, step) if stamp is None else stamp - offset
        jumped = last is not None and not 0 < time - last < _HOLE
        if last is not None and time <= last:  # a glitch, or a clock that was set back
            offset = offset - (last + step - time) if time < last - _HOLE else offset
            jumped, time = time < last - _HOLE, last + step
        if broken_from is not None:
            if not frame.key_frame:
                continue
            if time > broken_from:
                lost(broken_from, time, "packets that cannot be decoded, and what follows them up to a key frame")
            broken_from, jumped = None, True
        yield Shown(frame, time, last is None or jumped, aspect)
        last = time
    end = _after(last, step)
    announced = _announced(container, stream)
    if last is None:
        return
    if broken_from is not None:
        lost(broken_from, max(end, announced or 0.0), "packets that cannot be decoded, and no key frame after them")
    elif announced is not None and announced - end > max(1.0, 0.05 * announced):
        lost(end, announced, f"the file says that it lasts {announced:.1f} s; the end is missing")


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames, and None for each packet that cannot be decoded."""
    import av

    packets, errors = container.demux(stream), 0
    while errors < _MOST_ERRORS:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, UnicodeError):
            yield None
            return
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except av.EOFError:
            continue
        except av.FFmpegError:
            errors += 1
            yield None
            continue
        yield from decoded


def _after(last: float | None, step: float) -> float:
    return 0.0 if last is None else last + step


def _announced(container: Any, stream: Any) -> float | None:
    """How long the video is said to last."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6
    return None


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise Unfit("too_large", f"its frames are {width}x{height}; at most {most} pixels are decoded")


def _names(transfer: int) -> str:
    return "PQ" if transfer == _PQ else "HLG"
