"""Balls read from pixels, errors of continued motion beside floors and controls, walls that stop, and their report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from carrara.core.types import Stride, VideoShape
from carrara.data.phyworld import KINDS, SPLITS, WORLD, render_balls, sample_balls, simulate_balls
from carrara.evaluation.physics.barriers import draw_approach, least_frames, measure_walls, read_stop
from carrara.evaluation.physics.continuation import (
    KNOWN,
    constant_velocity,
    copy_last,
    held,
    known_frames,
    measure_physics,
    read_balls,
    read_motion,
)
from carrara.evaluation.physics.preference import measure_preference
from carrara.evaluation.physics.section import preference_section, section
from carrara.evaluation.report.sections import write_report
from carrara.evaluation.statistics import mean_estimate
from carrara.evaluation.subject import Subject

SHAPE = VideoShape(33, 64, 64)
FRESH = 2**40 + 77_000_000


class Echo:
    """An autoencoder that is the identity."""

    stride = Stride(1, 1)

    def encode(self, video):
        return video

    def decode(self, latents):
        return latents

    def decode_chunks(self, latents):
        yield latents


@pytest.mark.parametrize("side", [64, 128])
def test_balls_are_found_where_they_are_and_only_there(side):
    right, total = 0, 0
    for kind in KINDS:
        for split in SPLITS:
            for seed in range(FRESH, FRESH + (4 if side == 64 else 1)):
                rendered = render_balls([sample_balls(seed, kind, split)], VideoShape(33, side, side))
                truth = rendered.truths[0]
                read = read_balls(rendered.video[0].numpy(), truth.radius)
                away = np.linalg.norm(read - truth.position, axis=-1)
                gone = (
                    (truth.position + truth.radius[:, None, None] < 0)
                    | (truth.position - truth.radius[:, None, None] > WORLD)
                ).any(-1)
                right += int((away[truth.inside] < 0.02).sum() + np.isnan(away[gone]).sum())
                total += int(truth.inside.sum() + gone.sum())
    assert right / total >= 0.98


def test_the_truth_reads_as_finely_as_published_and_the_published_reading_agrees_at_their_size():
    ours, theirs = {}, {}
    for kind in KINDS:
        scenes = [sample_balls(seed, kind) for seed in range(FRESH, FRESH + 8)]
        for side, found in ((64, ours), (256, theirs)):
            count = 8 if side == 64 else 2
            rendered = [render_balls([scene], VideoShape(33, side, side)) for scene in scenes[:count]]
            found[kind] = [read_motion(r.video[0].numpy(), s, r.truths[0]) for r, s in zip(rendered, scenes)]
    for kind, published in (("uniform", 0.0099), ("collision", 0.0117), ("parabola", 0.0210)):
        assert np.mean([m.velocity for m in ours[kind]]) < 1.3 * published
        assert np.mean([m.threshold for m in theirs[kind]]) == pytest.approx(published, rel=0.4)
        assert all(m.found == 1 for m in ours[kind])


def test_a_ball_that_vanishes_is_held_and_counted():
    scene = sample_balls(FRESH, "uniform")
    rendered = render_balls([scene], SHAPE)
    frames, truth = rendered.video[0].numpy().copy(), rendered.truths[0]
    whole = read_motion(frames, scene, truth)
    frames[9:] = 255
    track = read_balls(frames, truth.radius)
    assert np.isnan(track[0, 9:]).all()
    assert (held(track)[0, 9:] == track[0, 8]).all()
    gone = read_motion(frames, scene, truth)
    assert gone.found < whole.found == 1
    assert gone.velocity > 0.5 * scene.balls[0].vx
    nothing = read_motion(np.full_like(frames, 255), scene, truth)
    assert nothing.found == 0
    assert nothing.velocity == pytest.approx(scene.balls[0].vx)


def test_a_wrong_speed_is_measured_exactly():
    scene = sample_balls(FRESH + 1, "uniform")
    slow = render_balls([scene], SHAPE, fps=20.0)  # half the way in each frame
    motion = read_motion(slow.video[0].numpy(), scene, simulate_balls(scene))
    assert motion.velocity == pytest.approx(scene.balls[0].vx / 2, abs=0.03)


def test_constant_velocity_is_right_for_uniform_motion_and_wrong_for_an_impact():
    shape = VideoShape(33, 64, 64)
    for kind, right in (("uniform", True), ("collision", False), ("parabola", False)):
        scene = sample_balls(FRESH, kind)
        rendered = render_balls([scene], shape)
        made = constant_velocity(rendered.video[0, :5], 33)
        assert torch.equal(made[:5], rendered.video[0, :5])
        motion = read_motion(made.numpy(), scene, rendered.truths[0])
        assert (motion.velocity < 0.05) == right
        still = copy_last(rendered.video[0, :5], 33)
        assert read_motion(still.numpy(), scene, rendered.truths[0]).velocity > 0.5


@pytest.mark.parametrize("stride", range(1, 9))
def test_as_many_frames_are_known_as_published_or_the_fewest_more_that_are_whole_latents(stride):
    class Coarse(Echo):
        pass

    Coarse.stride = Stride(stride, 1)
    known = Subject(SHAPE, 10.0, codec=(Coarse(), Coarse())).known
    allowed = [frames for frames in range(KNOWN, 20) if (frames - 1) % stride == 0]
    assert known == known_frames(stride) == allowed[0]
    assert (known == 3) == (stride <= 2)


class Perfect:
    """A model that knows the first scenes of an evaluation, by their beginnings."""

    def __init__(self, seed: int, clips: int, shape: VideoShape) -> None:
        scenes = [
            sample_balls(start + seed * 10_000 + number, kind, split)
            for kind in KINDS
            for start, split in ((2**40, "in"), (2**41, "out"))
            for number in range(clips)
        ]
        self.videos = render_balls(scenes, shape).video

    def __call__(self, known, frames, prompt="", seed=0):
        return next(video for video in self.videos if torch.equal(video[: len(known)], known))


def test_measured_and_reported_models_stand_between_ceilings_and_controls(tmp_path):
    shape = VideoShape(25, 32, 32)
    model = Perfect(1000, 3, shape)
    found = measure_physics(model, shape, clips=3, seed=1000, codec=(Echo(), Echo()))
    assert found.sources == ("truth", "reconstruction", "model", "copy last", "constant velocity")
    for (source, kind, split), motions in found.found.items():
        assert len(motions) == 3
        if source == "model":
            assert motions == found.found["truth", kind, split] == found.found["reconstruction", kind, split]
        errors = [mean_estimate([m.velocity for m in found.found[s, kind, split]]) for s in ("truth", "copy last")]
        assert errors[0].value < 0.1 * errors[1].value
    again = measure_physics(model, shape, clips=3, seed=1000, codec=(Echo(), Echo()))
    preferences = measure_preference(None, "balls", VideoShape(17, 32, 32), 10.0, pairs=2, seed=1000)
    sections = [section(found), preference_section([preferences])]
    path, _ = write_report(tmp_path, "physics", sections, {})
    assert json.dumps(section(again).plain()) == json.dumps(sections[0].plain())
    assert "3 known frames, as published" in sections[0].about
    longer = section(measure_physics(None, shape, clips=1, seed=1000, known=5))
    assert "5 known frames, instead of the published 3, because the model's causal latents" in longer.about
    assert len(json.loads(path.read_text("utf-8"))["sections"]) == 2


def test_an_actor_that_is_not_there_from_the_first_frame_stops_nowhere():
    """As where an autoencoder has lost a small one."""
    shape = VideoShape(17, 32, 32)
    approach = draw_approach(7000, "train", shape, 8.0)
    empty = np.full((32, 32, 3), 120, np.uint8)
    stop = read_stop(np.stack([empty] * 17), approach, empty, empty)
    assert not any(stop.verdicts.values())
    with pytest.raises(ValueError, match=f"give {least_frames()} or more"):
        draw_approach(7000, "train", VideoShape(least_frames() - 1, 32, 32), 8.0)


@pytest.mark.parametrize("side", [64, 128])
def test_walls_hold_in_the_truth_and_the_controls_are_told_apart(side):
    clips = 10 if side == 64 else 4
    walls = measure_walls(None, VideoShape(17, side, side), 8.0, clips=clips, seed=7000)
    assert all(stop.verdicts["all"] for stop in walls.found["truth"])
    assert not any(stop.verdicts["reaches"] for stop in walls.found["copy last"])
    assert not any(stop.verdicts["held"] for stop in walls.found["no wall"])
    report = section(measure_physics(None, VideoShape(17, 32, 32), clips=1, seed=1000, kinds=("uniform",)), walls)
    assert report.tables[-1].plain()["rows"]["all"]["truth"]["value"] == 1.0


def test_an_actor_that_vanishes_before_the_wall_is_not_held_by_it():
    class Vanishes:
        def __call__(self, known, frames, prompt="", seed=0):
            empty = torch.median(known.float(), dim=0).values.to(torch.uint8)  # the actor moves on, so this has none
            return torch.cat([known, empty.expand(frames - len(known), -1, -1, -1)])

    walls = measure_walls(Vanishes(), VideoShape(17, 64, 64), 8.0, clips=4, seed=7000)
    assert not any(stop.verdicts["all"] for stop in walls.found["model"])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: measure_physics(None, SHAPE, clips=0), "clips=0"),
        (lambda: measure_physics(None, SHAPE, seed=-1), "seed=-1"),
        (lambda: measure_physics(None, VideoShape(5, 64, 64), known=5), "known=5"),
        (lambda: known_frames(0), "stride=0"),
        (lambda: measure_physics(None, VideoShape(37, 64, 64)), "at most 33"),
        (lambda: measure_walls(None, VideoShape(9, 64, 64), 8.0), "9 frames"),
        (lambda: measure_walls(None, VideoShape(17, 64, 64), 60.0), "make it longer"),
        (lambda: read_balls(np.zeros((2, 32, 32, 3), np.uint8), (1.0,), "hard"), "hard"),
        (lambda: preference_section([]), "no preferences"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
