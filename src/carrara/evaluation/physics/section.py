"""Physics in a report: velocity errors beside the published ones, walls that stop, what is likelier of two twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carrara.data.phyworld import BallScene
from carrara.evaluation.physics.barriers import VERDICTS, Walls
from carrara.evaluation.physics.continuation import KNOWN, Motion, Physics
from carrara.evaluation.physics.preference import CHANCE, ROUGHNESS, Preferences
from carrara.evaluation.physics.twins import CONTROL
from carrara.evaluation.report.sections import Curve, Picture, Row, Section, Table
from carrara.evaluation.statistics import Estimate, mean_estimate, mean_or_none, tally

SPLIT_NAMES = {"in": "in distribution", "out": "out of distribution"}
SHOWN_FRAMES = 9  # of a clip in a strip

# Kang et al. 2024 (arXiv 2411.02385), mean absolute velocity error with 3 known frames.
PUBLISHED = """\
Published (Kang et al. 2024; 3 known of 32 frames, 128 or 256 pixels, per kind its own model): truth 0.0099 uniform, \
0.0117 collision, 0.0210 parabola; their autoencoder 0.0105, 0.0131, 0.0212; uniform motion in distribution DiT-S on \
30,000 clips 0.022, DiT-L on 3 million 0.012; out of distribution DiT-L 0.427, DiT-B on 30,000, 300,000 and 3 million \
0.433, 0.328, 0.358."""

ABOUT = """\
Balls of PhyWorld's units and ranges (a world 10 x 10, a frame every 0.1 s) are continued from {known} known frames, \
{why}; clips have {frames} frames of {width}x{height}. The error is the mean absolute difference from the true \
velocity over the generated frames in which all balls are truly inside, in world units per second: along x for uniform \
motion and collision (the step of the impact left out), the length of the difference for a parabola. Ceilings: the \
truth as it is read back, and its reconstruction by the autoencoder; nothing can be expected below them. Controls: \
"copy last" repeats the last known frame; "constant velocity" moves balls on as seen, which is all there is to uniform \
motion and wrong for the others. Out of distribution: radius, velocity or both outside the ranges of training, beyond \
either end. {clips} scenes of each kind and split, from seed {seed}."""

WALLS_ABOUT = """\
In the pond, an actor on its way to a wall that stops it is continued from its first {known} frames. "held": its \
leading edge never gets further than a fifth of its width beyond where it must stop; "reaches": it gets there; \
"stops": it stands there at the end; "seen": it does not vanish. Controls: "copy last" reaches nothing, "no wall" is \
held by nothing."""


def section(balls: Physics, walls: Walls | None = None) -> Section:
    """The part of a report on physics. Rows whose control cannot be told from the truth are left out and named."""
    shape = balls.shape
    about = ABOUT.format(
        known=balls.known,
        why=why_so_many(balls.known),
        frames=shape.frames,
        width=shape.width,
        height=shape.height,
        clips=balls.clips,
        seed=balls.seed,
    )
    hidden = unseparated(balls)
    if hidden:
        about += (
            f"\n\nLeft out, because copying the last frame cannot be told from the truth here: {', '.join(hidden)}."
        )
    tables = [
        table("Velocity error, world units per second", balls, "velocity", hidden, PUBLISHED),
        table(
            "The same by the published reading",
            balls,
            "threshold",
            hidden,
            "Centroids of pixels past a threshold: "
            "coarse below 256 pixels, where its own floor is that of the truth's column.",
        ),
        table("Distance from the true place, world units", balls, "position", hidden),
        table("Balls that are seen", balls, "found", hidden, share=True),
        outside_table(balls),
    ]
    pictures: list[Picture | Curve] = [*curves(balls), *ball_pictures(balls)]
    data = ball_data(balls)
    if walls is not None:
        about += "\n\n" + WALLS_ABOUT.format(known=walls.known)
        tables.append(wall_table(walls))
        pictures += wall_pictures(walls)
        data["walls"] = {name: [stop.plain() for stop in stops] for name, stops in walls.found.items()}
    return Section("physics", "Physics", about, tuple(tables), tuple(pictures), data)


