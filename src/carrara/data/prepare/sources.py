"""What a folder holds: videos and pictures, bare or in tars, each with its caption and licence where there is one.

Layouts: VideoFolder and ImageFolder (`metadata.jsonl` or `metadata.csv` in any folder, with `file_name`), files with a
`.txt` of the same name beside them, WebDataset tars (members with the same key), and files alone. A metadata row goes
before a `.txt`. Tars are never unpacked: a member is a range of bytes. Nothing outside of the folder is opened.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from carrara.data.prepare.captions import METADATA, Caption, Row, find_caption_file, read_metadata
from carrara.data.prepare.reasons import Dropped
from carrara.data.prepare.settings import Settings

VIDEOS = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .gif .mpg .mpeg .m2v .ts .m2ts .mts .vob .ogv .3gp .3g2 .flv .wmv .asf"  # noqa: SIM905
    " .y4m".split()
)
PICTURES = frozenset(".png .jpg .jpeg .webp .bmp .tif .tiff .jfif .apng".split())  # noqa: SIM905
_BESIDE = frozenset(".txt .json .jsonl .csv .tsv .md .html .htm .yaml .yml .xml .srt .vtt .ass .parquet".split())  # noqa: SIM905
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Item:
    """Something to prepare. source: its path below the folder, within a tar `a.tar/member`; file: what to open; offset,
    size: which bytes of it."""

    number: int
    source: str
    kind: str
    file: str
    offset: int
    size: int
    caption: str | None = None
    licence: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def list_items(folder: Path, settings: Settings) -> tuple[list[Item], list[Dropped]]:
    """Everything in a folder in the order of the paths, and what is none of it to prepare. Nothing is decoded.

    Raises ValueError for metadata files that cannot be right.
    """
    rows = read_metadata(folder, _metadata_files(folder), settings.caption_column)
    found: list[Item] = []
    dropped: list[Dropped] = []
    named = set()
    for path in sorted(_files(folder, dropped)):
        name = path.replace(os.sep, "/")
        named.add(name)
        lower = name.lower()
        suffix = os.path.splitext(lower)[1]
        if os.path.islink(folder / path) and not _within(folder, folder / path):
            dropped.append(Dropped(name, "outside", "it is a link that leads out of the folder"))
        elif suffix == ".tar":
            found += _members(folder, name, settings, dropped)
        elif lower.endswith(_PACKED):
            dropped.append(
                Dropped(name, "unreadable", "a compressed tar cannot be read at places; unpack it to a .tar")
            )
        elif suffix in VIDEOS or suffix in PICTURES or name in rows:
            _add_file(folder, name, suffix, rows.get(name), settings, found, dropped)
        elif suffix not in _BESIDE:
            dropped.append(
                Dropped(name, "not_media", f"files *{suffix} are not prepared" if suffix else "no extension")
            )
    for name, row in rows.items():
        if row.outside:
            dropped.append(Dropped(name, "outside", f"line {row.line} of {row.file} leads out of the folder"))
        elif name not in named:
            dropped.append(Dropped(name, "missing", f"line {row.line} of {row.file} names it, and it is not there"))
    found = [item for item in found if settings.images or item.kind == "video"]
    found.sort(key=lambda item: item.source)
    return [replace(item, number=number) for number, item in enumerate(found)], dropped


def open_item(folder: Path, item: Item) -> BinaryIO:
    """Its bytes, to read and seek in."""
    path = folder / item.file
    if not _within(folder, path):  # it may have been exchanged since the folder was listed
        raise OSError(0, "leads out of the folder")
    file = path.open("rb")
    if item.source == item.file:
        return file
    return io.BufferedReader(_Range(file, item.offset, item.size), 1 << 17)


class _Range(io.RawIOBase):
    """Some bytes of a file as a file."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = min(len(buffer), max(0, self._size - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(room)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _files(folder: Path, dropped: list[Dropped]) -> Iterator[str]:
    """Paths of files below a folder; hidden ones are passed over, links to folders are told and not followed."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        below = os.path.relpath(place, folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                where = os.path.normpath(os.path.join(below, name)).replace(os.sep, "/")
                dropped.append(Dropped(where, "outside", "links to folders are not followed; move the files in"))
        for name in files:
            if not name.startswith("."):
                yield os.path.normpath(os.path.join(below, name))


def _metadata_files(folder: Path) -> list[str]:
    return sorted(path for path in _files(folder, []) if os.path.basename(path) in METADATA)


def _within(folder: Path, path: Path) -> bool:
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def _add_file(
    folder: Path,
    name: str,
    suffix: str,
    row: Row | None,
    settings: Settings,
    found: list[Item],
    dropped: list[Dropped],
) -> None:
    try:
        caption = row.caption if row else find_caption_file(folder, name)
    except ValueError as error:
        dropped.append(Dropped(name, "caption", str(error)))
        return
    kind = "picture" if suffix in PICTURES else "video"
    licence = (row.licence if row else None) or settings.licence or None
    found.append(Item(0, name, kind, name, 0, (folder / name).stat().st_size, caption, licence))


def _members(folder: Path, name: str, settings: Settings, dropped: list[Dropped]) -> list[Item]:
    """The samples of a WebDataset tar: members whose names agree up to the first dot of their last part."""
    import tarfile

    media: dict[str, Item] = {}
    captions: dict[str, Caption] = {}
    whole, before = (folder / name).stat().st_size, len(dropped)
    try:
        with tarfile.open(folder / name, "r:", errors="surrogateescape") as tar:
            for member in tar:
                label = f"{name}/{member.name}"
                stem, _, tail = member.name.rpartition("/")[2].partition(".")
                key = f"{member.name.rpartition('/')[0]}/{stem}"
                suffix = f".{tail.lower().rpartition('.')[2]}"
                if member.isdir() or stem == "":
                    continue
                if not member.isreg() or member.issparse():
                    dropped.append(Dropped(label, "outside", "it is a link or a device, not a plain file"))
                elif member.name.startswith("/") or ".." in member.name.split("/"):
                    dropped.append(Dropped(label, "outside", "its name leads out of the tar"))
                elif member.offset_data + member.size > whole:
                    dropped.append(Dropped(label, "damaged", "the tar ends within it"))
                elif suffix in VIDEOS or suffix in PICTURES:
                    if key in media:
                        said = f"the tar has {media[key].source.rpartition('/')[2]} of the same key already"
                        dropped.append(Dropped(label, "duplicate", said))
                    else:
                        kind = "picture" if suffix in PICTURES else "video"
                        media[key] = Item(0, label, kind, name, member.offset_data, member.size)
                elif suffix in (".txt", ".caption", ".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    captions[key] = captions.get(key, Caption()).join(
                        suffix, file, member.size, settings.caption_column
                    )
    except (tarfile.TarError, OSError, UnicodeError) as error:
        dropped.append(Dropped(name, "damaged" if media else "unreadable", f"not a whole tar ({error})"))
    items = []
    for key, item in media.items():
        told = captions.get(key, Caption())
        if told.error:
            dropped.append(Dropped(item.source, "caption", told.error))
            continue
        licence = told.licence or settings.licence or None
        items.append(replace(item, caption=told.text, licence=licence))
    if len(dropped) == before and not items:
        dropped.append(Dropped(name, "unreadable", "a tar without videos or pictures"))
    return items
