"""What a prepared folder holds, in a few lines, and whether all of it is there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from carrara.core.config import read_json
from carrara.data.prepared import Prepared
from carrara.data.prepared import describe as shape_in_words


def describe(folder: str | Path, verify: bool = False) -> list[tuple[str, str]]:
    """Names and values to show. Raises ValueError for a folder that is not prepared, not finished, or not whole."""
    folder = Path(folder)
    work = folder / ".work" / "work.json"
    if work.is_file() and not (folder / "prepared.json").is_file():
        done = sum(path.is_file() for path in folder.glob(".work/items/*/item.json"))
        said = f"{done} of {read_json(work).get('files', '?')} files are done"
        raise ValueError(f"{folder}: not finished, {said}; run the same `carrara data prepare` again to go on")
    prepared = Prepared(folder)
    index = read_json(folder / "prepared.json")
    (prepared.verify if verify else prepared.check)()
    counts = Counter(row.bucket for row in prepared.rows)
    captions = sum(row.caption is not None for row in prepared.rows)
    rows = [
        ("folder", str(folder)),
        ("source", f"{index.get('source')}: {index.get('files')} files"),
        ("clips", f"{index['clips']}, and {index['images']} pictures, at {prepared.fps:g} frames per second"),
        ("captions", f"{captions} of {len(prepared)}, {_distinct(prepared)} different"),
    ]
    for bucket, count in sorted(counts.items()):
        rows.append(("bucket", f"{shape_in_words(prepared.buckets[bucket])}: {count}"))
    size = sum(shard["bytes"] for shard in prepared.shards.values())
    rows.append(
        ("shards", f"{len(prepared.shards)}, {size / 2**20:.1f} MiB, {'as written' if verify else 'all there'}")
    )
    dropped = ", ".join(f"{count} {reason}" for reason, count in index.get("dropped", {}).items())
    rows.append(("dropped", dropped or "nothing"))
    rows.append(("report", str(folder / "report" / "index.html")))
    return rows


def _distinct(prepared: Prepared) -> int:
    return len({row.caption for row in prepared.rows if row.caption is not None})
