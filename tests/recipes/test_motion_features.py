"""The feature network's recipe in small, and the truth of its labels."""

from dataclasses import replace

import pytest
import torch
from torch import Generator

from carrara.core.config import read_json
from carrara.data.pond.simulate import simulate
from carrara.data.pond.world import ACTORS, COLOURS, MOTIONS, Actor, Scene
from carrara.evaluation.distribution.motion_net import HEADS, ORDERS, MotionNet, MotionNetConfig, load_motion_net
from carrara.recipes import RECIPES
from carrara.recipes.motion_data import CELL, MOST_NOISE, SPEED, arranged, cells, label, numbered
from carrara.recipes.motion_features import MotionPhase, MotionRecipe, errors
from carrara.training.config import TrainConfig


def tiny() -> MotionRecipe:
    steps = TrainConfig(steps=2, warmup=1, optimizer="muon", precision="float32", log_every=1, validate_every=1)
    return replace(
        RECIPES["motion-features"](),
        model=MotionNetConfig((6, 8, 8), (0, 1, 0), 12),
        train=steps,
        scenes=2,
        validation=3,
        frames=7,
    )


def test_from_nothing_to_a_network_that_measures(tmp_path):
    folder = tiny().run(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "scores.json"]
    net = load_motion_net(folder)
    assert net.config == tiny().model
    assert float(net.std.min()) > 0
    scores = read_json(folder / "scores.json")
    assert scores["clips"] == 3
    assert {"motion", "shape", "colour", *(f"order_{name}" for name in ORDERS)} <= set(scores)


def test_a_batch_is_a_function_of_its_step():
    recipe = tiny()
    one, again, other = recipe.batch(5), recipe.batch(5), recipe.batch(6)
    assert one.video.equal(again.video)
    assert all(one.labels[name].equal(again.labels[name]) for name in one.labels)
    assert one.video.shape != other.video.shape or not one.video.equal(other.video)
    assert len(one.video) == recipe.scenes * recipe.views


def test_labels_say_what_the_scene_says():
    ball = Actor("ball", "red", "small", "right", x=-0.3, y=0.0)
    scene = Scene("sky", (ball, Actor("frog", "blue", "small", "spins", x=0.3, y=-0.3)))
    truth = simulate(scene, 9, 8.0)
    found = label(scene, truth, 0, 9, 0, 0.0, 0.0)
    assert {name for name, there in zip(MOTIONS, found["motion"]) if there} == {"right", "spins"}
    assert {name for name, there in zip(ACTORS, found["shape"]) if there} == {"ball", "frog"}
    assert {name for name, there in zip(COLOURS, found["colour"]) if there} == {"red", "blue"}
    assert found["two"].tolist() == [1.0]
    moved = truth.screen[0, 8, 0] - truth.screen[0, 0, 0]  # over one second; the other actor stays where it is
    assert found["velocity"].tolist() == pytest.approx([moved / SPEED / 2, 0.0, moved / SPEED / 2], abs=1e-5)


@pytest.mark.parametrize(("order", "sign"), [("forward", 1), ("reversed", -1), ("frozen", 0)])
def test_velocity_follows_the_order_of_frames(order, sign):
    scene = Scene("sky", (Actor("ball", "red", "small", "down", x=0.0, y=-0.3),))
    found = label(scene, simulate(scene, 9, 8.0), 0, 9, ORDERS.index(order), MOST_NOISE, 0.0)
    forward = label(scene, simulate(scene, 9, 8.0), 0, 9, 0, 0.0, 0.0)["velocity"]
    assert found["velocity"].allclose(forward * torch.tensor([sign, sign, abs(sign)]))
    assert bool(found["moves"]) == (order == "forward")
    assert found["noise"].tolist() == [1.0]


