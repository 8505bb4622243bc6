"""What the recipes of clips train on: pixels and latents of a prepared folder, every batch a function of its step.

A process of several reads its pieces of the same batch alone; what is drawn at random (captions left out, places of
views) is drawn for each row of the whole batch, so that it does not depend on how many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from einops import rearrange
from torch import Tensor

from carrara.autoencoders.video import VideoAutoencoder
from carrara.core.config import at_least
from carrara.core.types import Stride, VideoShape, check_frames, check_multiple
from carrara.data.batches import Turns
from carrara.data.batches import mix as mix_seed
from carrara.data.clip_latents import Encode
from carrara.data.clip_pixels import ClipReader, draw_view, view_shape
from carrara.data.latents import LatentBatch, LatentCache
from carrara.data.mixture import Mixture, Weights, clip_sets, equal_work, is_held_out, kind_of
from carrara.data.prepared import Prepared, describe
from carrara.recipes.clips_images import image_of
from carrara.recipes.pond_data import frames_per_latent
from carrara.systems.phases import CaptionedLatents, PixelBatch, to_unit
from carrara.training.config import TrainConfig
from carrara.training.parallel import place

_MODES = 8  # steps on views of all kinds in an epoch of their turns


@dataclass(frozen=True)
class Split:
    """Which clips are trained on and which are kept for validation, by their numbers in the prepared folder.

    If nothing is held out, validation is on clips that are trained on.
    """

    trained: frozenset[int]
    held_out: frozenset[int]

    @classmethod
    def of(cls, prepared: Prepared, share: float, seed: int) -> Split:
        """Hold out about this share of the sources, all clips of each. Raises ValueError if nothing is left."""
        if not 0 <= share < 1:
            raise ValueError(f"held_out={share}: must be a share from 0 to below 1")
        held = frozenset(n for n, row in enumerate(prepared.rows) if is_held_out(row.source_hash, share, seed))
        if len(held) == len(prepared):
            raise ValueError(f"held_out={share}: leaves none of the {len(prepared)} clips to train on; use less, or 0")
        return cls(frozenset(range(len(prepared))) - held, held)

    def kinds(self, prepared: Prepared) -> list[list[str | None]]:
        """Of each bucket the kinds of its clips in order, None for one that is held out."""
        return [
            [
                kind_of(prepared.bucket(n).frames, prepared.rows[n].caption) if n in self.trained else None
                for n in numbers
            ]
            for numbers in prepared.members
        ]

    def main_bucket(self, prepared: Prepared) -> int:
        """The bucket that validation and pictures show: of those with frames that move the one with the most clips."""
        sizes = [sum(n in self.trained for n in numbers) for numbers in prepared.members]
        return max(range(len(sizes)), key=lambda b: (sizes[b] > 0 and prepared.buckets[b].frames > 1, sizes[b]))

    def validation(self, prepared: Prepared, count: int, bucket: int | None = None) -> list[int]:
        """At most so many numbers of clips held out, evenly from all of a bucket; of those trained on where nothing is
        held out. Without a bucket: of the main one, in any case some."""
        numbers = prepared.members[self.main_bucket(prepared) if bucket is None else bucket]
        chosen = [n for n in numbers if n in self.held_out]
        if not chosen and (bucket is None or not self.held_out):
            chosen = [n for n in numbers if n in self.trained]
        return evenly(chosen, count)


def evenly(numbers: list[int], count: int) -> list[int]:
    """At most so many of these, at equal distances."""
    return [numbers[index * len(numbers) // count] for index in range(count)] if len(numbers) > count else numbers


def latent_mixture(
    prepared: Prepared, split: Split, costs: Sequence[float], batch: int, seed: int, weights: Weights
) -> Mixture:
    """The batches of the denoiser: `batch` clips of the dearest bucket, as many of a cheaper one as cost the same."""
    return Mixture(clip_sets(split.kinds(prepared), equal_work(costs, batch)), seed, weights)


class LatentBatches:
    """Batches of the caches (one for each bucket) by step.

    dropout: share of captions that are left out, drawn anew each time; unlabelled clips have the null caption.
    """

    def __init__(self, caches: Sequence[LatentCache | None], mixture: Mixture, dropout: float = 0.0) -> None:
        self.caches, self.mixture, self.dropout = caches, mixture, dropout

    def __call__(self, step: int) -> CaptionedLatents:
        return self.piece(step, 0, 1)[0]

    def piece(self, step: int, number: int, count: int) -> tuple[CaptionedLatents, int]:
        """One of so many pieces of a step's batch, nothing else being read, and how many rows the batch has."""
        drawn = self.mixture.at(step, number, count)
        cache = self.caches[drawn.bucket]
        assert cache is not None
        clips = cache[drawn.clips]
        draws = [mix_seed(self.mixture.seed, step, drawn.first + row) / 2**63 for row in range(len(drawn.clips))]
        captions = [
            "" if draw < self.dropout else record["caption"] or "" for draw, record in zip(draws, clips.records)
        ]
        return captioned(clips, captions, cache), drawn.whole


