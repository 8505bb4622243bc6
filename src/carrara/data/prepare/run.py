"""From a folder of clips to a prepared folder, resumable at any moment.

    .work/work.json       settings and what the source holds; a run that differs is refused
    .work/items/          the results of each file, written by whichever process (`item.py`)
    .work/captions.jsonl  what a captioner has said
    .work/shards/         which shards are written

When every file has results, the plan is made of them (`plan.py`), then captions, pictures, shards, manifest, report and
last of all `prepared.json`; then `.work` goes. Each step begins with what is there, so the folder is the same to the
byte however often it was interrupted, and however many processes worked on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from carrara.core.config import read_json, to_dict
from carrara.core.files import check_folder
from carrara.data.prepare import cluster, pool
from carrara.data.prepare.captioning import check_captioner, name_of, write_captions
from carrara.data.prepare.item import item_folder
from carrara.data.prepare.plan import Plan, make_plan
from carrara.data.prepare.reasons import Dropped
from carrara.data.prepare.report import draw_pictures, write_page
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.shards import json_line, row_of, write_lines, write_shard, write_whole
from carrara.data.prepare.sources import Item, list_items

FORMAT = 1
WORK = ".work"


def prepare(
    source: str | Path,
    folder: str | Path,
    settings: Settings | None = None,
    *,
    workers: int = 0,
    ray: str = "",
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Prepare everything in `source` into `folder`; returns what is in its prepared.json.

    workers: processes beside this one, 0 for this one alone (which a file that crashes FFmpeg would end); ray: the
    address of a cluster instead. Raises ValueError, before anything is decoded or written, for folders, settings and
    metadata that cannot be right, and where the folder was begun with other settings or another source.
    """
    source, folder, settings = Path(source), Path(folder), settings or Settings()
    check_paths(source, folder)
    check_captioner(settings)
    if ray:
        cluster.check_ray()
    items, listed = list_items(source, settings)
    if not items and not listed:
        raise ValueError(f"{source}: no videos, pictures or tars in it")
    mark = {"format": FORMAT, "settings": to_dict(settings), "source": source.resolve().name}
    mark |= {"files": len(items) + len(listed), "listing": _digest(items, listed)}
    work = folder / WORK
    if _finished(folder, mark):
        shutil.rmtree(work, ignore_errors=True)
        tell(f"{folder}: is prepared already")
        return read_json(folder / "prepared.json")
    _begin(folder, work, mark, tell)
    with _alone(work):
        _sweep(folder, work)
        waiting = [item for item in items if not (item_folder(work, item.number) / "item.json").is_file()]
        if 0 < len(waiting) < len(items):
            tell(f"{len(items) - len(waiting)} of {len(items)} files are done already")
        _process(source.absolute(), work.absolute(), waiting, len(items), settings, workers, ray, progress)
        plan = make_plan(work, items, [row.plain() for row in listed], settings)
        index = _write(folder, work, plan, mark, settings, max(1, workers), tell)
        shutil.rmtree(work, ignore_errors=True)
    return index


def check_paths(source: Path, folder: Path) -> None:
    """Refuse a source that is not there and a folder that cannot be written or is in use. Leaves nothing behind."""
    for path in (source, folder):
        if "\0" in str(path):
            raise ValueError(f"{str(path)!r}: a path cannot contain a zero byte")
    if not source.is_dir():
        raise ValueError(
            f"{source}: {'a file, not a folder' if source.exists() else 'no such folder'}; name one of clips"
        )
    inside, outside = folder.resolve(), source.resolve()
    if inside == outside or inside.is_relative_to(outside):
        raise ValueError(f"{folder}: lies in {source}, which it would then hold itself; choose a folder beside it")
    if outside.is_relative_to(inside):
        raise ValueError(f"{source}: lies in {folder}, which is to be written; choose another folder")
    check_folder(folder)


def _finished(folder: Path, mark: dict[str, Any]) -> bool:
    path = folder / "prepared.json"
    if not path.is_file():
        return False
    _same(folder, read_json(path), mark)
    return True


