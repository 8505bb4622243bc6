"""Requests: everything wrong is refused in one line, with the remedy, before anything is computed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrara.core.types import VideoShape
from carrara.diffusion.samplers import SAMPLERS
from carrara.generation.asked import unknown_words, unusual_size
from carrara.generation.conditions import Conditions
from carrara.generation.memory import available_memory, check_memory, largest_that_fits, peak_memory
from carrara.generation.request import Request, resolve

PROMPT = "a red ball bounces"


def test_defaults_are_the_models_own(tiny_system):
    plan = resolve(Request(PROMPT), tiny_system)
    assert (plan.shape, plan.fps) == (VideoShape(9, 16, 32), 8.0)
    assert plan.sampling == tiny_system.defaults.sampling
    assert plan.negative == ""
    assert plan.seed != resolve(Request(PROMPT), tiny_system).seed  # drawn


def test_a_later_prompt_holds_for_the_last_frames_if_it_is_asked_for_near_the_end(tiny_system):
    """9 frames at 8 a second: windows may stop behind frames 0 and 4, and what is asked for at the last frame is not
    lost."""
    plan = resolve(Request(PROMPT, prompt_at=((1.0, "a green frog"),)), tiny_system)
    assert plan.prompts == ((5, "a green frog"),)
    assert [plan.prompt_of(window) for window in plan.timeline.windows] == [PROMPT, "a green frog"]


def test_what_is_said_is_taken(tiny_system):
    request = Request(PROMPT, "a pond", 7, 13, (48, 32), 12, 3, 1.5, "euler", 2.0, model="tiny")
    plan = resolve(request, tiny_system)
    assert (plan.negative, plan.seed, plan.shape, plan.fps) == ("a pond", 7, VideoShape(13, 32, 48), 12.0)
    sampling = plan.sampling
    assert (sampling.steps, sampling.guidance, sampling.sampler, sampling.shift) == (3, 1.5, "euler", 2.0)
    assert (sampling.grid, plan.model) == (tiny_system.defaults.sampling.grid, "tiny")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompt": ""}, "prompt is empty; describe"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "ball " * 40}, "at most 32: shorten"),
        ({"negative": "ball " * 40}, "negative prompt has 41 tokens"),
        ({"prompt": 3}, "must be a text"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0"),
        ({"seed": 2**63}, "seed="),
        ({"seed": 1.0}, "seed=1.0"),
        ({"frames": 80}, "nearest 77 or 81"),
        ({"frames": 0}, "frames=0"),
        ({"frames": 9.0}, r"frames=9\.0"),
        ({"frames": True}, "frames=True"),
        ({"size": (40, 32)}, "width=40: must be a multiple of 16; nearest 32 or 48"),
        ({"size": (32, 8)}, "height=8: must be a multiple of 16; nearest 16"),
        ({"size": (32, -16)}, "height=-16"),
        ({"fps": 0}, "fps=0: must be a number from 1 to 120"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": "16"}, "fps='16': must be a number"),
        ({"size": 64}, r"size=64: expected \(width, height\)"),
        ({"size": "64x64"}, "size='64x64': expected"),
        ({"conditions": {"image": "a.png"}}, "conditions is a dict: expected Conditions"),
        ({"prompt_at": (2.0, "a frog")}, "prompt_at=.*: expected pairs of seconds and a prompt"),
        ({"prompt_at": 2.0}, "prompt_at=2.0: expected pairs"),
        ({"steps": 0}, "steps=0: must be a whole number from 1 to 1000"),
        ({"steps": 2.5}, r"steps=2\.5"),
        ({"guidance": float("inf")}, "guidance=inf"),
        ({"guidance": -1}, "guidance=-1"),
        ({"shift": 0}, "shift=0"),
        ({"sampler": "eular"}, "unknown sampler 'eular'; did you mean euler"),
        ({"grid": "flaw"}, "unknown grid 'flaw'; did you mean flow"),
        ({"interval": (0.9, 0.1)}, "interval"),
        ({"rescale": 2}, "rescale=2"),
        ({"low_guidance": 3}, "low_guidance=3: .*this model has one network for all noise; use guidance"),
        ({"size": (160_000, 160_000)}, "GiB of memory.*what fits: "),
    ],
)
def test_refused_with_the_remedy(tiny_system, wrong, said):
    with pytest.raises(ValueError, match=said) as caught:
        resolve(Request(**{"prompt": PROMPT, **wrong}), tiny_system)
    assert "\n" not in str(caught.value)


def test_every_sampler_can_be_asked_for(tiny_system):
    for name in SAMPLERS:
        assert resolve(Request(PROMPT, sampler=name), tiny_system).sampling.sampler == name


def test_unknown_words_are_told_with_what_is_known(tiny_system):
    assert unknown_words("a red ball", tiny_system) is None
    said = unknown_words("a red dragon bounces, gloriously", tiny_system)
    assert said is not None
    assert "'dragon', 'gloriously'" in said
    assert "frog, grass" in said


@pytest.mark.parametrize(
    ("size", "far"),
    [
        ((32, 16), None),
        ((16, 16), None),  # half
        ((64, 16), None),  # twice, in another aspect
        ((16, 64), None),
        ((16, 8), "16x8 is less than 0.4 times"),
        ((48, 32), "48x32 is more than 2.5 times"),
    ],
)
def test_sizes_far_from_the_models_own_are_told_with_its_own(tiny_system, size, far):
    said = unusual_size(VideoShape(9, size[1], size[0]), tiny_system)
    assert said == (far and f"this model's own frames are 32x16; {far} that, and may look bad")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 60), st.integers(1, 60), st.integers(26, 36))
def test_what_is_said_to_fit_fits_and_nothing_larger(tiny_system, k, rows, columns, log_available):
    shape, available = VideoShape(1 + 4 * k, 16 * rows, 16 * columns), 2**log_available
    need = peak_memory(tiny_system, shape)
    if need <= 0.9 * available:
        check_memory(tiny_system, shape, available)
        return
    with pytest.raises(ValueError, match="free; "):
        check_memory(tiny_system, shape, available)
    for fit in largest_that_fits(tiny_system, shape, available):
        check_memory(tiny_system, fit, available)
        assert resolve(Request(PROMPT, frames=fit.frames, size=(fit.width, fit.height)), tiny_system).shape == fit
        if fit.frames < shape.frames:
            assert peak_memory(tiny_system, VideoShape(fit.frames + 4, fit.height, fit.width)) > 0.9 * available


def test_longer_and_larger_clips_need_more(tiny_system):
    def need(frames, height, width):
        return peak_memory(tiny_system, VideoShape(frames, height, width))

    assert need(9, 16, 32) < need(81, 16, 32) < need(81, 480, 832) < need(81, 960, 1664)
    assert 2**20 < available_memory() < 2**62


@pytest.fixture
def student(tiny_system):
    """A model that has learned four strides, as distillation leaves it."""
    made = copy.copy(tiny_system)
    sampling = replace(tiny_system.defaults.sampling, steps=4, guidance=1.0, sampler="euler")
    made.defaults = replace(tiny_system.defaults, sampling=sampling, strides=True)
    return made


CLIP = torch.zeros(9, 16, 32, 3, dtype=torch.uint8)
MASK = torch.ones(16, 32, dtype=torch.bool)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 8}, "steps=8: this model has learned to go from noise to a clip in 4 strides.*leave steps out"),
        ({"guidance": 3.0}, "guidance=3.0"),
        ({"sampler": "unipc"}, "sampler='unipc'"),
        ({"shift": 5.0}, "shift=5.0"),
        ({"interval": (0.2, 0.8)}, "interval"),
        ({"negative": "the pond"}, "negative='the pond'"),
        ({"conditions": Conditions(edit=CLIP)}, "edit: .* would begin between them"),
        ({"conditions": Conditions(edit=CLIP, strength=1.0)}, "edit"),
        ({"conditions": Conditions(inpaint=CLIP, mask=MASK)}, "inpaint: .*known_by=replace"),
        ({"conditions": Conditions(inpaint=CLIP, mask=MASK, known_by="replace", strength=0.5)}, "between them"),
    ],
)
def test_a_model_of_fixed_strides_refuses_what_lies_between_them(wrong, said, student, tiny_system):
    with pytest.raises(ValueError, match=said):
        resolve(Request(PROMPT, **wrong), student)
    resolve(Request(PROMPT, **wrong), tiny_system)  # which has learned all levels


def test_a_model_of_fixed_strides_takes_what_changes_none(student):
    own = student.defaults.sampling
    plan = resolve(Request(PROMPT, steps=own.steps, guidance=1.0, sampler="euler", reuse=0.05), student)
    assert plan.sampling == replace(own, reuse=0.05)
    resolve(Request(PROMPT, conditions=Conditions(image=CLIP[0])), student)
    resolve(Request(PROMPT, conditions=Conditions(extend=CLIP)), student)
    resolve(Request(PROMPT, conditions=Conditions(inpaint=CLIP, mask=MASK, known_by="replace")), student)
