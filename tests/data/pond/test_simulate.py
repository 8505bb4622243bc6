"""Laws of what happens in the pond."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from carrara.data.pond.sampling import Mix, sample_scene
from carrara.data.pond.shapes import SHAPES, outline
from carrara.data.pond.simulate import simulate, to_pixels
from carrara.data.pond.world import FLOOR, GRAVITY, GROWTH, MOTIONS, PAN, ZOOM, Actor, Scene

PLACES = {"left": 0.3, "right": -0.3, "jumps": -0.25, "flies": -0.2, "swims": -0.25}
HEIGHTS = {"bounces": -0.2, "up": 0.2, "down": -0.3}


def one(motion: str, kind: str = "ball", **changes) -> Scene:
    actor = Actor(kind, "red", "small", motion, x=PLACES.get(motion, 0.0), y=HEIGHTS.get(motion, -0.05))
    return Scene("pond", (replace(actor, **changes),))


@pytest.mark.parametrize("motion", ["bounces", "jumps"])
def test_gravity_is_a_constant_second_difference_in_flight(motion: str) -> None:
    truth = simulate(one(motion), frames=960, fps=480)
    y, free = truth.position[0, :, 1], ~truth.contact[0]
    flying = free[:-2] & free[1:-1] & free[2:]
    assert flying.sum() > 400
    assert np.diff(y, 2)[flying] * 480**2 == pytest.approx(GRAVITY, rel=1e-6)


def test_bounces_touch_the_floor_when_they_say_so() -> None:
    scene = one("bounces")
    events = simulate(scene).events
    assert len(events) >= 2
    assert {event.name for event in events} == {"bounces"}
    for event in events:
        at = simulate(replace(scene, start=event.time), frames=1)
        assert at.box[0, 0, 3] == pytest.approx(FLOOR, abs=0.005)
        assert at.contact[0, 0]


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_is_a_function_of_time_alone(motion: str) -> None:
    scene = one(motion, "fish")
    coarse, fine = simulate(scene, 17, 8.0), simulate(scene, 49, 24.0)
    assert fine.position[:, ::3] == pytest.approx(coarse.position)
    assert fine.angle[:, ::3] == pytest.approx(coarse.angle)
    assert simulate(scene, 17, 8.0, aspect=16 / 9).position == pytest.approx(coarse.position)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("kind", ["ball", "bird", "car"])
def test_long_clips_stay_in_sight(motion: str, kind: str) -> None:
    truth = simulate(one(motion, kind), frames=161, fps=8.0)
    assert np.isfinite(truth.position).all()
    assert truth.visible.min() > 0.9


@pytest.mark.parametrize("seed", range(40))
def test_a_wall_that_stops_is_never_passed(seed: int) -> None:
    scene = next(s for n in range(1000) if (s := sample_scene(1000 * seed + n, Mix(two=0, wall=1))).wall == "stops")
    truth = simulate(scene, frames=120, fps=24.0)
    near, far = (0, 2) if scene.actors[0].motion == "left" else (2, 0)
    sign = scene.actors[0].direction
    face = scene.wall_x - sign * scene.wall_width / 2
    assert (sign * truth.box[0, :, near] <= sign * face + 0.003).all()
    assert sign * truth.box[0, -1, near] == pytest.approx(sign * face, abs=0.005)
    (stopped,) = (event for event in truth.events if event.name == "stopped")
    resting = truth.times > stopped.time
    assert np.ptp(truth.position[0, resting, 0]) == 0
    assert truth.contact[0, resting].all()
    assert far in (0, 2)


@pytest.mark.parametrize("seed", range(40))
def test_a_wall_that_hides_hides_and_gives_back(seed: int) -> None:
    scene = next(s for n in range(1000) if (s := sample_scene(1000 * seed + n, Mix(two=0, wall=1))).wall == "hides")
    truth = simulate(scene, fps=24.0, frames=49)
    assert [event.name for event in truth.events] == ["hidden", "reappears"]
    hidden, back = (event.time for event in truth.events)
    inside = (truth.times > hidden + 0.02) & (truth.times < back - 0.02)
    assert (truth.visible[0, inside] <= 0.02).all()
    assert truth.visible[0, [0, -1]].min() > 0.9


def test_orbits_do_not_turn_and_spins_do_not_move() -> None:
    orbit, spin = simulate(one("orbits")), simulate(one("spins"))
    assert np.hypot(*(orbit.position[0] - [0.0, -0.05]).T) == pytest.approx(0.24)
    assert (orbit.angle == 0).all()
    assert np.ptp(spin.position[0], axis=0) == pytest.approx([0, 0])
    assert np.diff(spin.angle[0]) == pytest.approx(np.pi / 8)


def test_growing_and_shrinking_mirror_each_other() -> None:
    grows, shrinks = simulate(one("grows")).scale[0], simulate(one("shrinks")).scale[0]
    assert grows[-1] / grows[0] == pytest.approx(GROWTH)
    assert shrinks == pytest.approx(grows[::-1])


def test_cameras_move_the_world_and_not_the_actors() -> None:
    still, pan = simulate(one("spins")), simulate(replace(one("spins"), camera="pan right"))
    assert pan.position == pytest.approx(still.position)
    assert pan.screen[0, 0, 0] - pan.screen[0, -1, 0] == pytest.approx(PAN)
    zoom = simulate(replace(one("spins", x=0.1), camera="zoom in"))
    assert zoom.screen[0, -1, 0] / zoom.screen[0, 0, 0] == pytest.approx(ZOOM)
    assert zoom.camera[0] == pytest.approx([0, 0, 1])


def test_still_scenes_do_not_move() -> None:
    truth = simulate(replace(one("jumps"), still=True, start=0.7))
    assert np.ptp(truth.position, axis=1) == pytest.approx(np.zeros((1, 2)))
    assert (truth.times == 0.7).all()
    assert truth.events == ()


def test_passing_behind_covers_the_one_behind() -> None:
    scene = next(s for n in range(1000) if (s := sample_scene(n, Mix(two=1, relation=1))).relation == "passes behind")
    truth = simulate(scene)
    assert truth.visible[0].min() < 0.6
    assert (truth.visible[1] == 1).all()


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes_fill_their_size(name: str) -> None:
    shape = outline(name)
    sides = np.ptp(shape.hull, axis=0)
    assert 1.6 <= sides.max() <= (3.2 if "stilts" in name else 2.3)
    assert sides.min() * 0.09 >= 0.12  # of the frame, for a small one
    assert (np.abs(shape.hull).max(axis=0) <= np.array(shape.reach) + 1e-9).all()


def test_pixels_of_the_corners() -> None:
    assert to_pixels(np.array([-0.5, -0.5]), 64, 64) == pytest.approx([0, 0])
    assert to_pixels(np.array([0.0, 0.5, 0.5, 0.5]), 64, 128) == pytest.approx([64, 64, 96, 64])
