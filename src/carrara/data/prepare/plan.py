"""What goes where: a pure function of the results of all files, so that a resumed run decides as the first did."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from carrara.core.config import read_json
from carrara.core.types import VideoShape
from carrara.data.prepare.item import item_folder
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.sources import Item
from carrara.data.prepare.thumbs import MOMENTS, SIDE, Duplicates

_HEADER = 2048  # bytes that a clip's text files and headers take of a shard, about


@dataclass(frozen=True)
class Clip:
    """A piece that is kept. file: where it is until it is in its shard; place: its number within all pieces."""

    key: str
    shard: str
    item: Item
    piece: Mapping[str, Any]
    original: Mapping[str, Any]
    source_sha256: str | None
    file: Path

    @property
    def shape(self) -> VideoShape:
        """Its bucket."""
        return VideoShape(*self.piece["bucket"])


@dataclass(frozen=True)
class Plan:
    """Kept clips in order, and dropped rows in the order of their sources; `pictures` has files of some of those."""

    clips: list[Clip]
    dropped: list[dict[str, Any]]

    @property
    def shards(self) -> dict[str, list[Clip]]:
        """The clips of each shard, in order."""
        found: dict[str, list[Clip]] = {}
        for clip in self.clips:
            found.setdefault(clip.shard, []).append(clip)
        return dict(sorted(found.items()))


@dataclass
class _Open:
    name: str
    bytes: int = 0


def make_plan(work: Path, items: Sequence[Item], listed: Sequence[dict[str, Any]], settings: Settings) -> Plan:
    """Read every result, find duplicates, number what is kept and share it out. listed: dropped without being opened.

    Of pieces that show the same, the first with a caption is kept, else the first.
    """
    known = Duplicates(settings.duplicate)
    found: list[tuple[int, int, Item, dict[str, Any], dict[str, Any]]] = []
    same: list[tuple[int, dict[str, Any]]] = []  # (the place of the piece that is kept, the row of the one that is not)
    dropped = list(listed)
    for item in sorted(items, key=lambda item: (item.caption is None, item.number)):
        folder = item_folder(work, item.number)
        result = read_json(folder / "item.json")
        for row in result["dropped"]:
            picture = {"picture": str(folder / row["picture"])} if row.get("picture") else {}
            dropped.append({**row, **picture})
        for index, piece in enumerate(result["pieces"]):
            packed = base64.b64decode(piece.pop("thumbs"))
            if settings.duplicate > 0:
                thumbs = np.frombuffer(packed, np.uint8).reshape(MOMENTS, SIDE, SIDE)
                twin = known.admit(len(found), thumbs)
                if twin is not None:
                    same.append((twin, _twin_row(item, piece, folder)))
                    continue
            found.append((item.number, index, item, piece, result))
    places = sorted(range(len(found)), key=lambda place: found[place][:2])
    names = _shards([(VideoShape(*found[place][3]["bucket"]), found[place][3]["bytes"]) for place in places], settings)
    clips, keys = [], {}
    for number, (place, shard) in enumerate(zip(places, names)):
        _, _, item, piece, result = found[place]
        keys[place] = f"{number:09d}"
        original = {name: result.get(name) for name in ("width", "height", "fps")}
        file = item_folder(work, item.number) / piece["file"]
        clips.append(Clip(keys[place], shard, item, piece, original, result.get("sha256"), file))
    dropped += [{**row, "duplicate_of": keys[place]} for place, row in same]
    dropped.sort(key=lambda row: (row["source"], -1.0 if row["start"] is None else row["start"], row["reason"]))
    return Plan(clips, dropped)


def _twin_row(item: Item, piece: dict[str, Any], folder: Path) -> dict[str, Any]:
    times = (None, None) if item.kind == "picture" else (piece["start"], piece["end"])
    return {
        "source": item.source,
        "reason": "duplicate",
        "sentence": "it shows the same as a piece that is kept",
        "start": times[0],
        "end": times[1],
        "piece": str(folder / piece["file"]),
    }


def _shards(pieces: Sequence[tuple[VideoShape, int]], settings: Settings) -> list[str]:
    """The shard of each piece: one is open for every bucket, and closed when it is full."""
    opened: dict[VideoShape, _Open] = {}
    count = 0
    names = []
    for shape, size in pieces:
        place = opened.get(shape)
        if place is None or (place.bytes and place.bytes + size + _HEADER > settings.shard_bytes):
            place = opened[shape] = _Open(f"shard-{count:05d}.tar")
            count += 1
        place.bytes += size + _HEADER
        names.append(place.name)
    return names
