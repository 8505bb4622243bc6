"""Pixels of a prepared folder for training: decoded in threads, kept in memory while there is room, cut into views.

FFmpeg decodes outside of Python's lock, so threads are enough; the loop asks for a step's batch one step ahead.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from carrara.core.types import VideoShape
from carrara.data.prepared import Prepared


class ClipReader:
    """Decoded clips by number. threads: 0 for one per core, up to 8; memory: bytes of decoded clips that are kept."""

    def __init__(self, prepared: Prepared, threads: int = 0, memory: int = 1 << 30) -> None:
        self.prepared = prepared
        self._pool = ThreadPoolExecutor(threads or min(8, _cores()), thread_name_prefix="decode")
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._room = memory
        self._lock = threading.Lock()

    def clips(self, numbers: Sequence[int]) -> list[Tensor]:
        """These clips, each uint8 `t h w 3`, decoded side by side. They are shared: do not write to them.

        Raises ValueError as `Prepared.frames` does.
        """
        return list(self._pool.map(self.clip, numbers))

    def clip(self, number: int) -> Tensor:
        """One clip, uint8 `t h w 3`."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        pixels = self.prepared.frames(number)
        with self._lock:
            if number not in self._kept and pixels.nbytes <= self._room:
                self._kept[number] = pixels
                self._room -= pixels.nbytes
            elif number not in self._kept:
                self._make_room(number, pixels)
        return pixels

    def ahead(self, groups: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
        """The clips of each group in turn, the next group being decoded while one is used."""
        coming = [self._pool.submit(self.clip, number) for number in groups[0]] if groups else []
        for following in [*groups[1:], []]:
            present, coming = coming, [self._pool.submit(self.clip, number) for number in following]
            yield [clip.result() for clip in present]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_room(self, number: int, pixels: Tensor) -> None:
        """Keep this clip instead of those that were not asked for longest, if that is enough."""
        while self._kept and pixels.nbytes > self._room:
            self._room += self._kept.popitem(last=False)[1].nbytes
        if pixels.nbytes <= self._room:
            self._kept[number] = pixels
            self._room -= pixels.nbytes


def draw_view(shape: VideoShape, frames: int, side: int, generator: Generator) -> tuple[slice, slice, slice]:
    """Which frames, rows and columns a random view of a clip shows: at most so many frames, a window of at most this
    side (0: the whole picture). Takes three random values whatever the shape is."""
    sizes = (min(frames, shape.frames), min(side or shape.height, shape.height), min(side or shape.width, shape.width))
    draws = torch.rand(3, generator=generator).tolist()
    starts = [int(draw * (whole - size + 1)) for draw, whole, size in zip(draws, _sides(shape), sizes)]
    first, second, third = (slice(start, start + size) for start, size in zip(starts, sizes))
    return first, second, third


def view_shape(shape: VideoShape, frames: int, side: int) -> VideoShape:
    """The shape of such a view."""
    return VideoShape(
        min(frames, shape.frames), min(side or shape.height, shape.height), min(side or shape.width, shape.width)
    )


def _sides(shape: VideoShape) -> tuple[int, int, int]:
    return shape.frames, shape.height, shape.width


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
