"""Small pictures of clips, for people and for captioners."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.core.pictures import arrange
from carrara.data.prepare.colours import FULL

STRIP = 96  # pixels of a frame in a strip


def strip(frames: Sequence[NDArray[np.uint8]], height: int = STRIP) -> NDArray[np.uint8]:
    """Frames `h w 3` side by side, small."""
    from PIL import Image

    high, wide = frames[0].shape[:2]
    size = (max(1, round(wide * height / high)), height)
    if high == height:
        return arrange(np.stack(frames), len(frames))
    small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames]
    return arrange(np.stack(small), len(small))


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """A picture `h w 3` as a small file; equal pictures give equal bytes."""
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(packed, "JPEG", quality=82)
    return packed.getvalue()


def save_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one."""
    path.write_bytes(jpeg(image))


def frames_of(path: Path, count: int, height: int | None = None) -> list[NDArray[np.uint8]]:
    """Some frames of a piece, evenly spread, `h w 3`; of a picture the one there is, as it is.

    height: pixels of what is returned, as the piece is if not given. Raises ValueError for a file that is not there or
    not whole.
    """
    import av
    from av.video.reformatter import Interpolation, VideoReformatter
    from PIL import Image

    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                return [np.asarray(image.convert("RGB"))]
        with av.open(str(path)) as container:
            shown = _decoded(container, count)
    except (OSError, av.FFmpegError, IndexError) as error:  # the last: no video in it, or no frame
        raise ValueError(f"{path}: cannot be read ({error})") from None
    reformatter, high = VideoReformatter(), height or shown[0].height
    wide = max(1, round(shown[0].width * high / shown[0].height))
    how: dict[str, Any] = {"interpolation": Interpolation.AREA, "dst_color_range": FULL, "threads": 1}
    return [
        np.asarray(reformatter.reformat(frame, wide, high, "rgb24", **how).to_ndarray(), np.uint8) for frame in shown
    ]


def _decoded(container: Any, count: int) -> list[Any]:
    """Some frames of a video, evenly spread; others are decoded only where these need them."""
    context = container.streams.video[0].codec_context
    context.thread_count = 1
    packets = list(container.demux(video=0))
    times = sorted(packet.pts for packet in packets if packet.size)
    chosen = {times[index] for index in np.linspace(0, len(times) - 1, min(count, len(times))).round().astype(int)}
    found = []
    for packet in packets:
        context.skip_frame = "NONREF" if packet.size and packet.pts not in chosen else "DEFAULT"
        found += [frame for frame in packet.decode() if frame.pts in chosen]
    return found