def _begin(folder: Path, work: Path, mark: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Make the folder, or make sure that it was begun with the same."""
    path = work / "work.json"
    if path.is_file():
        _same(folder, read_json(path), mark)
        return
    if folder.exists() and any(entry.name != WORK for entry in folder.iterdir()):
        raise ValueError(f"{folder}: holds other files; choose an empty folder or a new one")
    try:
        (work / "items").mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(mark, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from None


def _same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: was prepared in format {before.get('format')!r}, this is {FORMAT}; choose a new one"
        )
    old, new = before.get("settings", {}), now["settings"]
    if changed := [f"{name} {new.get(name)} (was {old.get(name)})" for name in new if new.get(name) != old.get(name)]:
        raise ValueError(
            f"{folder}: was begun with other settings: {', '.join(changed)}; give the same, or a new folder"
        )
    if before.get("listing") != now["listing"]:
        raise ValueError(f"{folder}: the files or captions of the source have changed since; prepare into a new folder")


def _digest(items: Sequence[Item], listed: Sequence[Dropped]) -> str:
    digest = hashlib.sha256()
    for row in [*(item.plain() for item in items), *(row.plain() for row in listed)]:
        digest.update(json_line(row).encode() + b"\n")
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Nobody else works on this folder meanwhile, as far as the system can say so."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{work.parent}: another run is preparing into it; wait for it, or end it") from None
        yield


def _sweep(folder: Path, work: Path) -> None:
    """What a run that was killed has left half-written."""
    for path in [*work.rglob("*.partial"), *folder.glob(".*.partial"), *(folder / "report").glob(".*.partial")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _process(
    source: Path,
    work: Path,
    items: Sequence[Item],
    count: int,
    settings: Settings,
    workers: int,
    ray: str,
    progress: Callable[[int, int], None],
) -> None:
    ended = count - len(items)

    def done(number: int) -> None:
        nonlocal ended
        ended += 1
        progress(ended, count)

    if ray:
        cluster.on_ray(source, work, items, settings, done, ray)
    elif workers:
        pool.in_processes(source, work, items, settings, done, workers)
    else:
        pool.in_this_process(source, work, items, settings, done)


def _write(
    folder: Path,
    work: Path,
    plan: Plan,
    mark: dict[str, Any],
    settings: Settings,
    workers: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Everything that the reader of the folder sees."""
    said = write_captions(plan.clips, settings, work / "captions.jsonl", workers, tell)
    draw_pictures(plan, work / "pictures")
    rows = []
    for clip in plan.clips:
        given = clip.item.caption
        by = "given" if given is not None else name_of(settings) if clip.key in said else None
        rows.append(row_of(clip, said.get(clip.key) if given is None else given, by, settings))
    by_key = {row["key"]: row for row in rows}
    journal = work / "shards"
    journal.mkdir(exist_ok=True)
    shards = [write_shard(folder, journal, name, clips, by_key) for name, clips in plan.shards.items()]
    write_lines(folder / "manifest.jsonl", rows)
    hidden = ("picture", "piece")
    dropped = [{name: value for name, value in row.items() if name not in hidden} for row in plan.dropped]
    write_lines(folder / "dropped.jsonl", dropped)
    images = sum(row["frames"] == 1 for row in rows)
    index = {
        **mark,
        "buckets": sorted({tuple(shard["bucket"]) for shard in shards}),
        "fps": settings.fps,
        "clips": len(rows) - images,
        "images": images,
        "captioned": sum(row["caption"] is not None for row in rows),
        "dropped": dict(sorted(Counter(row["reason"] for row in dropped).items())),
        "shards": shards,
    }
    write_whole(folder / "report" / "index.html", write_page(plan, rows, index, work / "pictures"))
    write_whole(folder / "prepared.json", json.dumps(index, indent=2) + "\n")
    return read_json(folder / "prepared.json")
