"""Modes with models that read an image beside the noise: told a window's first frame, and nothing they cannot read."""

from __future__ import annotations

import pytest
import torch
from tests.systems.wan_fixtures import KINDS, carrara_system, random_pipeline

from carrara.core.types import VideoShape
from carrara.generation.conditions import Conditions
from carrara.generation.request import Request
from carrara.generation.run import Model
from carrara.systems.latent import Defaults, LatentVideo, Sampling
from carrara.systems.wan_image import given_image

PROMPT = "a red ball bounces on the grass"


def model_of(kind: str) -> Model:
    system: LatentVideo = carrara_system(random_pipeline(kind))
    shape = KINDS[kind].shape
    system.defaults = Defaults(9, shape.height, shape.width, 8.0, Sampling(steps=2, guidance=2.0))
    return Model(kind, system)


def picture(seed: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["i2v-a14b", "flf2v", "ti2v-image"])
def test_a_picture_is_given_as_the_model_was_trained(kind):
    model = model_of(kind)
    system, shape = model.system, model.system.defaults
    first = picture(1, shape.height, shape.width)
    last = picture(2, shape.height, shape.width) if kind == "flf2v" else None
    plan = model.plan(Request(PROMPT, seed=3, conditions=Conditions(image=first, last=last)))
    made = torch.cat(list(model.frames(plan, progress=False)))
    known, image = given_image(system, VideoShape(9, shape.height, shape.width), first, last)
    context = {} if image is None else {"image": image}
    latents = system.sample([PROMPT], [3], plan.shape, plan.sampling, known=known, **context)
    from carrara.systems.phases import to_bytes

    frames = to_bytes(torch.cat(list(system.decode_chunks(latents)), dim=2))[0]
    assert torch.equal(made, frames)


@pytest.mark.filterwarnings("ignore")
def test_the_low_noise_expert_has_a_guidance_of_its_own():
    model = model_of("i2v-a14b")

    def made(**guidance: float) -> torch.Tensor:
        request = Request(PROMPT, seed=3, steps=4, conditions=Conditions(image=picture(1)), **guidance)
        return torch.cat(list(model.frames(model.plan(request), progress=False)))

    assert torch.equal(made(guidance=4.0), made(guidance=4.0, low_guidance=4.0))
    assert not torch.equal(made(guidance=4.0), made(guidance=4.0, low_guidance=1.0))


@pytest.mark.filterwarnings("ignore")
def test_long_clips_go_on_from_the_last_frame():
    model = model_of("i2v")
    plan = model.plan(Request(PROMPT, seed=3, seconds=3.0, conditions=Conditions(image=picture(1))))
    assert [(window.start, window.prefix) for window in plan.timeline.windows] == [(0, 1), (8, 1), (16, 1)]
    assert len(torch.cat(list(model.frames(plan, progress=False)))) == 24


@pytest.mark.filterwarnings("ignore")
def test_what_such_a_model_cannot_be_told_is_refused():
    model = model_of("i2v")
    clip = picture(1)[None].repeat(9, 1, 1, 1)
    mask = torch.ones(32, 32, dtype=torch.bool)
    for said, conditions in (
        ("makes a clip of a picture: give one as image", Conditions()),
        ("inpaint: this model is told a first picture", Conditions(inpaint=clip, mask=mask)),
        ("interpolate: this model is told a first picture", Conditions(interpolate=clip)),
        ("before: this model is told a first picture", Conditions(extend=clip, before=True)),
        ("loop: this model is told a first picture", Conditions(loop=True)),
        ("trained on a first image alone", Conditions(image=clip[0], last=clip[1])),
    ):
        with pytest.raises(ValueError, match=said):
            model.plan(Request(PROMPT, conditions=conditions))
    with pytest.raises(ValueError, match="takes it in one pass"):
        model_of("flf2v").plan(Request(PROMPT, seconds=4.0, conditions=Conditions(image=clip[0], last=clip[1])))
