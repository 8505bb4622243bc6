"""A cache of encoded clips: shards of latents in safetensors, each with a JSON line per clip beside it.

The cache belongs to one encoder, named by the fingerprint of its weights, and is refused by any other. Shards are
made one at a time and count only when whole, so an interrupted encoding goes on where it stopped. Reading maps the
files into memory (or a device) and gathers any clips in any order.

    cache.json                  format, fingerprint, number of clips, clips per shard, whatever describes the data
    shard-00000.safetensors     latents `n c f h w`; optionally keyframes `n k c h w` and frames `n k`, and more
    shard-00000.jsonl           n lines: caption, scene, ...
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from carrara.core.config import read_json, write_json
from carrara.core.files import replace_file

FORMAT = 1
_NAMED = ("latents", "keyframes", "frames")


@dataclass(frozen=True)
class LatentBatch:
    """Some clips: what a producer gives and what the cache gives back.

    latents: `b c f h w`; records: one JSON object per clip; keyframes: `b k c h w`, single frames of the clip encoded
    alone (the image path); frames: `(b, k)` int64, the pixel frames they show; more: other tensors `b ...` by name,
    which are stored in the type of the latents.
    """

    latents: Tensor
    records: Sequence[Mapping[str, Any]]
    keyframes: Tensor | None = None
    frames: Tensor | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.records) != len(self.latents):
            raise ValueError(f"{len(self.latents)} clips but {len(self.records)} records: give one record per clip")
        if (self.keyframes is None) != (self.frames is None):
            raise ValueError("keyframes and frames go together: give both or neither")
        if self.keyframes is not None and self.frames is not None:
            wanted = (len(self.latents), self.frames.shape[-1])
            if self.keyframes.shape[:2] != wanted or self.frames.shape != wanted:
                raise ValueError(
                    f"keyframes {tuple(self.keyframes.shape)} and frames {tuple(self.frames.shape)}: "
                    f"expected `b k c h w` and `b k` with b={len(self.latents)}"
                )


Produce = Callable[[int, int], Iterable[LatentBatch]]


def write_latents(
    folder: Path,
    produce: Produce,
    count: int,
    fingerprint: str,
    shard: int = 2000,
    dtype: torch.dtype = torch.float16,
    about: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Encode `count` clips into a cache, or finish one that was begun.

    `produce(start, stop)` yields batches that together are clips start..stop-1 in order; it must be a function of
    those numbers, so that any shard can be made again. A larger `count` than before extends the cache, a smaller one
    finishes it as it was begun. `about` are JSON values that define the data (the world's version, the clip's shape):
    like the fingerprint, shard size and dtype they must agree with what is there. `report(done, count)` is called
    after every shard. Raises ValueError for a cache of another encoder or other data, for latents that are not
    finite, and for too few or too many clips.
    """
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "count": count,
        "shard": shard,
        "dtype": str(dtype).removeprefix("torch."),
        "about": json.loads(json.dumps(about or {})),
    }
    if count < 1 or shard < 1:
        raise ValueError(f"count={count}, shard={shard}: both must be at least 1")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype={dtype}: must be torch.float16, torch.bfloat16 or torch.float32")
    if (folder / "cache.json").is_file():
        count = index["count"] = max(count, _check_same(folder, index))
    write_json(folder / "cache.json", index)
    for start in range(0, count, shard):
        stop = min(start + shard, count)
        path = _shard_path(folder, start // shard)
        if _rows(path) < stop - start:
            _write_shard(path, produce(start, stop), start, stop, dtype, fingerprint)
        if report:
            report(stop, count)


def _check_same(folder: Path, index: Mapping[str, Any]) -> int:
    """How many clips an existing cache has; refused unless it holds the same data of the same encoder."""
    past = read_json(folder / "cache.json")
    _check_fingerprint(folder, past, str(index["fingerprint"]))
    for key in ("format", "shard", "dtype", "about"):
        if past.get(key) != index[key]:
            raise ValueError(
                f"{folder}: this cache has {key}={past.get(key)!r}, asked for {index[key]!r}; write to a new folder"
            )
    return int(past["count"])


def _check_fingerprint(folder: Path, index: Mapping[str, Any], fingerprint: str) -> None:
    if index.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: latent cache of format {index.get('format')!r}, expected {FORMAT}; encode it again"
        )
    if index.get("fingerprint") != fingerprint:
        raise ValueError(
            f"{folder}: these latents were made by another encoder (fingerprint {str(index.get('fingerprint'))[:12]}, "
            f"this one is {fingerprint[:12]}); encode into a new folder, or delete this one"
        )


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _rows(path: Path) -> int:
    """How many clips a whole shard holds; 0 where there is none or it is damaged."""
    if not path.is_file() or not path.with_suffix(".jsonl").is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.get_slice("latents").get_shape()[0])
    except SafetensorError:
        return 0


