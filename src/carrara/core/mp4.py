"""MP4 with H.264 through PyAV: converted to and tagged as BT.709 limited range, playable everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from carrara.core.media import Record, check_limits
from carrara.core.types import VideoShape

_BT709, _LIMITED, _FULL = 1, 1, 2  # ITU-T H.273 code for BT.709; FFmpeg's codes for the ranges
_BT601 = 5
_UNSPECIFIED = 2
# Without mbtree=0 x264's bytes, and even its pixels, differ from run to run for small frames.
_OPTIONS = {"crf": "15", "preset": "medium", "x264-params": "mbtree=0"}
_THREADS = 4  # x264's bytes depend on the number of threads, so it is a constant and not the machine's
_LOCAL = {"protocol_whitelist": "file"}  # a file must not make the reader fetch others


def write(path: Path, chunks: Iterator[np.ndarray], shape: VideoShape, fps: float, comment: str) -> None:
    """Encode chunks of uint8 `t h w 3` as they come, in constant memory; the index is moved to the front at the end."""
    import av
    from av.video.reformatter import VideoReformatter

    rate = Fraction(fps).limit_denominator(1001)  # 29.97 as broadcasters mean it, whole numbers as they are
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        container.metadata["comment"] = comment
        stream: Any = container.add_stream("libx264", rate=rate, options=_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = _THREADS
        codec.color_range, codec.colorspace = _LIMITED, _BT709
        codec.color_primaries, codec.color_trc = _BT709, _BT709
        reformatter = VideoReformatter()
        index = 0
        for chunk in chunks:
            for pixels in chunk:
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame = reformatter.reformat(
                    rgb,
                    format="yuv420p",
                    src_color_range=_FULL,
                    dst_colorspace=_BT709,
                    dst_color_range=_LIMITED,
                    threads=1,
                )
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(stream.encode(frame))
                index += 1
        container.mux(stream.encode(None))


def read(
    path: Path, max_frames: int, max_bytes: int, longest: int | None = None, square: bool = False
) -> tuple[np.ndarray, float, dict[str, str]]:
    """Decode a video file: (uint8 `t h w 3`, frames per second, metadata). Raises ValueError, see `read_video`."""
    import av
    from av.video.reformatter import VideoReformatter

    frames: list[np.ndarray] = []
    try:
        with av.open(str(path.absolute()), options=_LOCAL, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise ValueError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError(f"{path}: its video is coded in a way that is not known here; convert it to H.264")
            stream.codec_context.thread_count = _THREADS
            announced = stream.frames
            if path.stat().st_size > announced:  # a damaged header announces anything
                check_limits(path, min(announced, longest or announced), 0, max_frames, max_bytes)
            fps = float(stream.average_rate or stream.guessed_rate or 1)
            tags = {str(key): str(value) for key, value in container.metadata.items()}
            aspect = pixel_aspect(stream) if square else 1.0
            reformatter = VideoReformatter()
            for frame in container.decode(stream):
                width = max(1, round(frame.width * aspect))  # before it is turned, for the aspect is the stored pixel's
                check_limits(path, len(frames) + 1, width * frame.height * 3, max_frames, max_bytes)
                pixels = reformatter.reformat(
                    frame,
                    width=width,
                    format="rgb24",
                    src_colorspace=matrix_of(frame),
                    src_color_range=frame.color_range or None,
                    dst_color_range=_FULL,
                    threads=1,
                ).to_ndarray()
                frames.append(np.rot90(pixels, frame.rotation // 90) if frame.rotation % 360 else pixels)
                if frames[-1].shape != frames[0].shape:
                    raise ValueError(f"{path}: the picture's size changes at frame {len(frames)}; cut the file there")
                if len(frames) == longest:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"{path}: not a readable video, or damaged ({error.strerror})") from None
    if not frames:
        raise ValueError(f"{path}: no frame could be decoded; the file is damaged")
    if len(frames) < min(announced, longest or announced) and (packets := _packets(path)) < announced:
        raise ValueError(f"{path}: damaged, {packets} of its {announced} frames are there; copy it again")
    record = Record.unpack(tags.get("comment"))
    return np.stack(frames), fps, dict(record.metadata) if record else tags


def is_see_through(path: Path) -> bool:
    """Whether a video says that it has an alpha channel, which `read` drops; False for what is no readable video.

    WebM keeps it beside the pictures, where the decoder does not look, and only a tag says so.
    """
    import av

    try:
        with av.open(str(path.absolute()), options=_LOCAL, metadata_errors="ignore") as container:
            streams = container.streams.video
            if not streams or streams[0].codec_context is None:
                return False
            pixels = streams[0].format
            tagged = streams[0].metadata.get("alpha_mode") == "1"
            return tagged or (pixels is not None and any(part.is_alpha for part in pixels.components))
    except av.FFmpegError:
        return False


def pixel_aspect(stream: Any) -> float:
    """Width over height of a stored pixel of this video stream; 1 where the file says nothing, or nothing sensible."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.1 <= aspect <= 10 else 1.0


def matrix_of(frame: Any) -> int | None:
    """The file's own colour matrix; untagged files are BT.709 from 720 lines up and BT.601 below, as players assume."""
    if frame.colorspace != _UNSPECIFIED:
        return None
    return _BT709 if frame.height >= 720 else _BT601


def _packets(path: Path) -> int:
    """How many encoded pictures the file really holds. Frames that an edit list hides are counted too, and so are the
    places of an AVI that are left empty for the picture before to last longer: its header counts places."""
    import av

    try:
        options = {**_LOCAL, "ignore_editlist": "1"}
        with av.open(str(path.absolute()), options=options, metadata_errors="ignore") as container:
            found = [packet for packet in container.demux(video=0) if packet.size and not packet.is_corrupt]
            if container.format.name == "avi":
                return max((packet.pts + 1 for packet in found if packet.pts is not None), default=0)
            return len(found)
    except av.FFmpegError:
        return 0
