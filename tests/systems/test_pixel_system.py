"""Pixels as latents, and folders of systems that have more than U-Nets."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from carrara.core.config import write_json
from carrara.core.types import VideoShape
from carrara.denoisers.unet3d import NO_TIME, UNet3D, UNetConfig
from carrara.diffusion.samplers import sample_generators
from carrara.systems.latent import Defaults, LatentVideo, Sampling
from carrara.systems.pixel_system import Pixels, PixelSystem, read_parts
from carrara.systems.stage import Process, Stage
from carrara.systems.vdm import VDMSettings
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.tokenizer import train_tokenizer

SAMPLING = Sampling(steps=3, guidance=1.0, sampler="ddim", shift=1.0, grid="cosine")


@dataclass(frozen=True)
class PriorConfig:
    width: int = 3


class Prior(nn.Module):
    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.out = nn.Linear(config.width, config.width)


class Two(PixelSystem):
    """A system with a network of another kind beside its U-Net."""

    NAME = "CarraraTwo"
    SETTINGS = VDMSettings

    @classmethod
    def load(cls, folder: Path) -> Two:
        return cls(**read_parts(folder, cls.NAME, cls.SETTINGS, others={"prior": (Prior, PriorConfig)}))


@pytest.fixture(scope="module")
def system() -> Two:
    tokenizer = train_tokenizer(["a red ball"])
    torch.manual_seed(0)
    text = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, 16, 16, 32, 1, 1))
    network = UNet3D(UNetConfig(dim=8, multipliers=(1, 2), attention=(), text="none", temporal=NO_TIME))
    network.init_weights(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    defaults: Any = Defaults(2, 8, 8, 8.0, SAMPLING)
    return Two({"base": network}, text, tokenizer, defaults, VDMSettings(), others={"prior": Prior(PriorConfig(5))})


def test_pixels_are_their_own_latents():
    pixels, clip = Pixels(), torch.rand(1, 3, 2, 4, 4)
    assert pixels.decode(pixels.encode(clip)) is clip
    assert next(pixels.decode_chunks(clip)) is clip
    assert not list(pixels.parameters())


def test_a_folder_holds_networks_of_every_kind(system, tmp_path):
    system.save(tmp_path / "model")
    again = Two.load(tmp_path / "model")
    assert again.others["prior"].config == PriorConfig(5)
    assert again.others["prior"].out.weight.equal(system.others["prior"].out.weight)
    assert again.first.leave.weight.equal(system.first.leave.weight)
    with pytest.raises(ValueError, match="expected networks, encoder, text_encoder"):
        read_parts(tmp_path / "model", Two.NAME, VDMSettings, others={"encoder": (Prior, PriorConfig)})
    shutil.rmtree(tmp_path / "model/prior")
    with pytest.raises(ValueError, match="no prior/ in it"):
        Two.load(tmp_path / "model")


def test_where_a_latent_model_is_needed_it_is_told_as_what_it_is(tmp_path):
    write_json(tmp_path / "model_index.json", {"_class_name": "CarraraVDM"})
    with pytest.raises(ValueError, match="a CarraraVDM folder, a system of pixels, where a latent model is needed"):
        LatentVideo.load(tmp_path)


def test_every_network_is_part_of_the_denoiser_that_is_looked_into(system):
    assert dict(system.denoiser.named_parameters()).keys() == {
        f"base.{name}" for name, _ in system.first.named_parameters()
    }
    assert system.denoiser.config == system.first.config


def test_frames_that_start_from_one_noise_are_one_picture_where_nothing_looks_along_time(system):
    stage = Stage(system.first, Process())
    shared, own = (
        stage.draw((3, 4, 8, 8), None, None, SAMPLING, sample_generators([1, 2]), one_noise=one)
        for one in (True, False)
    )
    torch.testing.assert_close(shared, shared[:, :, :1].expand_as(shared), atol=1e-5, rtol=1e-5)
    assert (own[:, :, 0] - own[:, :, 1]).abs().max() > 0.01
    assert (shared[0] - shared[1]).abs().max() > 0.01


def test_longer_and_larger_clips_need_more_memory(system):
    small, longer, larger = (
        system.peak_memory(shape) for shape in (VideoShape(4, 64, 64), VideoShape(8, 64, 64), VideoShape(8, 128, 64))
    )
    assert small < longer < larger
