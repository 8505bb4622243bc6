"""The recipe of a refiner: its batches, its pieces, a run that is resumed, and what is refused before it begins."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.data.pond.captions import caption
from carrara.data.pond.melting import Melting
from carrara.data.pond.sampling import EVERYTHING, sample_scene
from carrara.evaluation.prompts import FILMED
from carrara.recipes import RECIPES
from carrara.recipes.own_clips import OwnClips
from carrara.recipes.pond_data import Captioning
from carrara.recipes.pond_refiner import RefinerRecipe
from carrara.recipes.pond_refiner_data import TRIED, MeltedBatches, MeltedSource, said_of_another
from carrara.recipes.scene_numbers import REFINER_SCENES
from carrara.systems.latent import LatentVideo
from carrara.systems.refiner_adversary import Adversary
from carrara.training.config import TrainConfig

SHOWN = MeltedBatches(frames=4, per_scene=2, pieces=4, piece_frames=3, crop=16, clips=2)


def source(shown: MeltedBatches = SHOWN, numbered: bool = False) -> MeltedSource:
    shape, device = VideoShape(5, 32, 32), torch.device("cpu")
    return MeltedSource(shown, shape, 8.0, EVERYTHING, Melting(), Captioning(), 0, device, numbered=numbered)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """What `pond-tiny` leaves."""
    return RECIPES["pond-tiny"]().run(tmp_path_factory.mktemp("run"))


def recipe(model: Path, **settings: object) -> RefinerRecipe:
    config = TrainConfig(steps=4, warmup=1, optimizer="muon", precision="float32", validate_every=4, picture_every=4)
    made = RefinerRecipe(config, str(model), dim=8, multipliers=(1, 2), shown=SHOWN, validation=2)
    return replace(made, **settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    refiner = LatentVideo.load(folder).refiner
    assert refiner is not None
    return refiner.state_dict()


def test_steps_are_on_frames_pieces_and_clips_in_turn():
    batches = [source()(step) for step in range(len(SHOWN.turns))]
    assert [tuple(batch.melted.shape[:4]) for batch in batches] == [
        (8, 1, 16, 16), (8, 1, 16, 16), (4, 3, 16, 16), (2, 5, 32, 32),
    ]  # fmt: skip
    for batch in batches:
        assert batch.video[:, 0].shape == batch.melted.shape
        assert batch.actors.shape == batch.video.shape[:5]
        assert batch.touched.shape == batch.melted.shape[:4]
        assert len(batch.captions) == len(batch.melted)
    frames = batches[0]
    assert frames.captions[0] == frames.captions[1], "frames of one scene have its caption"
    assert (frames.actors > 0).flatten(1).any(1).float().mean() > 0.8, "windows show actors"


def test_a_batch_is_a_function_of_its_step_and_pieces_of_other_scenes():
    again = source()(2)
    assert torch.equal(source()(2).melted, again.melted)
    assert not torch.equal(source()(6).melted, again.melted)
    first, rows = source().piece(2, 0, 2)
    second, _ = source().piece(2, 1, 2)
    assert rows == 4
    assert len(first.captions) + len(second.captions) == 4
    assert not torch.equal(first.video, second.video)


def test_steps_are_on_what_the_settings_say():
    turned = source(replace(SHOWN, turns=("clips", "frames")))
    assert [len(turned(step).melted) for step in range(4)] == [2, 8, 2, 8]


def test_another_caption_is_of_the_scene_less_one_thing():
    plain, rng = Captioning(short=0, medium=1, dense=0, synonyms=0, synonyms_from=0), random.Random(0)
    changed = Counter()
    for number in range(60):
        scene = sample_scene(REFINER_SCENES + number, FILMED)
        actor = scene.actors[0]
        still, moving = (said_of_another(scene, plain, sees, rng) for sees in (False, True))
        assert actor.colour in still
        assert not re.search(rf"\b{actor.kind}\b", still)
        kept = re.search(rf"\b{actor.kind}\b", moving) is not None
        camera = caption(scene, "medium", 0, canonical=True).text.partition("camera")[2]
        changed["kind" if not kept else "camera" if camera not in moving else "motion"] += 1
    assert all(changed[name] > 5 for name in ("kind", "motion", "camera")), changed


def test_every_clip_has_another_caption_and_is_placed_where_it_is_simulated(model, tmp_path):
    alone, with_own = source(), recipe(model, own=OwnClips(clips=3, share=0.5)).phase(tmp_path)
    for step in range(4):
        batch = alone(step)
        assert batch.placed
        assert len(batch.others) == len(batch.captions)
        assert all(other != said for other, said in zip(batch.others, batch.captions))
    assert [with_own.batch(step).placed for step in range(0, 16, 4)] == [False, True, False, True]
    assert len(with_own.batch(0).others) == len(with_own.batch(0).captions)


def test_what_spins_is_shown_more_often_where_that_is_wanted():
    def share(turning: float) -> float:
        shown = source(replace(SHOWN, frames=30, pieces=1, per_scene=1, turns=("frames",), turning=turning))
        captions = [caption for step in range(2) for caption in shown(step).captions]
        return sum(re.search("spin|twirl|turns|rotat", text) is not None for text in captions) / len(captions)

    assert share(0.9) > share(0) + 0.15


def test_a_refiner_learns_to_be_told_which_frame_is_which(model, tmp_path):
    frames, pieces = (source(numbered=True)(step) for step in (0, 2))
    assert frames.first is not None
    assert pieces.first is not None
    assert torch.allclose(frames.first.view(4, 2).diff(dim=1), torch.ones(4, 1))
    assert (pieces.first >= 0).all()
    assert (pieces.first <= 2).all()
    before = recipe(model).run(tmp_path / "before")
    numbered = recipe(before, numbered=16, own=OwnClips(clips=2, share=0.5)).run(tmp_path / "numbered")
    refiner = LatentVideo.load(numbered).refiner
    assert refiner is not None
    assert refiner.config.numbered == 16
    on = recipe(numbered).phase(tmp_path / "on")
    assert on.refiner.config.numbered == 16, "it goes on as it is"
    assert recipe(numbered, numbered=0).phase(tmp_path / "off").refiner.config.numbered == 0


def test_training_draws_no_scene_of_evaluation():
    assert REFINER_SCENES < 2**36
    steps = (2**36 - REFINER_SCENES) // (TRIED * max(MeltedBatches().frames, MeltedBatches().pieces))
    assert steps > 10**7


def test_a_run_leaves_a_whole_model_and_resumes_as_if_it_had_not_stopped(model, tmp_path):
    whole = recipe(model).run(tmp_path / "whole")
    short = recipe(model)
    begun = replace(short, train=replace(short.train, steps=2, decay_at=2, checkpoint_every=1))
    full = replace(short, train=replace(short.train, decay_at=3))
    uninterrupted = full.run(tmp_path / "full")
    begun.run(tmp_path / "resumed")
    resumed = full.run(tmp_path / "resumed")
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(uninterrupted).items())
    before, after = LatentVideo.load(model), LatentVideo.load(whole)
    assert before.refiner is None
    rest = after.denoiser.state_dict()
    assert all(torch.equal(value, rest[name]) for name, value in before.denoiser.state_dict().items())
    assert any(value.abs().sum() > 0 for name, value in weights(whole).items() if "leave" in name)


def test_a_run_against_a_discriminator_resumes_as_if_it_had_not_stopped(model, tmp_path):
    shown = replace(SHOWN, turns=("frames", "pieces", "clips"))
    base = recipe(model, shown=shown, own=OwnClips(clips=3, share=0.5), adversary=Adversary(weight=0.5))
    base = replace(base, train=replace(base.train, optimizer="adamw", decay_at=3))
    uninterrupted = base.run(tmp_path / "full")
    begun = replace(base, train=replace(base.train, steps=2, decay_at=2, checkpoint_every=1))
    begun.run(tmp_path / "resumed")
    resumed = base.run(tmp_path / "resumed")
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(uninterrupted).items())
    quiet = replace(base, adversary=Adversary(weight=0.25))
    with pytest.raises(ValueError, match=r"adversary\.weight=0\.5, now it is 0\.25"):
        quiet.run(tmp_path / "resumed")


def test_a_share_of_the_steps_is_on_clips_of_the_model_itself(model, tmp_path):
    with_own = recipe(model, own=OwnClips(clips=3, share=0.5))
    phase, alone = with_own.phase(tmp_path / "own"), recipe(model).phase(tmp_path / "alone")
    rounds = [torch.equal(phase.batch(step).melted, alone.batch(step).melted) for step in range(0, 16, 4)]
    assert rounds == [False, True, False, True]
    assert not torch.equal(phase.validation.melted, alone.validation.melted)
    assert not (tmp_path / "alone").exists()
    first, second = (phase.batch.piece(2, number, 2)[0] for number in (0, 1))
    assert len(first.captions) + len(second.captions) == SHOWN.pieces
    made = with_own.run(tmp_path / "run")
    assert (tmp_path / "run" / "own" / "shard-00000.safetensors").is_file()
    assert any(value.abs().sum() > 0 for name, value in weights(made).items() if "leave" in name)


def test_a_small_refiner_learns_from_a_large_one(model, tmp_path):
    large = recipe(model, dim=16).run(tmp_path / "large")
    small = recipe(model, teacher=str(large), own=OwnClips(clips=3))
    phase = small.phase(tmp_path / "phase")
    assert phase.teacher is not None
    assert phase.teacher.config.unet.dim == 16
    assert phase.refiner.config.unet.dim == 8
    taught, alone = weights(small.run(tmp_path / "small")), weights(recipe(model).run(tmp_path / "alone"))
    assert any(not torch.equal(value, alone[name]) for name, value in taught.items())
    with pytest.raises(ValueError, match="has no refiner"):
        recipe(model, teacher=str(model)).run(tmp_path / "none")
    other = LatentVideo.load(large)
    for weight in other.text_encoder.parameters():
        weight.data.mul_(2)
    other.save(tmp_path / "other")
    with pytest.raises(ValueError, match="reads what another text encoder says"):
        recipe(model, teacher=str(tmp_path / "other")).run(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_refiner_learns_on_where_the_model_has_one(model, tmp_path):
    first = recipe(model).run(tmp_path / "first")
    further = recipe(first, train=replace(recipe(model).train, steps=1, decay_at=1)).phase(tmp_path)
    assert all(torch.equal(value, weights(first)[name]) for name, value in further.refiner.state_dict().items())
    with pytest.raises(ValueError, match="has a refiner of other sizes"):
        recipe(first, dim=16).run(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_bundled_model_is_meant_by_its_name(tmp_path):
    sizes = {"dim": 32, "multipliers": (1, 2, 3), "shown": MeltedBatches(frames=1, pieces=1, clips=1)}
    phase = recipe(Path("pond"), **sizes).phase(tmp_path)
    assert phase.refiner.config.unet.dim == 32, "it goes on"
    with pytest.raises(ValueError, match=r"unknown model 'pont'"):
        recipe(Path("pont")).run(tmp_path / "out")


def test_bad_input_is_refused_before_anything_is_written(model, tmp_path):
    cases = [
        (recipe(tmp_path / "nowhere"), "no such model folder"),
        (recipe(model, shown=replace(SHOWN, crop=64)), "crop=64: larger than the 32x32 frames"),
        (recipe(model, shown=replace(SHOWN, crop=18)), "shown.crop=18: this refiner takes windows in steps of 4"),
        (recipe(model, multipliers=(1,) * 7), "takes sides in steps of 128 and the model makes them in steps of"),
        (recipe(model, shown=replace(SHOWN, piece_frames=9)), "9 frames of a scene are to be shown"),
    ]
    for case, told in cases:
        with pytest.raises(ValueError, match=told):
            case.run(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    for settings, told in (
        ({"frames": 0}, "frames=0"),
        ({"crop": -1}, "crop=-1"),
        ({"turning": 1.5}, "turning=1.5"),
        ({"turns": ()}, "turns: empty"),
        ({"turns": ("clip",)}, "turn 'clip'"),
    ):
        with pytest.raises(ValueError, match=told):
            MeltedBatches(**settings)
    with pytest.raises(ValueError, match="numbered=-1"):
        recipe(model, numbered=-1)
    with pytest.raises(ValueError, match="validation=0"):
        recipe(model, validation=0)
