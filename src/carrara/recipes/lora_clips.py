"""Latents for an adapter: folders of one or several shapes as one source of batches, a function of the step.

A record says "caption", a text or null, or "captions", several ways to say the same, of which each visit takes one. A
cache of the pond has scenes instead, which are told anew at every visit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carrara.core.config import from_dict, read_json
from carrara.core.types import VideoShape
from carrara.data.batches import Turns, indices, mix
from carrara.data.clip_latents import encode_prepared, open_latents
from carrara.data.latents import LatentCache
from carrara.data.mixture import equal_work
from carrara.data.pond.world import Scene
from carrara.data.prepared import Prepared
from carrara.recipes.clips_autoencoder import encoder_fingerprint
from carrara.recipes.clips_data import captioned, check_buckets
from carrara.recipes.clips_images import check_images_kept, image_reader, moving_clips
from carrara.recipes.pond_data import Captioning
from carrara.recipes.pond_distill import open_clips as open_pond
from carrara.systems.latent import LatentVideo
from carrara.systems.parts import ModelFolder
from carrara.systems.phases import CaptionedLatents, to_unit
from carrara.training.parallel import alone_first

_POND = Captioning(synonyms_from=0)


def open_latents_of(path: Path, found: ModelFolder, system: LatentVideo, folder: Path) -> list[LatentCache]:
    """The latents of a folder, one cache for each shape; a prepared folder is encoded below `folder` first.

    Raises ValueError for a folder of another kind, and for latents that another autoencoder made.
    """
    made_by = encoder_fingerprint(found.folder / "vae", found.networks["vae"].files())
    beside = image_reader(found, system)
    if (path / "cache.json").is_file():
        index = read_json(path / "cache.json")
        if index.get("fingerprint") != made_by and "world" in index.get("about", {}):
            return [open_pond(path, system, system.device)]  # a model's folder holds its autoencoder rounded
        caches = [LatentCache.open(path, made_by)]
        check_images_kept(caches, beside)
        return caches
    if not (path / "prepared.json").is_file():
        raise ValueError(
            f"{path}: neither latents (cache.json) nor a prepared folder (prepared.json); make one of your clips with: "
            "carrara data prepare CLIPS FOLDER"
        )
    prepared = moving_clips(Prepared(path)) if beside else Prepared(path)
    check_buckets(prepared, lambda shape: shape.latent(system.stride).tokens(system.patch), "this model")

    def encode(video: Tensor) -> Tensor:
        return system.autoencoder.encode(to_unit(video.to(system.device)))

    to = folder / "latents" / path.name
    with alone_first():
        encode_prepared(prepared, to, encode, made_by, system.latent_channels, report=_report, beside=beside)
    return [cache for cache in open_latents(prepared, to, made_by, beside=beside) if cache is not None]


def _report(shape: str, done: int, count: int) -> None:
    print(f"{shape}: {done} of {count} clips encoded", flush=True)


class LatentClips:
    """Clips of several folders, each with one cache per shape. A batch is of one cache; caches take turns.

    shares: of steps on each folder; by number of clips where there are none. A batch is of `batch` clips of the dearest
    shape, of a cheaper one of as many as cost the same.
    """

    def __init__(
        self, folders: Sequence[Sequence[LatentCache]], batch: int, seed: int, shares: Sequence[float] = ()
    ) -> None:
        self.caches = [cache for folder in folders for cache in folder]
        self.seed = seed
        costs = [float(torch.Size(cache.shape[1:]).numel()) for cache in self.caches]
        self.batches = equal_work(costs, batch)
        steps = [[Fraction(len(cache), self.batches[self.caches.index(cache)]) for cache in each] for each in folders]
        if shares:
            whole = sum((sum(each, Fraction(0)) for each in steps), Fraction(0))
            parts = [Fraction(share).limit_denominator(10**6) for share in shares]
            steps = [
                [rate * whole * part / sum(parts) / sum(each, Fraction(0)) for rate in each]
                for each, part in zip(steps, parts, strict=True)
            ]
        self.turns = Turns(tuple(rate for each in steps for rate in each), mix(seed, len(self.caches)))
        self.main = max(range(len(self.caches)), key=lambda n: (self.caches[n].shape[1] > 1, len(self.caches[n])))

    def __len__(self) -> int:
        return sum(map(len, self.caches))

    def __call__(self, step: int) -> CaptionedLatents:
        number, before = self.turns.at(step)
        cache = self.caches[number]
        chosen = indices(before, self.batches[number], len(cache), mix(self.seed, number))
        clips = cache[chosen]
        said = [caption_of(record, mix(self.seed, step, row)) for row, record in enumerate(clips.records)]
        return captioned(clips, said, cache)

    def first(self, count: int) -> CaptionedLatents:
        """At most so many clips of the shape that most of them have, always told in the same words."""
        cache = self.caches[self.main]
        clips = cache[range(min(count, len(cache)))]
        return captioned(clips, [caption_of(record, 0) for record in clips.records], cache)

    def captions(self, most: int | None = None) -> tuple[str, ...]:
        """Different captions, each in all its ways; at most so many."""
        found: dict[str, None] = {}
        for cache in self.caches:
            for number in range(len(cache)):
                (record,) = cache.records(number)
                found.update(dict.fromkeys(filter(None, record.get("captions") or [caption_of(record, 0)])))
                if most is not None and len(found) >= most:
                    return tuple(found)[:most]
        return tuple(found)

    @property
    def shape(self) -> VideoShape:
        """Of the clips that most are, in pixels."""
        about = self.caches[self.main].about
        return VideoShape(int(about["frames"]), int(about["height"]), int(about["width"]))

    @property
    def keyframes(self) -> bool:
        """Whether every clip that moves has frames that were encoded alone."""
        return all(cache.keyframes for cache in self.caches if cache.shape[1] > 1)

    def identity(self) -> list[dict[str, Any]]:
        """What a resumed run must find again."""
        return [{"count": len(cache), "about": dict(cache.about)} for cache in self.caches]


def caption_of(record: Mapping[str, Any], draw: int) -> str:
    """What is said of a clip at a visit, `draw` choosing among ways to say it; "" where nothing is known."""
    if "scene" in record:
        scene = from_dict(Scene, record["scene"], "scene")
        return _POND.say(scene, scene.still, draw % 3, (draw >> 8) % 1000 / 1000, 0, draw)
    ways = record.get("captions")
    return str(ways[draw % len(ways)]) if ways else record.get("caption") or ""