def unseparated(balls: Physics) -> tuple[str, ...]:
    """The names of rows in which the error of copying the last frame is not above the truth's by more than both
    intervals."""
    found = []
    for kind, split in balls.scenes:
        cells = [mean_or_none(m.velocity for m in balls.found[name, kind, split]) for name in ("truth", "copy last")]
        if cells[0] is None or cells[1] is None or not cells[0].apart(cells[1]):
            found.append(row_name(kind, split))
    return tuple(found)


def why_so_many(known: int) -> str:
    """How the number of known frames stands to the published one."""
    if known == KNOWN:
        return "as published"
    return f"instead of the published {KNOWN}, because the model's causal latents stand for 1 + {known - 1}k frames"


def row_name(kind: str, split: str) -> str:
    return f"{kind}, {SPLIT_NAMES[split]}"


def table(
    title: str, balls: Physics, measure: str, hidden: Sequence[str], note: str = "", share: bool = False
) -> Table:
    """A row per kind and split, a column per source."""
    rows: list[Row] = []
    for kind, split in balls.scenes:
        if row_name(kind, split) not in hidden:
            cells = [
                mean_or_none([getattr(m, measure) for m in balls.found[name, kind, split]], share=share)
                for name in balls.sources
            ]
            rows.append((row_name(kind, split), tuple(cells)))
    return Table(title, balls.sources, tuple(rows), note)


def outside_table(balls: Physics) -> Table:
    """Velocity errors by what lies outside of the distribution, over all kinds."""
    rows: list[Row] = []
    for outside in ("radius", "velocity", "both"):
        cells: list[Estimate | None] = []
        for name in balls.sources:
            values = [
                motion.velocity
                for (kind, split), scenes in balls.scenes.items()
                for scene, motion in zip(scenes, balls.found[name, kind, split])
                if scene.outside == outside
            ]
            cells.append(mean_or_none(values))
        rows.append((outside, tuple(cells)))
    return Table("Velocity error by what is out of distribution", balls.sources, tuple(rows))


def curves(balls: Physics) -> list[Curve]:
    """Mean distance from the true place against time, a curve per kind, in distribution."""
    found = []
    for kind in dict.fromkeys(kind for kind, _ in balls.scenes):
        lines = {name: mean_curve(balls.found[name, kind, "in"]) for name in balls.sources}
        times = [round(frame * 0.1, 1) for frame in range(balls.shape.frames)]
        found.append(
            Curve(f"{kind}: distance from the true place", times, lines, "seconds", "world units (the frame has 10)")
        )
    return found


def mean_curve(motions: Sequence[Motion]) -> list[float | None]:
    """Per frame the mean over the clips that have a value there; None where none has."""
    return [
        round(mean_estimate(values).value, 6) if (values := [v for v in column if v is not None]) else None
        for column in zip(*(motion.curve for motion in motions))
    ]


def ball_pictures(balls: Physics) -> list[Picture]:
    """The first clip of each kind and split, a row per source."""
    found = []
    for kind, split in balls.scenes:
        rows = [strip(balls.shown[name, kind, split]) for name in balls.sources]
        title = f"{row_name(kind, split)}; from above: {', '.join(balls.sources)}"
        found.append(Picture(title, np.concatenate(rows)))
    return found


def ball_data(balls: Physics) -> dict[str, Any]:
    """Every clip's numbers, and its scene."""
    clips = {
        row_name(kind, split): [
            {"scene": told(scene), **{name: balls.found[name, kind, split][at].plain() for name in balls.sources}}
            for at, scene in enumerate(scenes)
        ]
        for (kind, split), scenes in balls.scenes.items()
    }
    return {"known": balls.known, "seed": balls.seed, "clips": clips}


def told(scene: BallScene) -> dict[str, Any]:
    return {"outside": scene.outside, "balls": [vars(ball) for ball in scene.balls]}


def wall_table(walls: Walls) -> Table:
    columns = {name: tally([stop.verdicts for stop in stops], VERDICTS) for name, stops in walls.found.items()}
    rows = [(row, tuple(Estimate.of(shares[row]) for shares in columns.values())) for row in VERDICTS]
    return Table("Walls that stop", tuple(columns), tuple(rows), f"{len(walls.scenes)} scenes from seed {walls.seed}.")


