"""The fixed prompts of an evaluation: scenes that training never draws, what is said of them, and what that commits to.

They come from seeds outside the range that training draws from, half of them with combinations of attributes that
training never shows together; one actor and two, relations and moving cameras, at every level of detail, in fixed
turns, so that each group has its share whatever the number of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

from carrara.data.pond.captions import LEVELS, caption
from carrara.data.pond.sampling import SINGLES, Mix, sample_scene
from carrara.data.pond.world import Scene
from carrara.evaluation.adherence.verdicts import Asked

# Seeds of scenes. Training draws below 2**40, evaluation from there on: no prompt is a scene of the training.
HELD_IN_START, HELD_OUT_START = 2**40, 2**41
MOST_PROMPTS = 10_000  # of one evaluation; its seeds are those from seed * MOST_PROMPTS
MOST_SEED = 1_000_000

PAIRS = Mix(two=1.0, relation=0.0, wall=0.0, camera=0.0)
RELATED = Mix(two=1.0, relation=1.0, wall=0.0, camera=0.0)
FILMED = Mix(two=0.0, wall=0.0, camera=1.0)
TURNS = (SINGLES, RELATED, SINGLES, FILMED, PAIRS)  # five and the three caption levels meet in every way


@dataclass(frozen=True)
class Prompt:
    """A scene, what is said of it, and what that commits to; split: "held in" or "held out"."""

    scene: Scene
    text: str
    level: str
    asked: Asked
    seed: int
    split: str

    def groups(self) -> tuple[str, ...]:
        """What this prompt is an example of: its split, level and number of actors, and whether the camera moves."""
        actors = "one actor" if len(self.scene.actors) == 1 else "two actors"
        filmed = ("moving camera",) if self.asked.camera not in (None, "still") else ()
        related = (self.asked.relation,) if self.asked.relation else ()
        return self.split, self.level, actors, *filmed, *related


def draw_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts, alternately from the held-in and the held-out split, the kinds of scene and caption levels in
    turn; the first of more are those of fewer.

    Raises ValueError for a count or seed outside the ranges kept free for evaluation.
    """
    check_seed(seed)
    check_prompts(count)
    levels, prompts = tuple(LEVELS), []
    for index in range(count):
        split, start = (("held in", HELD_IN_START), ("held out", HELD_OUT_START))[index % 2]
        scene_seed, turn = start + seed * MOST_PROMPTS + index, index // 2
        scene = sample_scene(scene_seed, TURNS[turn % len(TURNS)], "train" if split == "held in" else "held_out")
        level = levels[turn % len(levels)]
        said = caption(scene, level, scene_seed, canonical=turn // len(levels) % 2 == 0)
        prompts.append(Prompt(scene, said.text, level, Asked.stated(scene, said), scene_seed, split))
    return prompts


def check_seed(seed: int) -> None:
    """Refuse a seed of an evaluation outside the range kept free for it."""
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed={seed}: must be from 0 to {MOST_SEED}")


def check_prompts(count: int) -> None:
    """Refuse a number of prompts that would leave the seeds kept free for it."""
    if not 1 <= count <= MOST_PROMPTS:
        raise ValueError(f"prompts={count}: must be from 1 to {MOST_PROMPTS}")
