"""Frame by frame: no frame sees another, and everything else is as the model itself does it."""

from __future__ import annotations

import pytest
import torch

from carrara.core.media import read_video
from carrara.core.types import VideoShape
from carrara.generation.baseline import NOISES, baselines, frame_by_frame, frame_seeds
from carrara.generation.request import Request
from carrara.generation.run import GenerationError, load

PROMPT = "a red ball bounces on the grass"


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


@pytest.fixture(scope="module")
def plan(model):
    return model.plan(Request(PROMPT, seed=5, model=model.name))


def test_every_frame_is_the_clip_of_one_frame_that_its_seed_gives(model, plan):
    frames = frame_by_frame(model, plan, "fresh")
    assert frames.dtype == torch.uint8
    assert tuple(frames.shape) == (9, 16, 32, 3)
    for frame, seed in zip(frames, frame_seeds(5, 9, "fresh")):
        alone = model.generate(PROMPT, seed=seed, frames=1).frames[0]
        assert (alone.int() - frame.int()).abs().max() <= 2  # another batch shape


def test_fresh_frames_differ_and_shared_ones_are_one_picture(model, plan):
    fresh, shared = (frame_by_frame(model, plan, noise) for noise in NOISES)
    assert all(not torch.equal(fresh[i], fresh[j]) for i in range(9) for j in range(i))
    assert all(torch.equal(shared[0], frame) for frame in shared)
    assert (fresh[0].int() - shared[0].int()).abs().max() <= 2  # both begin with the clip's own seed
    assert torch.equal(fresh, frame_by_frame(model, plan, "fresh"))


def test_equal_noise_really_gives_equal_frames(model, plan):
    """What lets the shared picture be computed once."""
    shape = VideoShape(1, 16, 32)
    first, second = model.system.sample([PROMPT] * 2, [5, 5], shape, plan.sampling)
    torch.testing.assert_close(first, second)


def test_seeds_are_a_function_of_the_clips_seed_and_all_different():
    drawn = [frame_seeds(seed, 17, "fresh") for seed in (0, 1, 2**63 - 1)]
    assert [seeds[0] for seeds in drawn] == [0, 1, 2**63 - 1]
    assert drawn[0] == frame_seeds(0, 17, "fresh")
    assert drawn[0][:5] == frame_seeds(0, 5, "fresh")
    everything = [seed for seeds in drawn for seed in seeds]
    assert len(set(everything)) == len(everything)
    assert all(0 <= seed < 2**63 for seed in everything)
    with pytest.raises(ValueError, match="unknown noise 'fresch'; did you mean fresh"):
        frame_seeds(0, 5, "fresch")


def test_they_stand_in_a_table_beside_the_model(model, plan, tmp_path):
    made = baselines(model, lambda prompt, seed: Request(prompt, seed=seed, steps=1, model=model.name))
    assert list(made) == ["frame by frame, fresh noise", "frame by frame, shared noise"]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    paths[0].touch()  # an earlier run's
    for name, generate in made.items():
        generate([PROMPT, "a green frog"], [5, 6], paths)
        for path, prompt, seed in zip(paths, (PROMPT, "a green frog"), (5, 6)):
            frames, fps, about = read_video(path)
            again = frame_by_frame(model, model.plan(Request(prompt, seed=seed, steps=1)), generate.noise)
            assert torch.equal(frames, again)
            assert fps == 8
            assert about["frame by frame"] in name


def test_a_damaged_model_is_an_error(model, plan, tmp_path):
    import copy

    system = copy.copy(model.system)
    system.denoiser = copy.deepcopy(system.denoiser)
    system.denoiser.head.bias.data[0] = float("nan")
    broken = type(model)("x", system)
    with pytest.raises(GenerationError, match="not finite"):
        frame_by_frame(broken, plan, "shared")