def _write_shard(
    path: Path, batches: Iterable[LatentBatch], start: int, stop: int, dtype: torch.dtype, fingerprint: str
) -> None:
    """Gather one shard and write it: the records first, the latents last, for these are what makes it count."""
    parts: dict[str, list[Tensor]] = {}
    lines: list[str] = []
    for batch in batches:
        stored = {"latents": batch.latents, "keyframes": batch.keyframes, **batch.more}
        for name, value in stored.items():
            if value is None:
                continue
            kept = value.detach().to("cpu", dtype)
            if not kept.isfinite().all():
                bad = int((~kept.flatten(1).isfinite().all(1)).nonzero()[0])
                raise ValueError(
                    f"clip {start + len(lines) + bad}: its {name} are not finite as {dtype}; "
                    "normalise the latents, or store them as torch.bfloat16"
                )
            parts.setdefault(name, []).append(kept)
        if batch.frames is not None:
            parts.setdefault("frames", []).append(batch.frames.to("cpu", torch.int64))
        lines += [json.dumps(record, ensure_ascii=False) for record in batch.records]
    if len(lines) != stop - start:
        raise ValueError(f"clips {start} to {stop - 1}: the producer gave {len(lines)} instead of {stop - start}")
    tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
    for name, value in tensors.items():
        if len(value) != stop - start:
            raise ValueError(f"clips {start} to {stop - 1}: only {len(value)} of them have {name}; give all or none")
    replace_file(path.with_suffix(".jsonl"), lambda to: to.write_text("".join(f"{line}\n" for line in lines), "utf-8"))
    replace_file(path, lambda to: save_file(tensors, to, metadata={"format": "pt", "fingerprint": fingerprint}))


