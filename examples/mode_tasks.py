"""Every mode as a task on a scene whose truth is known, with the answers it is compared with.

An answer is a clip `t h w 3`: the model's by the mode, what copying or cross-fading what is given would make, the
model's from the prompt alone put where frames are missing, the truth through the autoencoder (what no denoiser on its
latents can exceed), and the truth. Frame counts follow the model's own clip of T frames: with T = 17 a clip of 9
frames goes on for 8, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from mode_measures import UNIFORM, Task
from torch import Tensor

from carrara.core.types import VideoShape
from carrara.data.pond.captions import caption
from carrara.data.pond.render import render
from carrara.data.pond.sampling import SINGLES, sample_scene
from carrara.data.pond.validity import is_held_out, table_reason
from carrara.data.pond.world import COLOURS, Scene, colour_distance
from carrara.evaluation.prompts import HELD_IN_START, MOST_PROMPTS
from carrara.generation.conditions import Conditions
from carrara.generation.request import Plan, Request
from carrara.generation.run import Model
from carrara.generation.timeline import align
from carrara.systems.phases import to_bytes, to_unit

Answer = Callable[[], Tensor]
STRENGTHS = (0.6, 0.8)
MARGIN = 3  # pixels around an actor's silhouette that are painted anew


def draw_scenes(count: int, seed: int) -> list[tuple[int, Scene]]:
    """Scenes with one actor that training never drew, with their numbers; every other one moves uniformly."""
    found: list[tuple[int, Scene]] = []
    number = HELD_IN_START + seed * MOST_PROMPTS
    while len(found) < count:
        scene = sample_scene(number, SINGLES)
        if (scene.actors[0].motion in UNIFORM) == (len(found) % 2 == 0):
            found.append((number, scene))
        number += 1
    return found


@dataclass
class Case:
    """One scene and what the model makes of it without being told anything but the prompt."""

    model: Model
    number: int
    scene: Scene

    def __post_init__(self) -> None:
        defaults = self.model.system.defaults
        self.frames, self.fps = defaults.frames, defaults.fps
        self.height, self.width = defaults.height, defaults.width
        self.half = (self.frames - 1) // 2
        self.prompt = self.told(self.scene)
        self._kept: dict[str, Tensor] = {}

    def told(self, scene: Scene) -> str:
        return caption(scene, "medium", self.number).text

    def rendered(self, scene: Scene, frames: int, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Frames `t h w 3` and where the actor is, bool `t h w`; size is (height, width)."""
        made = render([scene], VideoShape(frames, *(size or (self.height, self.width))), self.fps)
        return made.video[0].clone(), made.mask[0] > 0

    @cached_property
    def truth(self) -> Tensor:
        return self.rendered(self.scene, 2 * self.frames - 1)[0]

    @cached_property
    def plain(self) -> Tensor:
        """From the prompt alone."""
        return self.make(None)

    @cached_property
    def plain_recoloured(self) -> Tensor:
        """From the prompt of the recoloured scene alone."""
        return self.make(None, self.recoloured)

    @cached_property
    def recoloured(self) -> Scene:
        """The same scene in the colour furthest from its own that is seen on its background and was trained on."""
        actor = self.scene.actors[0]
        others = sorted(COLOURS, key=lambda name: -colour_distance(COLOURS[name], COLOURS[actor.colour]))
        changed = (self.scene.with_actor(0, colour=name) for name in others if name != actor.colour)
        return next(scene for scene in changed if not table_reason(scene) and not is_held_out(scene))

    def make(
        self,
        conditions: Conditions | None,
        scene: Scene | None = None,
        prompt: str | None = None,
        **settings: object,
    ) -> Tensor:
        """The model's clip, of the scene's own prompt if no other is said."""
        prompt = self.told(scene or self.scene) if prompt is None else prompt
        return self.model.generate(prompt, conditions, seed=self.number % 2**31, progress=False, **settings).frames  # type: ignore[arg-type]

    def kept(self, name: str, **settings: object) -> Tensor:
        """As `make`, once for all who ask by this name."""
        if name not in self._kept:
            self._kept[name] = self.make(None, **settings)
        return self._kept[name]

    def plan(self, **settings: object) -> Plan:
        """How such a clip would be made."""
        return self.model.plan(Request(self.prompt, seed=1, **settings))  # type: ignore[arg-type]

    def sides(self, width: float, height: float) -> tuple[int, int]:
        """The width and height nearest to these that the model can make."""
        space, (_, down, across) = self.model.system.stride.space, self.model.system.patch
        columns, rows = space * across, space * down
        return max(1, round(width / columns)) * columns, max(1, round(height / rows)) * rows

    def aligned(self, frames: int) -> int:
        """The least number of frames that the model makes in one pass and is no less than this."""
        return align(frames, 0, self.model.system.stride.time)

    @torch.no_grad()
    def through(self, frames: Tensor) -> Tensor:
        """Frames through the autoencoder."""
        autoencoder = self.model.system.autoencoder
        return to_bytes(autoencoder.decode(autoencoder.encode(to_unit(frames[None]))))[0]


