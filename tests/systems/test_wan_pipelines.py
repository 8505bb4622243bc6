"""Whole pipelines of diffusers and of Carrara make the same frames: every kind of model that Wan released."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.systems.wan_fixtures import (
    KINDS,
    carrara_system,
    picture,
    random_pipeline,
    sampling_of,
)
from torch import Tensor

from carrara.diffusion.samplers import sample_noise
from carrara.systems.latent import LatentVideo
from carrara.systems.wan_image import given_image

PROMPT, NEGATIVE, SEED = "a red ball bounces", "the pond", 7
SCALES = {
    "t2v-a14b": (4.0, 3.0),
    "i2v-a14b": (3.5, 2.5),
    "flf2v-a14b": (3.5, 3.5),
}  # of the high-noise expert and of the other


def given(kind: str, seed: int = 1) -> tuple[Tensor | None, Tensor | None]:
    """The images of this kind of model: a first one, a last one."""
    if KINDS[kind].pipeline == "WanPipeline":
        return None, None
    return picture(seed), picture(seed + 1, 48, 30) if kind.startswith("flf2v") else None


def theirs(pipeline, kind: str, system: LatentVideo) -> Tensor:
    """Frames `b t 3 h w` in [0, 1]."""
    shape = KINDS[kind].shape
    latent = shape.latent(system.stride)
    first, last = (None if image is None else Image.fromarray(image.numpy()) for image in given(kind))
    images = {} if first is None else {"image": first} if last is None else {"image": first, "last_image": last}
    high, low = SCALES.get(kind, (5.0, None))
    return pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=shape.height,
        width=shape.width,
        num_frames=shape.frames,
        num_inference_steps=20,
        guidance_scale=high,
        guidance_scale_2=low,
        latents=sample_noise((system.latent_channels, latent.frames, latent.height, latent.width), [SEED]),
        output_type="pt",
        **images,
    ).frames


def ours(pipeline, kind: str, system: LatentVideo, seed: int = 1) -> Tensor:
    shape = KINDS[kind].shape
    first, last = given(kind, seed)
    known, image = (None, None) if first is None else given_image(system, shape, first, last)
    sampling = sampling_of(pipeline, *SCALES.get(kind, (5.0, None)))
    latents = system.sample([PROMPT], [SEED], shape, sampling, NEGATIVE, known=known, image=image)
    return (system.autoencoder.decode(latents).transpose(1, 2) + 1) / 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_are_diffusers(kind):
    pipeline = random_pipeline(kind)
    system = carrara_system(pipeline)
    wanted, made = theirs(pipeline, kind, system), ours(pipeline, kind, system)
    assert made.shape == wanted.shape
    assert (made - wanted).abs().max() <= 1 / 255
    assert wanted.std() > 0.02  # a clip, not one colour
    if given(kind)[0] is not None:
        assert (made - ours(pipeline, kind, system, seed=5)).abs().max() > 4 / 255  # the image matters


def test_experts_take_their_share_of_the_steps():
    """Both are asked, in one change from high to low, and each one's scale matters."""
    pipeline = random_pipeline("t2v-a14b")
    system, shape = carrara_system(pipeline), KINDS["t2v-a14b"].shape
    asked: list[str] = []
    for name, expert in (("high", system.denoiser), ("low", system.low_denoiser)):
        expert.register_forward_pre_hook(lambda *_, name=name: asked.append(name))

    def draw(*scales: float) -> Tensor:
        return system.sample([PROMPT], [SEED], shape, sampling_of(pipeline, *scales, steps=6))

    base = draw(4.0, 3.0)
    assert asked == sorted(asked)
    assert set(asked) == {"high", "low"}
    assert not torch.allclose(base, draw(3.0, 3.0))
    assert not torch.allclose(base, draw(4.0, 2.0))
    assert torch.equal(draw(4.0, 4.0), draw(4.0))


def test_reuse_is_asked_for_in_the_sampling_and_reports_what_it_costs():
    """Off it is exact; on, the network is asked for less, and the clip moves by little."""
    pipeline = random_pipeline("t2v")
    system, shape = carrara_system(pipeline), KINDS["t2v"].shape
    exact, calls = sampling_of(pipeline, 5.0, steps=30), []
    system.denoiser.blocks[-1].register_forward_pre_hook(lambda *_: calls.append(1))
    whole, all_calls = system.sample([PROMPT], [SEED], shape, exact), len(calls)
    calls.clear()
    near = system.sample([PROMPT], [SEED], shape, replace(exact, reuse=0.3))
    assert all_calls == 30  # both sides of guidance in one batch
    assert len(calls) < all_calls
    assert 0 < (near - whole).norm() / whole.norm() < 0.05
