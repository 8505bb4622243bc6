"""What a refiner of the pond learns from: simulated melting and, where wanted, what the model itself has melted.

A function of the step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from carrara.core.config import at_least, choose
from carrara.core.types import VideoShape
from carrara.data.batches import mix as mix_seed
from carrara.data.batches import part
from carrara.data.pond.melting import Melted, Melting, in_all_ways, melt, settled
from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.world import ACTORS, CAMERAS, MOTIONS, Scene
from carrara.recipes.own_clips import OwnShards
from carrara.recipes.pond_data import Captioning, window_corner
from carrara.recipes.scene_numbers import REFINER_SCENES
from carrara.systems.refiner_phase import MeltedClips

TURNS = ("frames", "pieces", "clips")
TRIED = 8  # scenes for one that is shown
OFF = 64.0  # levels of 255 by which a pixel is another thing, not a tint


@dataclass(frozen=True)
class MeltedBatches:
    """What a refiner is shown, step after step.

    turns: what steps are on, in turn; frames: scenes of a step on single frames, of which it sees `per_scene`
    successive ones each, as images of their own; pieces: scenes of a step on pieces of `piece_frames`; crop: side of
    the windows, around an actor, of frames and pieces, 0 for whole ones; clips: whole clips of a step; turning: how
    often a scene in which nothing spins is passed over, up to seven times.
    """

    turns: tuple[str, ...] = ("frames", "frames", "pieces", "clips")
    frames: int = 40
    per_scene: int = 3
    pieces: int = 13
    piece_frames: int = 9
    crop: int = 32
    clips: int = 2
    turning: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 1, "frames", "per_scene", "pieces", "piece_frames", "clips")
        at_least(self, 0, "crop")
        if not 0 <= self.turning <= 1:
            raise ValueError(f"turning={self.turning}: a share lies between 0 and 1")
        if not self.turns:
            raise ValueError("turns: empty; give at least one of " + ", ".join(TURNS))
        for turn in self.turns:
            choose("turn", turn, dict.fromkeys(TURNS))


class MeltedSource:
    """Melted clips as a function of the step: simulated ones, no scene twice, and in `own_share` of the steps
    the model's `own`, where it has any. numbered: scenes are settled (`data/pond/melting.py`) for a refiner that is
    told which frame is which."""

    def __init__(
        self,
        shown: MeltedBatches,
        shape: VideoShape,
        fps: float,
        world: Mix,
        melting: Melting,
        captioning: Captioning,
        seed: int,
        device: torch.device,
        own_share: float = 0.0,
        numbered: bool = False,
    ) -> None:
        self.shown, self.shape, self.fps, self.world = shown, shape, fps, world
        self.melting, self.captioning, self.seed, self.device = melting, captioning, seed, device
        self.own_share, self.numbered = own_share, numbered
        self.own: OwnShards | None = None  # clips of the model, made only once everything else is known to fit
        longest = max(shown.per_scene, shown.piece_frames)
        if longest > shape.frames:
            raise ValueError(f"{longest} frames of a scene are to be shown, and its clips have {shape.frames}")
        if shown.crop > min(shape.height, shape.width):
            raise ValueError(f"crop={shown.crop}: larger than the {shape.width}x{shape.height} frames")
        told = (captioning.short, captioning.medium, captioning.dense)
        self._told = torch.tensor(told)

    def __call__(self, step: int) -> MeltedClips:
        """The batch of a step."""
        return self.piece(step, 0, 1)[0]

    def piece(self, step: int, number: int, count: int) -> tuple[MeltedClips, int]:
        """A piece of a step's batch, of so many, and how many scenes the batch has."""
        shown, turns = self.shown, self.shown.turns
        turn = turns[step % len(turns)]
        scenes, frames = {
            "frames": (shown.frames, shown.per_scene),
            "pieces": (shown.pieces, shown.piece_frames),
            "clips": (shown.clips, self.shape.frames),
        }[turn]
        rows = range(scenes)[part(scenes, number, count)]
        own = self.own if (step // len(turns) * self.own_share) % 1 < self.own_share else None
        if own is not None:
            drawn = torch.Generator().manual_seed(mix_seed(self.seed, step, 3))
            chosen = [self._row(own, drawn) for _ in range(scenes)][rows.start : rows.stop]
            made, captions, first = own_of(own, chosen, frames, self.fps, drawn, self.device, self.numbered)
            scenes_shown = own.scenes(chosen)
        else:
            stride = max(shown.frames, shown.pieces, shown.clips)
            numbers = [self._number(step * stride + row) for row in rows]
            made, captions, first = self.of(numbers, frames, step)
            scenes_shown = [sample_scene(number, self.world) for number in numbers]
        rng = random.Random(mix_seed(self.seed, step, rows.start, 4))
        others = [said_of_another(scene, self.captioning, turn != "frames", rng) for scene in scenes_shown]
        if turn != "clips" and shown.crop:
            made = windows(made, shown.crop, torch.Generator().manual_seed(mix_seed(self.seed, step, rows.start, 1)))
        if turn == "frames":
            made = singles(made)
            captions, others = ([text for text in texts for _ in range(frames)] for texts in (captions, others))
            first = (first[:, None] + torch.arange(frames)).flatten()
        return replace(batch_of(made, captions, first), others=others, placed=own is None), scenes

    def _number(self, index: int) -> int:
        """The number of a scene."""
        rng = random.Random(mix_seed(self.seed, index, 5))
        for number in range(first := REFINER_SCENES + TRIED * index, first + TRIED):
            if rng.random() >= self.shown.turning or spinning(sample_scene(number, self.world)):
                break
        return number

    def _row(self, own: OwnShards, drawn: torch.Generator) -> int:
        """One of the model's own clips."""
        for _ in range(TRIED):
            row = int(torch.randint(len(own), (), generator=drawn))
            if float(torch.rand((), generator=drawn)) >= self.shown.turning or spinning(own.scenes([row])[0]):
                break
        return row

    def of(self, numbers: list[int], frames: int, step: int) -> tuple[Melted, list[str], Tensor]:
        """So many frames of each of these scenes, from anywhere in its clip, melted, with a caption of the clip and the
        number of the first frame."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, numbers[0], frames))
        scenes = [sample_scene(number, self.world) for number in numbers]
        levels = torch.multinomial(self._told, len(scenes), replacement=True, generator=generator).tolist()
        draws, starts = torch.rand(2, len(scenes), generator=generator).tolist()
        captions = [
            self.captioning.say(scene, False, level, draw, step, mix_seed(self.seed, number))
            for scene, level, draw, number in zip(scenes, levels, draws, numbers)
        ]
        rest = (self.shape.frames - frames) / self.fps
        if self.numbered:
            scenes = [settled(scene, caption) for scene, caption in zip(scenes, captions)]
        later: list[Scene] = [replace(scene, start=scene.start + rest * draw) for scene, draw in zip(scenes, starts)]
        seed = mix_seed(self.seed, numbers[0], frames, 2)
        shape = replace(self.shape, frames=frames)
        made = melt(later, shape, self.fps, self.melting, seed, self.device, not self.numbered)
        return made, captions, torch.tensor(starts) * (rest * self.fps)


def spinning(scene: Scene) -> bool:
    """Whether anything spins in it."""
    return any(actor.motion == "spins" for actor in scene.actors)


def own_of(
    own: OwnShards,
    rows: list[int],
    frames: int,
    fps: float,
    generator: torch.Generator,
    device: torch.device,
    numbered: bool = False,
) -> tuple[Melted, list[str], Tensor]:
    """So many frames of each of these clips of the model itself, from anywhere in it, beside the truth, captions, and
    the number of the first frame. numbered: the truths are settled.

    Touched is where an actor should be, and where what was made differs much from what should be there.
    """
    made, scenes, captions = own(rows)
    if numbered:
        scenes = [settled(scene, caption) for scene, caption in zip(scenes, captions)]
    starts = torch.randint(made.shape[1] - frames + 1, (len(rows),), generator=generator).tolist()
    melted = torch.stack([clip[start : start + frames] for clip, start in zip(made, starts)]).to(device)
    later: list[Scene] = [replace(scene, start=scene.start + start / fps) for scene, start in zip(scenes, starts)]
    video, actors = in_all_ways(later, VideoShape(frames, *made.shape[2:4]), fps, device, not numbered)
    error = (melted.float() - video[:, 0].float()).abs().mean(-1)
    return Melted(video, actors, melted, (actors[:, 0] > 0) | (error > OFF)), captions, torch.tensor(starts).float()


def said_of_another(scene: Scene, captioning: Captioning, moving: bool, rng: random.Random) -> str:
    """A caption of this scene with one thing changed: what an actor is or, where it is seen moving, also what it does
    or what the camera does. Every level of detail names the first two."""
    which = rng.randrange(len(scene.actors))
    actor = scene.actors[which]
    changed = rng.choice(("kind", "motion", "camera")) if moving else "kind"
    if changed == "camera":
        other = replace(scene, camera=rng.choice([camera for camera in CAMERAS if camera != scene.camera]))
    else:
        if changed == "kind":
            actor = replace(actor, stilts=False, kind=rng.choice([kind for kind in ACTORS if kind != actor.kind]))
        else:
            actor = replace(actor, motion=rng.choice([motion for motion in MOTIONS if motion != actor.motion]))
        other = replace(scene, actors=(*scene.actors[:which], actor, *scene.actors[which + 1 :]))
    level = rng.choices(range(3), (captioning.short, captioning.medium, captioning.dense))[0]
    return captioning.say(other, False, level, rng.random(), captioning.synonyms_from, rng.getrandbits(32))


def windows(clips: Melted, size: int, generator: torch.Generator) -> Melted:
    """Of each clip a square window of `size` pixels through all frames, around a place where an actor is at some time
    (else anywhere)."""
    count, _, _, height, width = clips.actors.shape
    corners = [
        window_corner((clips.actors[clip, 0] > 0).nonzero(), size, height, width, generator) for clip in range(count)
    ]

    def cut(part: Tensor, behind: int) -> Tensor:
        rows, columns = -2 - behind, -1 - behind
        return torch.stack(
            [whole.narrow(rows, top, size).narrow(columns, left, size) for whole, (top, left) in zip(part, corners)]
        )

    return Melted(cut(clips.video, 1), cut(clips.actors, 0), cut(clips.melted, 1), cut(clips.touched, 0))


def singles(clips: Melted) -> Melted:
    """Every frame as a clip of its own."""
    one, ways = "b t ... -> (b t) 1 ...", "b k t ... -> (b t) k 1 ..."
    return Melted(
        rearrange(clips.video, ways),
        rearrange(clips.actors, ways),
        rearrange(clips.melted, one),
        rearrange(clips.touched, one),
    )


def batch_of(clips: Melted, captions: list[str], first: Tensor) -> MeltedClips:
    """What the phase takes."""
    return MeltedClips(clips.melted, captions, clips.video, clips.actors, clips.touched, first=first)
