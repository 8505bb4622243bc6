"""The Make-A-Video recipe in small: from nothing to a model that the command line makes clips with."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from carrara.cli import run
from carrara.core.media import read_video
from carrara.core.types import VideoShape
from carrara.data.pond.sampling import SINGLES
from carrara.recipes import RECIPES
from carrara.recipes.make_a_video import PHASES, MakeAVideoRecipe, make_a_video
from carrara.recipes.pond_unlabelled import Rates, pond_unlabelled
from carrara.systems.image_prior import ContrastivePhase, PriorPhase
from carrara.systems.make_a_video import STAGES, MakeAVideo
from carrara.systems.registry import load_system
from carrara.systems.unlabelled_phase import UnlabelledClips, UnlabelledPhase

PROMPT = "a red ball on the grass"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, RECIPES["make-a-video-tiny"]().run(folder)


def test_every_phase_leaves_a_model_and_changes_its_own_part_alone(trained):
    folder, model = trained
    assert model == folder / "space/model"
    before, trains = None, {"contrastive": {"contrastive", "text_encoder"}, "image": {"decoder"}}
    for phase in PHASES:
        system = load_system(folder / phase / "model")
        assert isinstance(system, MakeAVideo)
        parts = {**system.networks, **system.others, "text_encoder": system.text_encoder}
        if before is not None:
            same = {
                name
                for name, part in before.items()
                if all(a.equal(b) for a, b in zip(part.state_dict().values(), parts[name].state_dict().values()))
            }
            changed = set(parts) - same
            assert changed == trains.get(phase, {phase}) & set(parts), phase
        before = parts
    assert tuple(system.networks) == STAGES
    assert (system.defaults.frames, system.defaults.height, system.defaults.fps) == (7, 64, 8.0)


def test_the_command_line_makes_clips_with_it_and_makes_them_again(trained, tmp_path, capsys):
    folder, model = trained
    clip, again = tmp_path / "clip.mp4", tmp_path / "again.mp4"
    assert run(["generate", PROMPT, "--model", str(model), "--seed", "1", "-o", str(clip)]) == 0, capsys.readouterr()
    frames, fps, _ = read_video(clip)
    assert (frames.shape, fps) == ((7, 64, 64, 3), 8.0)
    assert run(["generate", "--from", str(clip), "-o", str(again)]) == 0
    assert clip.read_bytes() == again.read_bytes()
    longer = tmp_path / "longer.mp4"
    assert run(["generate", PROMPT, "--model", str(model), "--frames", "12", "-o", str(longer)]) == 0
    assert read_video(longer)[0].shape == (12, 64, 64, 3)
    picture, moving = tmp_path / "picture.png", tmp_path / "moving.mp4"
    assert run(["generate", PROMPT, "--model", str(model), "--images", "-o", str(picture)]) == 0
    assert run(["generate", PROMPT, "--model", str(model), "--image", str(picture), "-o", str(moving)]) == 0
    assert read_video(moving)[0].shape == (7, 64, 64, 3)
    short = tmp_path / "short.mp4"
    assert run(["generate", PROMPT, "--model", str(folder / "decoder/model"), "-o", str(short)]) == 0
    assert read_video(short)[0].shape == (4, 16, 16, 3)


def test_captions_reach_the_readers_of_text_on_images_and_no_other_phase():
    recipe = RECIPES["make-a-video-tiny"]()
    assert isinstance(recipe, MakeAVideoRecipe)
    system = recipe.fresh()
    for name in PHASES:
        system = recipe.grown(system, name)
        phase = recipe.phase(name, system, torch.device("cpu"))
        batch = phase.batch(0)
        if name in ("contrastive", "prior"):
            assert isinstance(phase, ContrastivePhase | PriorPhase)
            assert batch.video.shape[1] == 1
            assert len(batch.captions) == len(batch.video)
        else:
            assert isinstance(phase, UnlabelledPhase)
            assert type(batch) is UnlabelledClips
            assert {field.name for field in fields(batch)} == {"video", "fps"}
            assert batch.video.shape[1] == (1 if name in ("image", "space") else 4)


def test_rates_fall_from_high_to_low_and_then_cover_everything():
    rates = Rates(2.0, 32.0, 100)
    drawn = [[rates.at(step + at, 0) for at in range(50)] for step in (0, 50, 100, 5000)]
    assert rates.at(0, 0) == 32.0
    least = [min(found) for found in drawn]
    assert all(8 - 1e-9 < rate <= 32 for rate in drawn[0])
    assert least[0] > least[1] > 2
    for found in drawn[2:]:
        assert min(found) < 2.5
        assert max(found) > 25
        assert abs(sum(map(math.log2, found)) / len(found) - 3) < 0.6
    assert Rates(8.0, 8.0, 0).at(3, 1) == 8.0
    with pytest.raises(ValueError, match="low=5, high=2"):
        Rates(5.0, 2.0)


def test_batches_are_a_function_of_the_step_and_faster_ones_move_less():
    def source(rates: Rates):
        return pond_unlabelled(VideoShape(4, 16, 16), rates, 2.0, 4, SINGLES, 0, torch.device("cpu"))

    varied = source(Rates(curriculum=0))
    assert varied(3).video.equal(varied(3).video)
    assert varied(3).fps == varied(3).fps != varied(4).fps
    assert not varied(3).video.equal(varied(4).video)
    moved = [
        float(
            torch.stack(
                [source(Rates(fps, fps, 0))(step).video.float().diff(dim=1).abs().mean() for step in range(3)]
            ).mean()
        )
        for fps in (2.0, 30.0)
    ]
    assert moved[1] < 0.7 * moved[0]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"side": 18}, "decoder makes frames of 18x18: its network takes multiples of 4"),
        ({"side": 8}, "side=8: the pond is rendered at 16"),
        ({"until": "spaces"}, "until='spaces'"),
        ({"rates": Rates(2.0, 60.0)}, r"rates\.high=60"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_is_trained(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(make_a_video(), **changes)


def test_the_whole_recipe_makes_systems_that_fit():
    recipe = make_a_video()
    system = recipe.fresh()
    for name in PHASES:
        system = recipe.grown(system, name)
    assert (system.defaults.frames, system.defaults.height, system.enlargement) == (31, 128, 4)
