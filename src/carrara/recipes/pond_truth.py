"""What the pond's cached clips truly show, token by token: the simulator's truth as targets for middle features.

A table belongs to a latent cache and lies beside its shards (`content.safetensors`): made once from the scenes in the
cache's records, 3 ms a clip on one core, a thousandth of the latents' size, and made again when the records change.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from carrara.core.config import from_dict
from carrara.core.files import replace_file
from carrara.core.types import VideoShape
from carrara.core.weights import fingerprint
from carrara.data.latents import LatentCache
from carrara.data.pond.coverage import MOST_ACTORS, coverage
from carrara.data.pond.world import ACTORS, BACKGROUNDS, COLOURS, MOTIONS, Scene
from carrara.systems.alignment import Alignment, Content, ContentHead

ACTOR_LABELS = (tuple(ACTORS), tuple(COLOURS), tuple(MOTIONS))  # kind, colour, motion
BACKGROUND_LABELS = tuple(BACKGROUNDS)
MOTION = 2  # which of the actor's labels needs time to be seen
PART = 256  # clips simulated at once


def content_head(dim: int, moments: int, alignment: Alignment, seed: int) -> ContentHead:
    """A head for what `TruthTable` tells; moments: pixel frames in a latent frame."""
    return ContentHead(
        dim, [len(labels) for labels in ACTOR_LABELS], [len(BACKGROUND_LABELS)], moments, alignment, seed
    )


class TruthTable:
    """The content of every clip of a cache: `table(clips)`; of single frames of them: `table.stills(clips, frames)`.

    covered: uint8 `n a t r c`, 255ths of each cell in which actor a is seen in each pixel frame; actors: int8 `n a k`
    labels, -1 for none; clip: int8 `n m`.
    """

    def __init__(self, covered: Tensor, actors: Tensor, clip: Tensor, moments: int) -> None:
        self.covered, self.actors, self.clip = covered, actors, clip
        frames = torch.arange(0, covered.shape[2], moments)
        # A latent frame stands for `moments` pixel frames, the first for one alone, which is told as often.
        self.moments = torch.stack([(frames - back).clamp(min=0) for back in reversed(range(moments))], dim=1)

    def __len__(self) -> int:
        return len(self.covered)

    @classmethod
    def open(cls, cache: LatentCache, moments: int, rows: int, columns: int) -> TruthTable:
        """The table beside a cache, in cells of rows x columns tokens; made first where it is missing or outdated."""
        path = cache.folder / "content.safetensors"
        records = fingerprint(sorted(cache.folder.glob("shard-*.jsonl")))
        made_for = {"records": records, "clips": str(len(cache)), "grid": f"{rows}x{columns}"}
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}) == made_for:
                    return cls(file.get_tensor("covered"), file.get_tensor("actors"), file.get_tensor("clip"), moments)
        about = cache.about
        shape, fps = VideoShape(about["frames"], about["height"], about["width"]), float(about["fps"])
        covered = torch.zeros(len(cache), MOST_ACTORS, shape.frames, rows, columns, dtype=torch.uint8)
        actors, clip = [], []
        for start in range(0, len(cache), PART):
            clips = range(start, min(start + PART, len(cache)))
            scenes = [from_dict(Scene, record["scene"], "scene") for record in cache.records(clips)]
            covered[start : clips.stop] = (coverage(scenes, shape, fps, rows, columns) * 255 + 0.5).to(torch.uint8)
            actors += [actor_labels(scene) for scene in scenes]
            clip += [[BACKGROUND_LABELS.index(scene.background)] for scene in scenes]
            if clips.stop == len(cache) or start // PART % 16 == 15:
                print(f"{path}: {clips.stop} of {len(cache)} clips", flush=True)
        tensors = {"covered": covered, "actors": torch.tensor(actors).char(), "clip": torch.tensor(clip).char()}
        replace_file(path, lambda place: save_file(tensors, place, metadata=made_for))
        return cls(covered, tensors["actors"], tensors["clip"], moments)

    def __call__(self, clips: Tensor) -> Content:
        """The content of these clips `(n,)`."""
        covered = self.covered[clips][:, :, self.moments].float() / 255
        content = rearrange(covered, "b a f s r c -> b a (f r c) s")
        return Content(content, self.actors[clips].long(), self.clip[clips].long())

    def stills(self, clips: Tensor, frames: Tensor) -> Content:
        """The content of some frames `(n, k)` of each of these clips `(n,)`, as n k images; they have no motions."""
        rows, k = torch.arange(len(clips))[:, None], frames.shape[1]
        covered = rearrange(self.covered[clips], "b a t r c -> b t a r c")[rows, frames].float() / 255
        moments = self.moments.shape[1]
        content = repeat(covered, "b k a r c -> (b k) a (r c) s", s=moments)
        actors = self.actors[clips].long().repeat_interleave(k, dim=0)
        actors[..., MOTION] = -1
        return Content(content, actors, self.clip[clips].long().repeat_interleave(k, dim=0))


def actor_labels(scene: Scene) -> list[list[int]]:
    """Kind, colour and motion of each actor as numbers; -1 for no actor, and for the motion of an image."""
    labels = []
    for actor in scene.actors:
        values = (actor.kind, actor.colour, actor.motion)
        labels.append([names.index(value) for names, value in zip(ACTOR_LABELS, values)])
        if scene.still:
            labels[-1][MOTION] = -1
    return labels + [[-1] * len(ACTOR_LABELS)] * (MOST_ACTORS - len(labels))