Mode = Callable[[Case, Sequence[float]], tuple[Task, Mapping[str, Answer]]]


def image(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    truth, count = case.truth[: case.frames], case.frames
    task = Task(case.scene, case.fps, range(1, count), truth, told=(0,))
    return task, {
        "model": lambda: case.make(Conditions(image=truth[0])),
        "copying": lambda: truth[:1].expand(count, -1, -1, -1),
        "prompt alone": lambda: case.plain,
        "truth through the autoencoder": lambda: case.through(truth),
        "truth": lambda: truth,
    }


def last(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    truth, count = case.truth[: case.frames], case.frames
    return Task(case.scene, case.fps, range(count - 1), truth, told=(count - 1,)), {
        "model": lambda: case.make(Conditions(last=truth[-1])),
        "copying": lambda: truth[-1:].expand(count, -1, -1, -1),
        "prompt alone": lambda: case.plain,
        "truth through the autoencoder": lambda: case.through(truth),
    }


def image_and_last(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    truth, count = case.truth[: case.frames], case.frames
    return Task(case.scene, case.fps, range(1, count - 1), truth, told=(0, count - 1)), {
        "model": lambda: case.make(Conditions(image=truth[0], last=truth[-1])),
        "copying": lambda: nearest(truth[[0, -1]], count),
        "cross-fading": lambda: faded(truth[0], truth[-1], count),
        "prompt alone": lambda: case.plain,
        "truth through the autoencoder": lambda: case.through(truth),
    }


def extend(case: Case, weights: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    truth, given, count = case.truth[: case.frames], case.half + 1, case.frames
    task = Task(case.scene, case.fps, range(given, count), truth, tuple(range(given)), seams=(given,))

    def made(**said: object) -> Tensor:
        return case.make(Conditions(extend=truth[:given], **said), seconds=case.half / case.fps)  # type: ignore[arg-type]

    def unprompted() -> Tensor:
        return case.make(Conditions(extend=truth[:given]), prompt="", seconds=case.half / case.fps)

    guided = {
        f"reconstruction guidance, weight {weight:g}": lambda w=weight: made(known_by="guide", guide_weight=w)
        for weight in weights
    }
    return task, {
        "model": made,
        "model, no prompt": unprompted,
        "copying": lambda: torch.cat([truth[:given], truth[given - 1 : given].expand(case.half, -1, -1, -1)]),
        "prompt alone": lambda: torch.cat([truth[:given], case.plain[given:]]),
        "replacement": lambda: made(known_by="replace"),
        **guided,
        "truth through the autoencoder": lambda: torch.cat([truth[:given], case.through(truth)[given:]]),
        "truth": lambda: truth,
    }


def before(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    truth, made = case.truth[: case.frames], case.half
    given = truth[made:]
    task = Task(case.scene, case.fps, range(made), truth, tuple(range(made, case.frames)), seams=(made,))
    return task, {
        "model": lambda: case.make(Conditions(extend=given, before=True), seconds=made / case.fps),
        "copying": lambda: torch.cat([given[:1].expand(made, -1, -1, -1), given]),
        "prompt alone": lambda: torch.cat([case.plain[:made], given]),
        "truth through the autoencoder": lambda: torch.cat([case.through(truth)[:made], given]),
    }


def between(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    given, made = case.half + 1, case.half - 1
    truth = case.truth[: 2 * given + made]
    one, two = truth[:given], truth[given + made :]
    told = (*range(given), *range(given + made, len(truth)))
    task = Task(case.scene, case.fps, range(given, given + made), truth, told, seams=(given, given + made))

    def joined(middle: Tensor) -> Tensor:
        return torch.cat([one, middle, two])

    return task, {
        "model": lambda: case.make(Conditions(between=(one, two)), seconds=made / case.fps),
        "copying": lambda: joined(nearest(torch.stack([one[-1], two[0]]), made + 2)[1:-1]),
        "cross-fading": lambda: joined(faded(one[-1], two[0], made + 2)[1:-1]),
        "prompt alone": lambda: joined(case.plain[:made]),
        "truth through the autoencoder": lambda: joined(case.through(truth[: case.frames])[given : given + made]),
    }


def loop(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    count, fade = case.frames - 1, (case.frames - 1) // 4

    def cross_faded() -> Tensor:
        """The end fades into what would have come before the beginning: fewer frames, no border."""
        plain = case.plain
        share = torch.linspace(0, 1, fade + 2)[1:-1, None, None, None]
        joined = (1 - share) * plain[-fade:].float() + share * plain[:fade].float()
        return torch.cat([plain[fade:-fade], joined.round().to(torch.uint8)])

    return Task(case.scene, case.fps, range(count), loop=True), {
        "model": lambda: case.make(Conditions(loop=True), frames=count),
        "cross-fading": cross_faded,
        "prompt alone": lambda: case.plain[:count],
    }


def interpolation(factor: int) -> Mode:
    def interpolate(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
        truth, count = case.truth[: case.frames], case.frames
        given = truth[::factor]
        steps = torch.arange(count)
        made = range(factor // 2, count, factor)  # the frames furthest from any given one
        task = Task(case.scene, case.fps, made, truth, tuple(range(0, count, factor)))

        def fade() -> Tensor:
            low, share = steps // factor, (steps % factor / factor)[:, None, None, None]
            high = (low + 1).clamp_max(len(given) - 1)
            return ((1 - share) * given[low].float() + share * given[high].float()).round().to(torch.uint8)

        def model() -> Tensor:
            return case.make(Conditions(interpolate=given, factor=factor), fps=case.fps)

        return task, {
            "model": model,
            "copying": lambda: given[((steps + factor // 2 - 1) // factor).clamp_max(len(given) - 1)],
            "cross-fading": fade,
            "prompt alone": lambda: _put(case.plain, truth, task.told),
            "truth through the autoencoder": lambda: _put(case.through(truth), truth, task.told),
        }

    return interpolate


def inpaint(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    """Where the actor is, one of another colour is painted."""
    scene, count = case.recoloured, case.frames
    given, actor = case.rendered(case.scene, count)
    truth = case.rendered(scene, count)[0]
    side = 2 * MARGIN + 1
    hole = torch.nn.functional.max_pool2d(actor[:, None].float(), side, 1, MARGIN)[:, 0] > 0
    task = Task(scene, case.fps, range(count), truth, tuple(range(count)), hole)

    def made(**said: object) -> Tensor:
        return case.make(Conditions(inpaint=given, mask=hole, **said), scene)  # type: ignore[arg-type]

    return task, {
        "model": made,
        "copying": lambda: given,
        "prompt alone": lambda: torch.where(hole[..., None], case.plain_recoloured, given),
        "replacement": lambda: made(known_by="replace"),
        "truth through the autoencoder": lambda: torch.where(hole[..., None], case.through(truth), given),
    }


def edit(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    """The actor in another colour, everything else as it is."""
    scene, count = case.recoloured, case.frames
    given, truth = (case.rendered(one, count)[0] for one in (case.scene, scene))
    task = Task(scene, case.fps, range(count), truth)
    return task, {
        **{
            f"model, strength {strength:g}": lambda s=strength: case.make(Conditions(edit=given, strength=s), scene)
            for strength in STRENGTHS
        },
        "copying": lambda: given,
        "prompt alone": lambda: case.plain_recoloured,
        "truth through the autoencoder": lambda: case.through(truth),
    }


def images(case: Case, _: Sequence[float]) -> tuple[Task, Mapping[str, Answer]]:
    still = replace(case.scene, still=True)
    return Task(case.scene, case.fps, range(1)), {
        "model": lambda: case.make(None, still, frames=1),
        "first frame of a clip": lambda: case.plain[:1],
        "truth through the autoencoder": lambda: case.through(case.truth[:1]),
        "truth": lambda: case.truth[:1],
    }


def nearest(two: Tensor, count: int) -> Tensor:
    """The nearer of two frames at each of `count` places from the one to the other."""
    return two[(torch.arange(count) > (count - 1) // 2).long()]


def faded(one: Tensor, two: Tensor, count: int) -> Tensor:
    share = torch.linspace(0, 1, count)[:, None, None, None]
    return ((1 - share) * one.float() + share * two.float()).round().to(torch.uint8)


def _put(frames: Tensor, truth: Tensor, told: Sequence[int]) -> Tensor:
    frames = frames.clone()
    frames[list(told)] = truth[list(told)]
    return frames


MODES: dict[str, Mode] = {
    "image": image,
    "last": last,
    "image and last": image_and_last,
    "extend": extend,
    "before": before,
    "between": between,
    "loop": loop,
    "interpolate 2": interpolation(2),
    "interpolate 4": interpolation(4),
    "inpaint": inpaint,
    "edit": edit,
    "images": images,
}
