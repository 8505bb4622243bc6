"""Models that make clips of an image, trained on: they are told of a clip's frames what generation tells them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from tests.data.prepared_folder import Clip, write_prepared
from tests.recipes.test_clips_kinds import recipe, same
from tests.systems.foreign import parts, write_diffusers, write_original

from carrara.core.types import VideoShape
from carrara.data.clip_latents import open_latents
from carrara.data.prepared import Prepared
from carrara.recipes.clips_images import image_of
from carrara.recipes.clips_start import open_finished
from carrara.recipes.lora import LoRA, LoRARecipe, lora
from carrara.systems.folder import recognise
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.wan_image import given_image

FRAMES = {"i2v": "first frame", "flf2v": "first and last frame", "i2v-experts": "first frame"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [Clip((9, 32, 64), n) for n in range(4)] + [Clip((5, 64, 32), 4), Clip((1, 64, 32), 5)]
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", clips)


def adapter(model: Path, *clips: Path, **changes: object) -> LoRARecipe:
    named = {"model": str(model), "clips": tuple(str(path) for path in clips), "lora": LoRA(2, 2.0), "batch": 2}
    return replace(lora(), **named, device="cpu", **changes)


def expert(kind: str) -> str:
    return "high" if kind.endswith("experts") else ""


@pytest.mark.parametrize("kind", FRAMES)
def test_training_tells_what_generation_tells(data, tmp_path, kind):
    """Of each clip, to the rounding of the cache, as a model that is loaded to generate is told of the same frames."""
    write_diffusers(tmp_path / "wan", kind)
    recipe(data, tmp_path / "wan", expert=expert(kind)).run(tmp_path / "run")
    finished = open_finished(str(tmp_path / "wan"), True, torch.device("cpu"), expert(kind))
    prepared, system = Prepared(data).moving(), LatentVideo.load(tmp_path / "wan")
    caches = open_latents(prepared, tmp_path / "run" / "latents", finished.encoder, 0, beside=finished.beside)
    assert caches[2] is None  # the image was left out
    for numbers, cache in zip(prepared.members[:2], caches):
        told = image_of(cache[range(len(numbers))])
        for row, number in enumerate(numbers):
            pixels = prepared.frames(number)
            last = pixels[-1] if kind == "flf2v" else None
            known, image = given_image(system, VideoShape(*pixels.shape[:3]), pixels[0], last)
            assert known is None
            assert torch.equal(told.row(row).channels, image.channels.half())
            assert (told.states is None) == (image.states is None) == (kind == "i2v-experts")
            if image.states is not None:
                assert torch.equal(told.row(row).states, image.states.half())
    assert caches[0].about["image"] == FRAMES[kind]


@pytest.mark.parametrize(
    ("kind", "write"), [("i2v", write_diffusers), ("flf2v", write_original), ("i2v-experts", write_original)]
)
def test_a_model_of_images_learns_and_stays_one(data, tmp_path, kind, write, capsys):
    write(tmp_path / "wan", kind)
    model = recipe(data, tmp_path / "wan", expert=expert(kind)).run(tmp_path / "run")
    assert "without its images (1)" in capsys.readouterr().out
    before, after = (LatentVideo.load(path, torch.bfloat16) for path in (tmp_path / "wan", model))
    assert not same(before.denoiser, after.denoiser)
    assert str(recognise(model).kind) == str(recognise(tmp_path / "wan").kind)
    if before.image_tower is not None:
        assert same(before.image_tower, after.image_tower)
    lines = [json.loads(line) for line in (model.parent / "metrics.jsonl").read_text().splitlines()]
    assert any("loss_at_0.98" in line for line in lines)
    assert list((model.parent / "pictures").iterdir())
    first = Prepared(data).frames(0)
    _, image = given_image(after, VideoShape(9, 32, 64), first[0], first[-1] if kind == "flf2v" else None)
    made = after.sample(["a red ball"], [0], VideoShape(9, 32, 64), Sampling(steps=2), image=image)
    assert made.isfinite().all()


def test_the_written_model_runs_under_diffusers(data, tmp_path):
    write_diffusers(tmp_path / "wan", "i2v")
    model = recipe(data, tmp_path / "wan").run(tmp_path / "run")
    pipeline, ours = WanImageToVideoPipeline.from_pretrained(model), LatentVideo.load(model, torch.float32)
    pixels = torch.randn(1, 3, 28, 28)
    theirs = pipeline.image_encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(ours.image_tower.read(pixels), theirs, rtol=1e-4, atol=1e-5)
    assert pipeline.image_processor.crop_size["height"] == 28


def test_the_image_decides_what_is_learned(data, tmp_path):
    """Every part of it reaches the loss, and the gradient the layers that read it."""
    write_diffusers(tmp_path / "wan", "flf2v")
    phase, _ = adapter(tmp_path / "wan", data).phase(tmp_path / "run")
    batch = phase.batch(0)

    def loss(image) -> float:
        return float(phase.loss(replace(batch, image=image), 0, torch.Generator().manual_seed(0))["loss"].detach())

    whole = loss(batch.image)
    assert loss(replace(batch.image, channels=batch.image.channels.flip(2))) != whole
    assert loss(replace(batch.image, states=batch.image.states.flip(1))) != whole
    with pytest.raises(ValueError, match="20 of them the given image's"):
        loss(replace(batch.image, channels=None))
    for term in phase.terms["transformer"].values():
        torch.nn.init.normal_(term.up)  # a fresh adapter is zero, and so is the gradient of its other half
    phase.loss(batch, 0, torch.Generator().manual_seed(0))["loss"].backward()
    read = {name: term for name, term in phase.terms["transformer"].items() if "image" in name}
    assert read
    assert all(float(term.down.grad.abs().max()) > 0 for term in read.values())
    assert phase.picture().ndim == 3


def test_latents_without_an_image_are_refused(data, tmp_path):
    """And those with one for a model that reads none, in the same folder."""
    made = write_diffusers(tmp_path / "wan", "i2v")
    write_diffusers(tmp_path / "text", "t2v", {**parts("t2v"), "vae": made["vae"]})
    adapter(tmp_path / "text", data).phase(tmp_path / "run")
    (plain,) = (tmp_path / "run" / "latents").glob("*/9-frames-64x32")
    assert (plain / "cache.json").is_file()
    with pytest.raises(ValueError, match=r"hold nothing of the first frame .* give the prepared folder"):
        adapter(tmp_path / "wan", plain).phase(tmp_path / "other")
    with pytest.raises(ValueError, match="made with image=None, now it is first frame"):
        adapter(tmp_path / "wan", data).phase(tmp_path / "run")
    adapter(tmp_path / "wan", data).phase(tmp_path / "more")
    with pytest.raises(ValueError, match="made with image=first frame, now it is None"):
        adapter(tmp_path / "text", data).phase(tmp_path / "more")


def test_a_folder_of_images_alone_is_refused(tmp_path):
    images = write_prepared(tmp_path / "images", [Clip((1, 32, 64), 0), Clip((1, 32, 64), 1)])
    write_diffusers(tmp_path / "wan", "i2v")
    with pytest.raises(ValueError, match="holds images alone; prepare clips that move"):
        recipe(images, tmp_path / "wan").run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
