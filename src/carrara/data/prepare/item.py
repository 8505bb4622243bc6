"""One file of the source from its bytes to finished pieces in a folder of their own, in whichever process.

    item.json     what the file is, its pieces and what was dropped of it
    000.mp4 ...   the pieces, or one 000.png
    000.jpg ...   how some of what was dropped looks

The folder appears under its name only when it is whole, so a process may be killed at any moment.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from carrara.core.config import write_json
from carrara.core.files import sha256
from carrara.core.types import VideoShape
from carrara.data.prepare.convert import Converter, luma_of
from carrara.data.prepare.cutting import Seen, Stretch, is_black, stretches
from carrara.data.prepare.decode import Shown, decode, pictures_in_time
from carrara.data.prepare.encode import encode
from carrara.data.prepare.fitting import fit
from carrara.data.prepare.pictures import fitted, flat, open_picture, readable
from carrara.data.prepare.reasons import Dropped, Unfit
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.sheets import STRIP, save_jpeg, strip
from carrara.data.prepare.sources import Item, open_item
from carrara.data.prepare.thumbs import thumb, thumbs_of

_SHOWN = 2  # dropped stretches of a file and a reason whose pictures are kept for the report


def item_folder(work: Path, number: int) -> Path:
    """Where the results of an item are."""
    return work / "items" / f"{number:09d}"


def prepare_item(source: Path, work: Path, item: Item, settings: Settings, alive: Callable[[], None]) -> None:
    """Prepare one file; `alive` is called with every frame. Whatever is wrong with the file ends as a reason."""
    final = item_folder(work, item.number)
    partial = final.with_name(f"{final.name}.{os.getpid()}-{os.urandom(3).hex()}.partial")
    partial.mkdir(parents=True)
    try:
        _Preparing(partial, item, settings, alive).run(source)
        finish(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        gc.collect(1)  # decoders are in cycles, and hold frames of which the collector does not know


def finish(partial: Path, final: Path) -> None:
    """Give the results their name, unless another process was faster."""
    try:
        partial.rename(final)
    except OSError:
        if not (final / "item.json").is_file():
            raise


def give_up(work: Path, item: Item, reason: str, sentence: str) -> None:
    """Results for an item whose process could not write any."""
    final = item_folder(work, item.number)
    partial = final.with_name(f"{final.name}.{os.getpid()}-{os.urandom(3).hex()}.partial")
    partial.mkdir(parents=True)
    dropped = [Dropped(item.source, reason, sentence).plain()]
    write_json(partial / "item.json", {"source": item.source, "pieces": [], "dropped": dropped})
    finish(partial, final)


class _Preparing:
    def __init__(self, folder: Path, item: Item, settings: Settings, alive: Callable[[], None]) -> None:
        self.folder, self.item, self.settings, self.alive = folder, item, settings, alive
        self.converter = Converter(settings)
        self.pieces: list[dict[str, Any]] = []
        self.dropped: list[dict[str, Any]] = []
        self.shown: Counter[str] = Counter()
        self.seen = Seen()
        self.deadline = time.monotonic() + settings.seconds

    def run(self, source: Path) -> None:
        digest = None
        try:
            with _opened(source, self.item) as file:
                digest = _digest(file, self.alive)
                self._read(file)
        except Unfit as why:
            self._whole(why)
        width, height = self.seen.size
        about = {"source": self.item.source, "sha256": digest, "width": width, "height": height, "fps": self.seen.fps}
        write_json(self.folder / "item.json", {**about, "pieces": self.pieces, "dropped": self.dropped})

    def _whole(self, why: Unfit) -> None:
        """The file, or all of it behind the pieces that are there, is of no use."""
        if why.reason == "too_slow":  # how far it got depends on the machine
            for path in [*self.folder.glob("*.mp4"), *self.folder.glob("*.jpg")]:
                path.unlink()
            self.pieces, self.dropped = [], []
        start = self.seen.last if self.pieces or self.dropped else None
        self.dropped.append(Dropped(self.item.source, why.reason, why.sentence, start).plain())

    def _read(self, file: BinaryIO) -> None:
        most = self.settings.most_pixels
        if self.item.kind == "video":
            self._video(decode(file, most, self._lost))
            return
        with open_picture(file, most) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format in ("WEBP", "PNG", "GIF"):
                self._video(pictures_in_time(image))
                return
            with readable():
                pixels = flat(image)
        self._picture(pixels)

    def _video(self, shown: Iterator[Shown]) -> None:
        for stretch in stretches(self._watched(shown), self.settings, self.converter, self.seen):
            if stretch.reason:
                self._drop(stretch)
            else:
                self._keep(stretch)
        if self.seen.stopped is not None:
            raise self.seen.stopped
        if not self.pieces and not self.dropped:
            raise Unfit("unreadable", "no frame of it can be decoded")

    def _watched(self, shown: Iterator[Shown]) -> Iterator[Shown]:
        for each in shown:
            self.alive()
            if time.monotonic() > self.deadline:
                raise Unfit("too_slow", f"it was not read within {self.settings.seconds:g} s")
            yield each

    def _keep(self, stretch: Stretch) -> None:
        path = self.folder / f"{len(self.pieces):03d}.mp4"
        frames = [tick.picture for tick in stretch.ticks]
        encode(path, frames, self.settings.fps)
        shape = VideoShape(len(frames), stretch.size[1], stretch.size[0])
        thumbs = thumbs_of([luma_of(frame) for frame in frames])
        self._add(path, shape, stretch.start, stretch.end, thumbs)

    def _add(self, path: Path, shape: VideoShape, start: float, end: float, thumbs: NDArray[np.uint8]) -> None:
        self.pieces.append(
            {
                "file": path.name,
                "bucket": [shape.frames, shape.height, shape.width],
                "start": round(start, 6),
                "end": round(end, 6),
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
                "thumbs": base64.b64encode(thumbs.tobytes()).decode("ascii"),
            }
        )

    def _drop(self, stretch: Stretch) -> None:
        ticks = stretch.ticks
        self._record(stretch.reason, stretch.sentence, stretch.start, stretch.end)
        if self.shown[stretch.reason] <= _SHOWN:
            chosen = [ticks[index].picture for index in np.linspace(0, len(ticks) - 1, 4).round().astype(int)]
            self._draw([self.converter.pixels(picture, STRIP) for picture in chosen])

    def _record(self, reason: str, sentence: str, start: float | None = None, end: float | None = None) -> None:
        start, end = (None if time is None else round(time, 6) for time in (start, end))
        self.dropped.append(Dropped(self.item.source, reason, sentence, start, end).plain())
        self.shown[reason] += 1

    def _lost(self, start: float, end: float, sentence: str) -> None:
        self._record("damaged", sentence, start, end)

    def _draw(self, frames: Sequence[NDArray[np.uint8]]) -> None:
        name = f"{len(self.dropped) - 1:03d}.jpg"
        save_jpeg(self.folder / name, strip(frames))
        self.dropped[-1]["picture"] = name

    def _picture(self, pixels: NDArray[np.uint8]) -> None:
        from PIL import Image

        high, wide = pixels.shape[:2]
        self.seen.size = (wide, high)
        image = fitted(pixels, fit(wide, high, self.settings))
        luma = (image @ np.array([0.2126, 0.7152, 0.0722]) * 219 / 255 + 16).round().astype(np.uint8)
        if is_black(thumb(luma)[None].astype(np.int16), self.settings.black):
            self._record("black", "nothing but black")
            self._draw([image])
            return
        path = self.folder / "000.png"
        Image.fromarray(np.ascontiguousarray(image)).save(path)
        self._add(path, VideoShape(1, *image.shape[:2]), 0.0, 0.0, thumbs_of([luma]))


def _opened(source: Path, item: Item) -> BinaryIO:
    try:
        return open_item(source, item)
    except OSError as error:
        raise Unfit("unreadable", f"cannot be read ({error.strerror or error})") from None


def _digest(file: BinaryIO, alive: Callable[[], None]) -> str:
    """SHA-256 of the source; the file is at its beginning again."""
    digest = hashlib.sha256()
    try:
        while block := file.read(1 << 20):
            digest.update(block)
            alive()
        file.seek(0)
    except OSError as error:
        raise Unfit("unreadable", f"cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()
