"""Systems of pixels, asked as any model is: what they cannot do is refused before anything is made, what they can do
has an effect."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from carrara.generation.asked import unread_prompt
from carrara.generation.conditions import Conditions
from carrara.generation.request import Request
from carrara.generation.run import Model
from carrara.recipes import RECIPES
from carrara.recipes.make_a_video import PHASES, MakeAVideoRecipe
from carrara.recipes.vdm import VDMRecipe
from carrara.systems.vdm import VDM

PROMPT, OTHER = "a red ball bounces", "a green frog jumps"


@torch.no_grad()
def drawn(system):
    """The same system with all of its weights drawn, so that no layer is the identity."""
    generator = torch.Generator().manual_seed(0)
    for part in (*system.networks.values(), *system.others.values()):
        for parameter in part.requires_grad_(False).eval().parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    system.text_encoder.eval().requires_grad_(False)
    return system


@pytest.fixture(scope="module")
def base() -> Model:
    """A VDM of 4 frames of 16 x 16, without a fine stage."""
    recipe = RECIPES["vdm-tiny"]()
    assert isinstance(recipe, VDMRecipe)
    return Model("base", drawn(recipe.fresh()))


@pytest.fixture(scope="module")
def cascade() -> Model:
    recipe = RECIPES["vdm-tiny"]()
    assert isinstance(recipe, VDMRecipe)
    small = recipe.fresh()
    networks = {**small.networks, "fine": recipe._network(recipe.fine, 1)}
    defaults = replace(small.defaults, frames=7, height=32, width=32, fps=16.0)
    return Model("vdm", drawn(VDM(networks, small.text_encoder, small.tokenizer, defaults, recipe.settings)))


@pytest.fixture(scope="module")
def make_a_video() -> Model:
    """All four stages; 7 frames of 64 x 64."""
    recipe = RECIPES["make-a-video-tiny"]()
    assert isinstance(recipe, MakeAVideoRecipe)
    system = recipe.fresh()
    for phase in PHASES:
        system = recipe.grown(system, phase)
    return Model("make-a-video", drawn(system))


def film(frames: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (frames, side, side, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Request(PROMPT, seconds=1.0), "one stage, and this one has two; frames=N makes longer clips of text"),
        (Request(PROMPT, conditions=Conditions(image=film(1, 32)[0])), "one stage, and this one has two"),
        (Request(PROMPT, conditions=Conditions(last=film(1, 32)[0])), "last: this model is told text, and what"),
        (Request(PROMPT, conditions=Conditions(loop=True)), "loop: this model is told text"),
        (Request(PROMPT, conditions=Conditions(edit=film(5, 32))), "edit: this model is told text"),
        (Request(PROMPT, reuse=0.1), r"reuse=0\.1: skips blocks of a transformer"),
        (Request(PROMPT, conditions=Conditions(known_by="replace")), "known_by=replace: .* nothing is; leave it out"),
    ],
)
def test_a_vdm_refuses_what_it_cannot_be_told_before_it_makes_anything(cascade, request_, match):
    with pytest.raises(ValueError, match=match):
        cascade.plan(request_)


def test_a_base_keeps_what_fits_into_one_block_by_the_way_and_the_weight_that_are_asked_for(base):
    first = film(1, 16)[0]

    def made(**said):
        return base.generate(Request(PROMPT, seed=1, conditions=Conditions(image=first, **said))).frames

    assert made().equal(made(known_by="guide"))
    assert made().equal(made(known_by="guide", guide_weight=base.system.settings.weight))
    assert (made(known_by="guide", guide_weight=0.0).int() - made(known_by="replace").int()).abs().max() <= 1
    assert (made(known_by="guide", guide_weight=90.0).int() - made().int()).abs().max() > 1
    for frames in made():
        assert frames.shape == (16, 16, 3)
    with pytest.raises(ValueError, match="up to 4 frames, and this is of 6"):
        base.plan(Request(PROMPT, frames=6, conditions=Conditions(image=first)))
    long = base.generate(Request(PROMPT, seed=1, seconds=1.5))  # windows of a block each
    assert len(long.frames) == round(1.5 * base.system.defaults.fps)


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Request(PROMPT, conditions=Conditions(image=film(1, 64)[0], known_by="replace")), "has a way of its own"),
        (
            Request(PROMPT, conditions=Conditions(image=film(1, 64)[0], known_by="guide", guide_weight=5.0)),
            "known_by=guide: this model has a way of its own; leave it out",
        ),
        (Request(PROMPT, seconds=2.0, prompt_at=((1.0, OTHER),)), "prompt_at: .* this model reads no text"),
        (Request(PROMPT, OTHER, conditions=Conditions(image=film(1, 64)[0])), "negative: .* reads no text"),
        (
            Request(PROMPT, conditions=Conditions(inpaint=film(5, 64), mask=torch.eye(64, dtype=torch.bool))),
            "keeps whole frames",
        ),
        (Request(PROMPT, conditions=Conditions(interpolate=film(3, 64))), "interpolate: this model is told text"),
    ],
)
def test_a_make_a_video_refuses_what_would_have_no_effect(make_a_video, request_, match):
    with pytest.raises(ValueError, match=match):
        make_a_video.plan(request_)


def test_an_image_is_animated_the_same_whatever_the_text_says_and_if_there_is_none(make_a_video):
    first = film(1, 64)[0]

    def made(prompt: str) -> torch.Tensor:
        return make_a_video.generate(Request(prompt, seed=1, frames=5, conditions=Conditions(image=first))).frames

    assert made("").equal(made(PROMPT))
    assert made(OTHER).equal(made(PROMPT))
    animated = Request(PROMPT, conditions=Conditions(image=first))
    assert "and not the prompt" in str(unread_prompt(make_a_video.plan(animated), make_a_video.system))
    for silent in (Request(PROMPT), replace(animated, prompt="")):
        assert unread_prompt(make_a_video.plan(silent), make_a_video.system) is None


def test_networks_of_pixels_are_never_drawn_from_along_another_schedule(base):
    system = base.system
    flow = replace(system.defaults, sampling=replace(system.defaults.sampling, grid="flow"))
    with pytest.raises(ValueError, match="grid=flow: this model has learned the cosine schedule"):
        VDM(system.networks, system.text_encoder, system.tokenizer, flow, system.settings)
    recipe = RECIPES["vdm-tiny"]()
    assert isinstance(recipe, VDMRecipe)
    with pytest.raises(ValueError, match="use grid=cosine"):
        replace(recipe, sampling=flow.sampling).fresh()