def wall_pictures(walls: Walls) -> list[Picture]:
    count = min(len(clips) for clips in walls.shown.values())
    names = ", ".join(walls.shown)
    return [
        Picture(
            f"{walls.scenes[at].prompt}; from above: {names}",
            np.concatenate([strip(clips[at]) for clips in walls.shown.values()]),
        )
        for at in range(count)
    ]


PREFERENCE_ABOUT = """\
Two clips of one scene, of which one breaks one law, get the same noise; the model errs where it undoes the noise on \
the impossible one with the smaller error (the plausibility preference error of LikePhys, Yuan et al. 2025). Chance is \
50%, the best is 0%. "none broken" compares two clips that are both right: a fair score is at 50% there. The column \
"change between frames" prefers the clip that changes less and knows no physics: where a model is not below it, its \
preference is not evidence of more. Losses are summed over the noise levels {levels}. {pairs} pairs of each law, from \
seed {seed}; laws are broken in scenes of the same seeds, so the interval of all laws is over seeds."""


def preference_section(found: Sequence[Preferences]) -> Section:
    """The part of a report on which of two twins a model finds likelier, for one world or several."""
    if not found:
        raise ValueError("no preferences to report; measure at least one world")
    first = found[0]
    about = PREFERENCE_ABOUT.format(levels=", ".join(map(str, first.levels)), pairs=first.pairs, seed=first.seed)
    tables: list[Table] = []
    pictures: list[Picture | Curve] = []
    data: dict[str, Any] = {"levels": list(first.levels)}
    for preferences in found:
        about += doubts(preferences)
        tables.append(preference_table(preferences))
        pictures += [level_curve(preferences), *twin_pictures(preferences)]
        data[preferences.world] = {
            f"{scorer}: {law}": [pair.plain() for pair in pairs] for (scorer, law), pairs in preferences.found.items()
        }
    return Section("preference", "What is possible is likelier", about, tuple(tables), tuple(pictures), data)


def doubts(preferences: Preferences) -> str:
    """Where the model's preference cannot be told from that of the control without laws, or is unfair."""
    if "model" not in preferences.scorers:
        return ""
    model = {law: preferences.error("model", law) for law in preferences.laws}
    control = {law: preferences.error(ROUGHNESS, law) for law in preferences.laws}
    alike = [law for law in preferences.laws if law != CONTROL and model[law].interval[1] >= control[law].interval[0]]
    said = ""
    if alike:
        said += f"\n\nIn the world of {preferences.world}, not below the control without laws: {', '.join(alike)}."
    low, high = model[CONTROL].interval
    if not low <= 0.5 <= high:
        said += (
            f"\n\nIn the world of {preferences.world} the score is unfair where no law is broken: read it with care."
        )
    return said


def preference_table(preferences: Preferences) -> Table:
    rows: list[Row] = [("all laws", tuple(map(preferences.overall, preferences.scorers)))]
    for law in preferences.laws:
        cells = tuple(Estimate.of(preferences.error(scorer, law)) for scorer in preferences.scorers)
        rows.append((law, cells))
    title = f"Preference errors in the world of {preferences.world}: lower is better, 50% is chance"
    return Table(title, preferences.scorers, tuple(rows))


def level_curve(preferences: Preferences) -> Curve:
    """The share of wrong pairs over all laws, per noise level."""
    lines: Mapping[str, Sequence[float | None]] = {
        scorer: [preferences.overall(scorer, at).value for at in range(len(preferences.levels))]
        for scorer in preferences.scorers
        if scorer != CHANCE
    }
    return Curve(f"{preferences.world}: errors by noise level", preferences.levels, lines, "noise level", "share wrong")


def twin_pictures(preferences: Preferences) -> list[Picture]:
    """The first pair of each law: what is possible above what is not."""
    return [
        Picture(
            f"{preferences.world}, {law}: {twins.prompt}",
            np.concatenate([strip(clip.numpy()) for clip in (twins.valid, twins.invalid)]),
        )
        for law, twins in preferences.shown.items()
    ]


def strip(frames: NDArray[np.uint8], count: int = SHOWN_FRAMES) -> NDArray[np.uint8]:
    """Frames `t h w 3`, evenly chosen from first to last, side by side with grey lines between: `h+1 w' 3`."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]
    framed = np.pad(chosen, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=160)
    return np.concatenate(list(framed), axis=1)
