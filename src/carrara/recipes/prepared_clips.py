"""A prepared folder for the systems of pixels: which clips each stage is shown, and captioned batches of them.

Every batch is a function of its step. What is held out is shown to no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Generator, Tensor

from carrara.core.config import read_json
from carrara.data.batches import indices
from carrara.data.batches import mix as mix_seed
from carrara.data.clip_pixels import ClipReader
from carrara.data.prepared import Prepared, describe
from carrara.recipes.clips_data import Split, evenly
from carrara.recipes.prepared_pieces import Wanted, how_to_prepare
from carrara.recipes.prepared_words import words_of
from carrara.systems.stage_phase import CaptionedClips
from carrara.text.tokenizer import Tokenizer
from carrara.training.parallel import alone_first, place

if TYPE_CHECKING:
    from carrara.recipes.make_a_video import MakeAVideoRecipe
    from carrara.recipes.vdm import VDMRecipe

FOLDER = ("data", "held_out", "threads", "memory")  # settings of a recipe that trains on a prepared folder too


class PreparedClips:
    """The clips of a prepared folder by number, cut to what is wanted. system: what all stages want."""

    def __init__(self, prepared: Prepared, split: Split, reader: ClipReader, system: Sequence[Wanted]) -> None:
        self.prepared, self.split, self.reader, self.system = prepared, split, reader, system
        self._verified = False

    def trained(self, wanted: Wanted, least: int = 1) -> list[int]:
        """The clips that a stage learns from. Raises ValueError where they are fewer than `least`."""
        folder, who = self.prepared.folder, f"{wanted.stage}, which learns {wanted}"
        everything = range(len(self.prepared))
        if not self._fitting(replace(wanted, captioned=False), everything):
            has = ", ".join(
                describe(shape) for shape, numbers in zip(self.prepared.buckets, self.prepared.members) if numbers
            )
            raise ValueError(
                f"{folder}: none of its clips fits {who}: it has {has} at {self.prepared.fps:g} fps; "
                f"prepare clips that fit all stages: {how_to_prepare(self.system)}"
            )
        if not self._fitting(wanted, everything):
            raise ValueError(
                f"{folder}: none of the clips that fit {who}, has a caption; write captions beside the files (clip.txt "
                "beside clip.mp4), or have them written (--captioner), and prepare the folder again"
            )
        found = self._fitting(wanted, sorted(self.split.trained))
        if len(found) < least:
            setting = f"--{wanted.stage.replace('_', '-')}.batch {len(found)}" if found else "--held-out 0"
            raise ValueError(
                f"{folder}: {len(found)} of its clips that are not held out fit {who}, and a batch takes {least}; "
                f"prepare more, or set {setting}"
            )
        return found

    def held_out(self, wanted: Wanted, count: int) -> list[int]:
        """At most so many clips for validation, evenly from those held out; from those trained on where none is."""
        return evenly(self._fitting(wanted, sorted(self.split.held_out)) or self.trained(wanted), count)

    def cut(self, numbers: Sequence[int], wanted: Wanted, every: int, seed: int) -> Tensor:
        """A piece of each of these clips, uint8 `b t h w 3`, every so-manieth frame; where from is drawn by `seed`."""
        clips = enumerate(self.reader.clips(numbers))
        return torch.stack(
            [wanted.cut(clip, every, Generator().manual_seed(mix_seed(seed, row))) for row, clip in clips]
        )

    def captions(self, numbers: Iterable[int]) -> list[str]:
        """Their captions, "" where there is none."""
        return [self.prepared.rows[number].caption or "" for number in numbers]

    def without_captions(self) -> PreparedClips:
        """The same clips, of whose captions nothing is left."""
        return PreparedClips(self.prepared.without_captions(), self.split, self.reader, self.system)

    @cached_property
    def words(self) -> Tokenizer:
        """A tokenizer of all their captions, trained when it is first asked for."""
        return words_of(self.prepared)

    def verify(self) -> None:
        """Whether the shards hold what was written; reads them all, once. Raises ValueError."""
        if not self._verified:
            with alone_first():
                self.prepared.verify()
            self._verified = True

    def identity(self) -> list[str]:
        """SHA-256 of every bucket that has clips: the folder may move, what is in it may not change."""
        prepared = self.prepared
        return [prepared.identity(bucket) for bucket, numbers in enumerate(prepared.members) if numbers]

    def _fitting(self, wanted: Wanted, numbers: Iterable[int]) -> list[int]:
        prepared = self.prepared
        fits = [number for number in numbers if wanted.fits(prepared.bucket(number), prepared.fps)]
        return [number for number in fits if prepared.rows[number].caption] if wanted.captioned else fits


@contextmanager
def clips_of(
    recipe: VDMRecipe | MakeAVideoRecipe, folder: Path, stages: Sequence[str]
) -> Iterator[PreparedClips | None]:
    """What a run trains these stages on, checked and told of, while it is read; None where that is the pond.

    Raises ValueError, before anything is written, for a folder that is not prepared, for clips and captions that a
    stage cannot take, and for others than those that the run in `folder` has begun with.
    """
    wanted = [recipe.wanted(stage) for stage in stages]
    with opened(recipe.data, recipe.held_out, recipe.seed, recipe.threads, recipe.memory, wanted) as clips:
        check_same_clips(folder, stages, clips)
        if clips:
            recipe.check(clips)
            tell(clips)
        yield clips


@contextmanager
def opened(
    data: str, held_out: float, seed: int, threads: int, memory: float, system: Sequence[Wanted]
) -> Iterator[PreparedClips | None]:
    """The clips of a prepared folder while they are read; None where no folder is named.

    threads, memory: as those of `ClipsRecipe`. Raises ValueError for a folder that is not prepared, and where nothing
    is left to train on.
    """
    if not data:
        yield None
        return
    prepared = Prepared(data)
    split = Split.of(prepared, held_out, seed)
    with ClipReader(prepared, threads, int(memory * 1e9)) as reader:
        yield PreparedClips(prepared, split, reader, system)


def tell(clips: PreparedClips) -> None:
    """What the folder holds, and how much of it each stage is shown, a line each."""
    if place()[0]:
        return  # the first process has said it
    prepared, split = clips.prepared, clips.split
    told = sum(bool(row.caption) for row in prepared.rows)
    print(f"{prepared.folder}: {len(prepared)} clips, {told} with captions, {len(split.held_out)} held out", flush=True)
    for wanted in clips.system:
        print(f"{wanted.stage} learns {wanted}: {len(clips.trained(wanted))} clips fit", flush=True)
    if not split.held_out:
        print("no source is held out: validation is on clips that are trained on", flush=True)


def check_same_clips(folder: Path, stages: Iterable[str], clips: PreparedClips | None) -> None:
    """Refuse a run whose stages were trained on other clips (ValueError), the finished ones too."""
    now = clips.identity() if clips else None
    for stage in stages:
        path = folder / stage / "config.json"
        past = read_json(path).get("recipe", {}).get("data") if path.is_file() else now
        if past != now:
            was = "other clips than those of --data" if past and now else "a prepared folder" if past else "the pond"
            raise ValueError(
                f"{folder / stage}: was trained on {was}; {'give the same --data' if past else 'leave --data out'} to "
                "go on, or train in a new folder"
            )


def recorded(clips: PreparedClips | None, held_out: float) -> dict[str, Any]:
    """What a run records of the clips that it is trained on; of the pond nothing."""
    return {"data": clips.identity(), "held_out": held_out} if clips else {}


def captioned_clips(
    clips: PreparedClips, wanted: Wanted, numbers: Sequence[int], batch: int, images: int, seed: int
) -> Callable[[int], CaptionedClips]:
    """Batches of these clips with their captions, "" for none, each clip with `images` single frames of any that are
    trained on."""
    still, every = wanted.still, wanted.every(clips.prepared.fps)
    others = clips.trained(still) if images else []

    def at(step: int) -> CaptionedClips:
        chosen = [numbers[place] for place in indices(step, batch, len(numbers), seed).tolist()]
        video, captions = clips.cut(chosen, wanted, every, mix_seed(seed, step)), clips.captions(chosen)
        if not images:
            return CaptionedClips(video, captions, video[:, :0], ())
        behind = indices(step, batch * images, len(others), mix_seed(seed, 1)).tolist()
        shown = [others[place] for place in behind]
        frames = rearrange(clips.cut(shown, still, 1, mix_seed(seed, step, 1)), "(b k) 1 h w c -> b k h w c", k=images)
        return CaptionedClips(video, captions, frames, clips.captions(shown))

    return at


def validation_clips(clips: PreparedClips, wanted: Wanted, count: int) -> CaptionedClips:
    """A fixed batch of at most so many clips with their captions."""
    chosen = clips.held_out(wanted, count)
    video = clips.cut(chosen, wanted, wanted.every(clips.prepared.fps), 0)
    return CaptionedClips(video, clips.captions(chosen), video[:, :0], ())


def without_folder(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings without those of a prepared folder: what runs on the pond have recorded all along."""
    return {name: value for name, value in settings.items() if name not in FOLDER}
