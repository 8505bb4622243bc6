"""A decoder that learns on while the latents stay: alone, inside a model, and put into the model of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.recipes import RECIPES
from carrara.recipes.pond_decoder import DecoderRecipe
from carrara.recipes.pond_pixels import PixelBatches
from carrara.systems.folder import read_autoencoder
from carrara.systems.latent import LatentVideo
from carrara.training.config import TrainConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of `pond-tiny`."""
    folder = tmp_path_factory.mktemp("run")
    RECIPES["pond-tiny"]().run(folder)
    return folder


def recipe(model: Path) -> DecoderRecipe:
    steps = TrainConfig(steps=3, warmup=1, precision="float32", log_every=1, validate_every=3, picture_every=0)
    return DecoderRecipe(steps, str(model), shown=PixelBatches(batch=2), width=32, height=32, frames=5, validation=2)


@pytest.fixture(scope="module")
def decoder(run, tmp_path_factory) -> Path:
    return recipe(run / "autoencoder/model").run(tmp_path_factory.mktemp("decoder"))


def parts(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of what encodes and of what decodes."""
    weights = read_autoencoder(folder).state_dict()
    decoding = {name: value for name, value in weights.items() if name.startswith(("decoder.", "from_latents."))}
    return {name: value for name, value in weights.items() if name not in decoding}, decoding


def test_the_decoder_learns_and_what_encodes_stays_to_the_bit(run, decoder):
    encoding, decoding = parts(run / "autoencoder/model")
    kept, learned = parts(decoder)
    assert all(torch.equal(kept[name], value) for name, value in encoding.items())
    assert any(not torch.equal(learned[name], value) for name, value in decoding.items())
    before, after = read_autoencoder(run / "autoencoder/model"), read_autoencoder(decoder)
    assert before.config == after.config, "the statistics of the latents must stay, or caches are worth nothing"


def test_a_whole_model_is_written_whole(run, tmp_path):
    model = recipe(run / "denoiser/model").run(tmp_path)
    before, after = LatentVideo.load(run / "denoiser/model"), LatentVideo.load(model)
    shape, sampling = VideoShape(5, 32, 32), before.defaults.sampling
    prompts, seeds = ["a red ball bounces on the grass"], [1]
    latents = before.sample(prompts, seeds, shape, sampling)
    assert torch.equal(latents, after.sample(prompts, seeds, shape, sampling))
    assert not torch.equal(before.autoencoder.decode(latents), after.autoencoder.decode(latents))


def test_a_run_writes_its_model_with_the_better_decoder(run, decoder, tmp_path):
    pond = RECIPES["pond-tiny"]()
    model = replace(pond, decoder=str(decoder)).run(run)
    _, wanted = parts(decoder)
    _, written = parts(model / "vae")
    assert all(torch.equal(written[name].half(), value.half()) for name, value in wanted.items())

    other = replace(pond, autoencoder=replace(pond.autoencoder, train=replace(pond.autoencoder.train, seed=5)))
    with pytest.raises(ValueError, match="its encoder is not this run's"):
        replace(other, decoder=str(decoder)).run(tmp_path)


def test_what_is_no_model_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="neither a model folder nor an autoencoder's"):
        recipe(tmp_path).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="crop=-1"):
        PixelBatches(crop=-1)
