"""Where clips are computed: what is asked for is taken or refused, and nothing is left behind on another device.

Tensors without values (the meta device) stand for a GPU: what mixes them with others fails on either.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from carrara.cli import run
from carrara.core.types import Keyframes, TextStates, VideoShape
from carrara.diffusion.samplers import SAMPLERS
from carrara.generation import memory
from carrara.generation.manifest import read_manifest
from carrara.generation.memory import available_memory
from carrara.generation.run import load
from carrara.systems.latent import Known, Sampling, Start

PROMPT = "a red ball bounces on the grass"
SHAPE = VideoShape(9, 16, 32)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def every_one(values: torch.Tensor, return_inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of values that nobody knows each is taken for another one."""
    assert return_inverse
    return values.flatten(), torch.arange(values.numel(), device=values.device).view(values.shape)


@pytest.fixture
def elsewhere(tiny_system, monkeypatch):
    """The tiny system on the meta device, where torch has no autocast and compares nothing. Prompts are read before:
    how long they are is a value."""
    monkeypatch.setattr(torch, "equal", lambda one, other: one.device == other.device)
    monkeypatch.setattr(torch, "unique", every_one)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    system = copy.copy(tiny_system)
    for part in ("denoiser", "autoencoder", "text_encoder"):
        setattr(system, part, copy.deepcopy(getattr(system, part)))

    def read(prompts):
        here = tiny_system.read(prompts)
        return TextStates(here.states.to("meta"), here.lengths, here.padded_length)

    assert system.to("meta") is system
    system.read = read
    return system


def test_every_network_moves(elsewhere):
    for part in (elsewhere.denoiser, elsewhere.autoencoder, elsewhere.text_encoder):
        assert {str(value.device) for value in (*part.parameters(), *part.buffers())} == {"meta"}
    assert elsewhere.device.type == "meta"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampling_mixes_no_devices(elsewhere, sampler, guidance):
    made = elsewhere.sample([PROMPT], [1], SHAPE, Sampling(steps=3, guidance=guidance, sampler=sampler))
    assert made.device.type == "meta"
    assert {video.device.type for video in elsewhere.decode_chunks(made)} == {"meta"}


@pytest.mark.parametrize("by", ["hold", "replace"])
def test_what_is_known_mixes_no_devices(elsewhere, by):
    sampling = Sampling(steps=2, guidance=2.0, rescale=0.3, interval=(0.1, 0.9))
    clip = torch.zeros(1, 3, SHAPE.frames, SHAPE.height, SHAPE.width, device="meta")
    latents = elsewhere.autoencoder.encode(clip)
    mask = torch.zeros_like(latents[:, 0], dtype=torch.bool)
    frames = Keyframes(latents[:, :, :1], *(torch.zeros(1, 1, device="meta") for _ in range(2)))
    told = {"known": Known(latents, mask, by), "keyframes": frames, "start": Start(latents, 0.5)}
    assert elsewhere.sample([PROMPT], [1], SHAPE, sampling, **told).device.type == "meta"


def test_devices_are_taken_or_refused_in_one_line(tiny_folder, tmp_path, capsys):
    out = tmp_path / "clip.mp4"
    asked = ["generate", PROMPT, "--model", str(tiny_folder), "--seed", "1", "-o", str(out), "--device"]
    assert run([*asked, "gpu"]) == 2
    assert capsys.readouterr().err == "carrara: device='gpu': must be auto, cpu or cuda\n"
    if not torch.cuda.is_available():
        assert run([*asked, "cuda"]) == 2
        assert capsys.readouterr().err == "carrara: device='cuda': torch sees no GPU here; use --device cpu\n"
    assert not out.exists()
    assert run([*asked, "cpu"]) == 0
    assert read_manifest(out).software.device == "cpu"
    assert run(["generate", "--from", str(out), "--device", "cpu", "-o", str(tmp_path / "again.mp4")]) == 0
    assert (tmp_path / "again.mp4").read_bytes() == out.read_bytes()
    with pytest.raises(ValueError, match="must be auto, cpu or cuda"):
        load(tiny_folder, device="tpu")


def test_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 << 30, 8 << 30))
    assert available_memory("cuda") == 7 << 30
    machine, cgroup = memory._machine(), memory._cgroup()  # read once: what is free changes from reading to reading
    monkeypatch.setattr(memory, "_machine", lambda: machine)
    monkeypatch.setattr(memory, "_cgroup", lambda: cgroup)
    assert available_memory("cpu") == available_memory() > 0


@needs_gpu
@pytest.mark.parametrize("offload", [False, True])
def test_a_gpu_makes_the_same_clip(tiny_folder, offload):
    sampling = Sampling(steps=4, guidance=2.0)
    here, there = (load(tiny_folder, offload, device=device).system for device in ("cpu", "cuda"))
    wanted, found = (system.sample([PROMPT], [1], SHAPE, sampling) for system in (here, there))
    assert found.device.type == "cuda"
    assert torch.allclose(found.cpu(), wanted, atol=1e-3)