def validation_batches(
    prepared: Prepared, split: Split, caches: Sequence[LatentCache | None], mixture: Mixture, count: int
) -> list[CaptionedLatents]:
    """Fixed batches of at most `count` clips of each bucket, none larger than those that are trained on."""
    most = {one.bucket: one.batch for one in mixture.sets}
    batches = []
    for bucket, (numbers, cache) in enumerate(zip(prepared.members, caches)):
        if cache is None:
            continue
        places = {number: place for place, number in enumerate(numbers)}
        chosen = split.validation(prepared, count, bucket)
        for start in range(0, len(chosen), most.get(bucket, 1)):
            some = chosen[start : start + most.get(bucket, 1)]
            said = [prepared.rows[number].caption or "" for number in some]
            batches.append(captioned(cache[[places[number] for number in some]], said, cache))
    return batches


def captioned(clips: LatentBatch, captions: Sequence[str], cache: LatentCache) -> CaptionedLatents:
    """Clips of a cache for the denoiser; where it has no keyframes, the first latent frame stands in for them."""
    if clips.keyframes is None or clips.frames is None:
        nothing = torch.zeros(len(captions), 1)
        return CaptionedLatents(clips.latents, captions, clips.latents[:, :, :1], nothing, image=image_of(clips))
    keyframes = rearrange(clips.keyframes, "b k c h w -> b c k h w")
    times = clips.frames.float() / frames_per_latent(cache)
    return CaptionedLatents(clips.latents, captions, keyframes, times, image=image_of(clips))


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the autoencoder is shown of the clips, step by step.

    Steps are on whole clips, on pieces of `frames` frames, or on single frames, in the proportions `whole`, `pieces`,
    `stills`; pieces and stills are windows of at most `side` pixels a side (0: the whole picture). A clip has to be
    decoded for one frame of it, so that `per_clip` stills are taken of each. Every step is on as many clips as have
    `pixels` places in space and time in their views, at least one: equal work, whatever the bucket.
    """

    pixels: int = 140_000
    side: int = 0
    frames: int = 9
    whole: float = 0.25
    pieces: float = 0.5
    stills: float = 0.25
    per_clip: int = 4

    def __post_init__(self) -> None:
        at_least(self, 1, "pixels", "frames", "per_clip")
        at_least(self, 0, "side", "whole", "pieces", "stills")
        if not self.whole + self.pieces + self.stills:
            raise ValueError("whole, pieces and stills are all 0: say what the autoencoder is shown, e.g. whole=1")

    def check(self, stride: Stride) -> None:
        """Refuse views that an autoencoder of this stride cannot take."""
        if self.pieces:
            check_frames(self.frames, stride.time)
        if self.side:
            check_multiple("side", self.side, stride.space)


class ViewBatches:
    """Batches of views of the clips that are trained on, with or without captions, by step."""

    def __init__(self, reader: ClipReader, split: Split, views: Views, seed: int) -> None:
        self.reader, self.prepared, self.seed = reader, reader.prepared, seed
        longest = max(shape.frames for shape in self.prepared.buckets)
        self.modes = [(longest, 0, 1), (views.frames, views.side, 1), (1, views.side, views.per_clip)]
        shares = [Fraction(share).limit_denominator(1000) for share in (views.whole, views.pieces, views.stills)]
        self.turns = Turns(tuple(_MODES * share / sum(shares) for share in shares), mix_seed(seed, len(self.modes)))
        kinds = [["video" if n in split.trained else None for n in numbers] for numbers in self.prepared.members]
        self.mixtures = []
        for number, (frames, side, count) in enumerate(self.modes):
            places = [count * _places(view_shape(shape, frames, side)) for shape in self.prepared.buckets]
            sets = clip_sets(kinds, [max(1, views.pixels // work) for work in places])
            self.mixtures.append(Mixture(sets, mix_seed(seed, number)))

    @property
    def least(self) -> int:
        """Clips of the smallest batch."""
        used = [mixture for mixture, rate in zip(self.mixtures, self.turns.rates) if rate]
        return min(one.batch for mixture in used for one in mixture.sets)

    def __call__(self, step: int) -> PixelBatch:
        return self.piece(step, 0, 1)[0]

    def piece(self, step: int, number: int, count: int) -> tuple[PixelBatch, int]:
        """One of so many pieces of a step's batch, nothing else being decoded, and how many clips the batch has."""
        mode, before = self.turns.at(step)
        drawn = self.mixtures[mode].at(before, number, count)
        shape, numbers = self.prepared.buckets[drawn.bucket], self.prepared.members[drawn.bucket]
        frames, side, views = self.modes[mode]
        shown = []
        for row, clip in enumerate(self.reader.clips([numbers[at] for at in drawn.clips.tolist()]), drawn.first):
            generator = torch.Generator().manual_seed(mix_seed(self.seed, step, row))
            shown += [clip[draw_view(shape, frames, side, generator)] for _ in range(views)]
        return without_actors(torch.stack(shown)), drawn.whole