class LatentCache:
    """A finished cache, read in any order: `cache[indices]` is a `LatentBatch`."""

    def __init__(
        self, folder: Path, shards: list[dict[str, Tensor]], lines: list[_Lines], size: int, about: Mapping[str, Any]
    ) -> None:
        self.folder, self.about = folder, about
        self._shards, self._lines, self._size = shards, lines, size
        self._count = sum(len(part) for part in lines)

    @classmethod
    def open(
        cls, folder: Path, fingerprint: str, device: torch.device | str | None = None, partial: bool = False
    ) -> LatentCache:
        """Open the cache that the encoder of this fingerprint wrote; `partial` takes the shards that are there so far.

        Without a device the files are mapped, so that clips are read when they are used and the system's page cache
        holds them; with one ("cpu", "cuda") all latents are loaded there and batches come from there. Raises
        ValueError for another encoder's cache, an unfinished or a damaged one.
        """
        index = read_json(folder / "cache.json")
        _check_fingerprint(folder, index, fingerprint)
        count, size = int(index["count"]), int(index["shard"])
        shards, lines = [], []
        for start in range(0, count, size):
            path, rows = _shard_path(folder, start // size), min(size, count - start)
            if partial and start and _rows(path) < rows:
                count = start
                break
            shards.append(_map_shard(path, rows, fingerprint))
            lines.append(_Lines(path.with_suffix(".jsonl"), rows))
        if device is not None:
            shards, size = [_load(shards, torch.device(device))], count
        return cls(folder, shards, lines, size, index.get("about", {}))

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int, ...]:
        """The latents of one clip: (c, f, h, w)."""
        return tuple(self._shards[0]["latents"].shape[1:])

    @property
    def keyframes(self) -> int:
        """How many keyframes are stored with every clip."""
        return self._shards[0]["frames"].shape[1] if "frames" in self._shards[0] else 0

    def __getitem__(self, indices: Tensor | Sequence[int] | slice | int) -> LatentBatch:
        """These clips, in this order, as stored (dtype and device)."""
        chosen = self._chosen(indices)
        return LatentBatch(
            self._gather("latents", chosen),
            self.records(chosen),
            self._gather("keyframes", chosen) if self.keyframes else None,
            self._gather("frames", chosen) if self.keyframes else None,
            {name: self._gather(name, chosen) for name in self._shards[0] if name not in _NAMED},
        )

    def latents(self, indices: Tensor | Sequence[int] | slice | int) -> Tensor:
        """The latents `b c f h w` alone."""
        return self._gather("latents", self._chosen(indices))

    def records(self, indices: Tensor | Sequence[int] | slice | int) -> list[dict[str, Any]]:
        """The records alone."""
        size = len(self._lines[0])
        return [self._lines[i // size].read(i % size) for i in self._chosen(indices).tolist()]

    def _chosen(self, indices: Tensor | Sequence[int] | slice | int) -> Tensor:
        if isinstance(indices, slice):
            return torch.arange(len(self))[indices]
        chosen = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise ValueError(f"clips {int(chosen.min())} to {int(chosen.max())}: the cache holds 0 to {len(self) - 1}")
        return chosen

    def _gather(self, name: str, chosen: Tensor) -> Tensor:
        first = self._shards[0][name]
        if not first.is_cpu:
            return first.index_select(0, chosen.to(first.device))
        gathered = torch.empty(len(chosen), *first.shape[1:], dtype=first.dtype)
        for row, clip in zip(gathered, chosen.tolist()):  # on a CPU quicker than index_select over halves
            row.copy_(self._shards[clip // self._size][name][clip % self._size])
        return gathered


class _Lines:
    """A mapped file of JSON lines, parsed only where it is read."""

    def __init__(self, path: Path, count: int) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: missing; run the encoding again after deleting its shard")
        self._path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        ends = np.flatnonzero(np.frombuffer(self._bytes, dtype=np.uint8) == ord("\n"))
        self._starts = np.concatenate([[0], ends + 1])
        if len(ends) != count:
            raise ValueError(
                f"{path}: holds {len(ends)} records, its shard {count} clips; delete both and encode again"
            )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, line: int) -> dict[str, Any]:
        return json.loads(self._bytes[self._starts[line] : self._starts[line + 1]])


def _map_shard(path: Path, rows: int, fingerprint: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: missing, the encoding was not finished; run it again to complete the cache")
    try:
        with safe_open(path, framework="pt") as file:
            made_by = (file.metadata() or {}).get("fingerprint", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and run the encoding again") from None
    if made_by != fingerprint:
        raise ValueError(f"{path}: comes from another cache (fingerprint {made_by[:12]}); delete it and encode again")
    if len(tensors["latents"]) != rows:
        raise ValueError(f"{path}: holds {len(tensors['latents'])} clips, expected {rows}; run the encoding again")
    return tensors


def _load(shards: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """All shards as one, on a device, without a second copy of everything on the way."""
    loaded = {}
    for name, first in shards[0].items():
        whole = torch.empty(sum(len(s[name]) for s in shards), *first.shape[1:], dtype=first.dtype, device=device)
        at = 0
        for part in shards:
            whole[at : at + len(part[name])].copy_(part[name])
            at += len(part[name])
        loaded[name] = whole
    return loaded