def test_views_are_what_their_labels_say():
    clip = torch.randint(256, (7, 16, 16, 3), generator=Generator().manual_seed(0), dtype=torch.uint8)
    assert arranged(clip, "forward", Generator()).equal(clip)
    assert arranged(clip, "frozen", Generator()).equal(clip[:1].expand_as(clip))
    assert arranged(clip, "reversed", Generator()).equal(clip.flip(0))


def test_cells_name_the_actor_that_covers_most_of_them():
    scene = Scene("sky", (Actor("ball", "red", motion="spins"), Actor("fish", "blue", motion="spins")))
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, :CELL, :CELL] = 1
    mask[0, :3, :CELL] = 2  # three of eight rows: less than the ball has
    mask[0, CELL : CELL + 1, :CELL] = 1  # an eighth: not enough to be there
    mask[0, :2, 2 * CELL : 3 * CELL] = 2
    mask[0, 4 * CELL : 5 * CELL, :CELL] = 3  # the ball, facing left
    mask[0, 4 * CELL : 5 * CELL, CELL : 2 * CELL] = 4
    found = cells(scene, mask)
    shapes, colours = found["shape"], found["colour"]
    assert shapes.shape == colours.shape == (1, 8, 8)
    assert (shapes[0, 0, 0], colours[0, 0, 0]) == (1 + ACTORS.index("ball"), 1 + tuple(COLOURS).index("red"))
    assert (shapes[0, 0, 2], colours[0, 0, 2]) == (1 + ACTORS.index("fish"), 1 + tuple(COLOURS).index("blue"))
    assert shapes[0, 4, 0] == shapes[0, 0, 0]
    assert shapes.count_nonzero() == 4
    assert found["facing"][0, 4, :3].tolist() == [0, 2, 0]  # a ball looks the same from both sides
    assert found["facing"][0, 0, 2] == 1


def test_masks_say_where_actors_face():
    scene = Scene(
        "pond", (Actor("fish", "red", "small", "left", x=0.2), Actor("car", "blue", "small", "right", x=-0.2))
    )
    truth = simulate(scene, 3, 8.0)
    mask = torch.tensor([0, 1, 2], dtype=torch.uint8).expand(3, 1, 3)
    assert numbered(truth, mask).equal(torch.tensor([0, 3, 2], dtype=torch.uint8).expand(3, 1, 3))


def test_cells_follow_the_order_of_frames():
    recipe = replace(tiny(), views=6)
    for step in range(2):
        batch = recipe.batch(step)
        there = batch.cells["shape"] > 0
        for order, shown in zip(batch.labels["order"], there):
            if ORDERS[order] == "frozen":
                assert shown.equal(shown[:1].expand_as(shown))
        assert (batch.cells["colour"] > 0).equal(there)
        assert there.any()


def test_what_damage_made_meaningless_is_not_asked():
    net = MotionNet(tiny().model)
    net.initialise(Generator().manual_seed(0))
    batch = tiny().batch(1)
    never = torch.zeros(len(batch.video), dtype=torch.bool)
    labels = {**batch.labels, "moves": never, "goes": never}
    answers = net.answers(net.maps(batch.video.float() / 127.5 - 1))
    assert set(answers) == set(HEADS)
    found = errors(answers, labels)
    assert found["motion"] == found["velocity"] == found["camera"] == 0
    assert found["shape"] > 0


def test_the_loss_falls_on_one_batch():
    recipe = tiny()
    net = MotionNet(recipe.model)
    net.initialise(Generator().manual_seed(0))
    phase, batch = MotionPhase(net, recipe), recipe.batch(0)
    optimizer = torch.optim.AdamW(phase.module.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = phase.loss(batch, 0, Generator())["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="frames=4: must be at least 5"):
        replace(tiny(), frames=4)
    with pytest.raises(ValueError, match="scenes=0"):
        replace(tiny(), scenes=0)
    with pytest.raises(ValueError, match="half as many frames"):
        replace(tiny(), model=MotionNetConfig((8, 8), (1, 1)))