def encoding(autoencoder: VideoAutoencoder, pixels: int, device: torch.device) -> Encode:
    """How clips uint8 `b t h w 3` are encoded: on the device, in bfloat16 products, long ones piece by piece."""

    def encode(video: Tensor) -> Tensor:
        b, t, h, w, _ = video.shape
        step = autoencoder.stride.time
        more = step * max(1, pixels // (b * h * w * step))  # frames of a later piece
        with torch.autocast(device.type, torch.bfloat16):
            return autoencoder.encode_pieces(t, more, lambda start, stop: to_unit(video[:, start:stop].to(device)))

    return encode


def without_actors(video: Tensor) -> PixelBatch:
    """Clips uint8 `b t h w 3` of which nobody has said where to look."""
    return PixelBatch(video, torch.zeros((), dtype=torch.uint8).expand(video.shape[:4]))


def check_buckets(prepared: Prepared, fits: Callable[[VideoShape], object], who: str) -> None:
    """Refuse a prepared folder with clips that a model cannot take, naming the first bucket and what would fit."""
    for shape, numbers in zip(prepared.buckets, prepared.members):
        try:
            if numbers:
                fits(shape)
        except ValueError as error:
            said = f"{who} cannot take its {len(numbers)} clips of {describe(shape)} ({error})"
            raise ValueError(f"{prepared.folder}: {said}; prepare the clips in sizes that fit") from None


def check_pieces(least: int, config: TrainConfig, setting: str) -> None:
    """Refuse batches whose smallest has fewer rows than there are pieces to cut it into."""
    count = config.pieces or max(1, place()[1] // config.parallel.sequence)
    if least < count:
        raise ValueError(
            f"{setting}: gives {least} clip{'s' * (least > 1)} in some steps, which cannot be cut into {count} pieces "
            f"(train.pieces, or one for each process); raise it {-(-count // least)} times"
        )


def _places(shape: VideoShape) -> int:
    return shape.frames * shape.height * shape.width
