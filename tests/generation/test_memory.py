"""The estimate of memory beside what a process takes, and what it tells apart. More sizes: benchmarks/memory.py."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from tests.allocations import peak
from tests.conftest import random_system

from carrara.autoencoders import causal
from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.types import VideoShape
from carrara.generation import memory
from carrara.generation.memory import held_weights, plan_memory
from carrara.nn.attention import PIECE
from carrara.systems.latent import LatentVideo
from carrara.systems.offload import offload
from carrara.systems.refiner import Refiner, RefinerConfig, unet_of

MEASURE = """
import sys, torch
from pathlib import Path
import av
from transformers.models.umt5 import modeling_umt5
from carrara.generation.memory import plan_memory
from carrara.generation.request import Request
from carrara.generation.run import load

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

torch.set_num_threads(1)
Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins here
before = status("VmRSS")
model = load(sys.argv[1])
plan = model.plan(Request("a red ball", seed=1, frames=9, size=(320, 256), steps=1))
said = plan_memory(model.system, plan.shape).peak
model.write(plan, Path(sys.argv[2]), progress=False)
print(said, status("VmHWM") - before)
"""


def test_the_estimate_is_near_what_the_process_takes(small_folder, tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(small_folder), str(tmp_path / "clip.mp4")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said, taken = (int(word) for word in done.stdout.split())
    print(f"estimated {said / 2**20:.0f} MiB, taken {taken / 2**20:.0f} MiB, {said / taken:.2f}")
    assert 0.75 * taken < said < 1.5 * taken


def test_pages_of_a_file_are_told_from_weights_in_memory(tmp_path):
    system = random_system()
    size = sum(value.nbytes for value in system.denoiser.parameters())
    assert held_weights([system.denoiser]) == (size, 0)
    large = torch.nn.Linear(512, 512, bias=False).requires_grad_(False)
    path = tmp_path / "weight"
    path.write_bytes(large.weight.numpy().tobytes())
    mapped = torch.from_file(str(path), size=512 * 512).view(512, 512)
    large.weight = torch.nn.Parameter(mapped, requires_grad=False)
    assert held_weights([large, system.denoiser]) == (size, 4 * 512 * 512)


def test_a_plan_is_the_weights_and_the_worst_stage(small_system):
    plan = plan_memory(small_system, VideoShape(9, 64, 64))
    stages = (plan.text, plan.denoising, plan.decoding)
    assert min(stages) > 0
    assert plan.refining == 0
    assert plan.peak == plan.allocated + plan.mapped + plan.base + plan.frames + max(stages)
    assert plan.beside_weights == memory.peak_memory(small_system, VideoShape(9, 64, 64))


def test_a_longer_clip_costs_decoding_nothing_more(small_system):
    """Beyond the first chunks: the decoder streams."""
    plans = [plan_memory(small_system, VideoShape(frames, 512, 512)) for frames in (49, 97, 193)]
    assert len({plan.decoding for plan in plans}) == 1
    assert plans[0].denoising < plans[1].denoising < plans[2].denoising


def test_offloading_moves_weights_from_what_is_held_to_a_few_blocks():
    system = random_system()
    before = plan_memory(system, VideoShape(5, 64, 64))
    offload(system.denoiser, "cpu")
    after = plan_memory(system, VideoShape(5, 64, 64))
    assert after.allocated < before.allocated
    assert after.denoising > before.denoising


def test_attention_and_norms_work_in_the_pieces_that_are_planned_with():
    assert memory._PIECE == PIECE
    assert memory._CACHED == causal.PIECE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [VideoShape(9, 128, 128), VideoShape(9, 192, 256)], ids=["few chunks", "many"])
def test_what_decoding_is_said_to_allocate_is_what_it_does(dtype, residual, shape, tmp_path):
    """By torch's own allocator, so without what the C library holds back."""
    config = VideoAutoencoderConfig(8, latent_channels=4, residual=residual, patch=2 if residual else 1)
    system, latent = random_system(), shape.latent(config.stride)
    system.autoencoder = VideoAutoencoder(config).to(dtype)
    sides = latent.frames, latent.height, latent.width
    latents = torch.randn(1, 4, *sides, generator=torch.Generator().manual_seed(0))

    def decode() -> None:  # and every chunk becomes bytes, as it does when it is written
        for video in system.decode_chunks(latents):
            ((video[0].float() + 1) * 127.5).round().to(torch.uint8)

    taken = peak(decode, tmp_path)
    encoder = memory._ENCODER * shape.height * shape.width
    said = (memory._decoding(system, shape) - encoder) / memory._HELD_BACK
    print(f"said {said / 2**20:.2f} MiB, allocated {taken / 2**20:.2f}: {said / taken:.2f}")
    assert 0.9 * taken < said < 1.3 * taken


@pytest.mark.parametrize("frames", [5, 9, 33])
def test_every_stage_grows_with_the_picture(small_system, frames):
    plans = [plan_memory(small_system, VideoShape(frames, side, side)) for side in (64, 128, 256)]
    for small, large in pairwise(plans):
        assert small.denoising < large.denoising
        assert small.frames < large.frames


@pytest.mark.parametrize(("frames", "height", "width"), [(17, 64, 64), (33, 64, 96), (5, 128, 128)])
def test_a_refiner_takes_about_what_is_planned(small_system, tmp_path, frames, height, width):
    refiner = Refiner(RefinerConfig(unet_of(small_system.text_encoder.config.d_model))).eval()
    refiner.init_weights(0)
    system = LatentVideo(
        small_system.autoencoder,
        small_system.denoiser,
        small_system.text_encoder,
        small_system.tokenizer,
        small_system.defaults,
        refiner=refiner,
    )
    video, text = torch.rand(1, 3, frames, height, width), system.read(["a red ball"])
    taken = peak(lambda: refiner.refine(video, text), tmp_path)
    plan = plan_memory(system, VideoShape(frames, height, width))
    assert 0.75 < plan.refining / memory._HELD_BACK / taken < 1.35
    assert plan.allocated >= sum(value.nbytes for value in refiner.parameters())
