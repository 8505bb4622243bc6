"""Loading holds each weight once: peak memory of a process that loads a folder and uses every weight of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tests.systems.foreign import tokenizer

from carrara.denoisers.dit import DiT
from carrara.denoisers.dit_config import DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS
from carrara.systems.releases import kind_of
from carrara.text.encoder import TextEncoder, TextEncoderConfig
from carrara.text.umt5 import PUBLISHED

CONFIG = DiTConfig(heads=8, head_dim=64, layers=24, ffn_dim=2048, text_dim=512)
TEXT = TextEncoderConfig(len(tokenizer()), d_model=512, d_kv=64, d_ff=2048, num_layers=24, num_heads=8)
MEASURE = """
import gc, os, sys, torch
from pathlib import Path
from carrara.systems.folder import recognise

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

def measure(place, part, dtype):
    found = recognise(Path(place))
    found.networks[part].check()  # once without weights: what is measured is not Python's objects
    gc.collect()
    before = status("VmRSS")
    module = found.load(part, getattr(torch, dtype))
    used = sum(parameter.flatten()[::512].float().sum().item() for parameter in module.parameters())  # of every page
    size = sum(parameter.nbytes for parameter in module.parameters())
    print(size, status("VmHWM") - before, used, flush=True)

recognise(Path(sys.argv[1])).networks["text_encoder"].empty()  # what it imports is not what is measured
for case in sys.argv[2:]:
    if (child := os.fork()) == 0:  # a process of its own for every case: the highest mark is never lowered
        measure(*case.split(","))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
CASES = {
    "diffusers,transformer,float32": "as stored, so the mapped file itself",
    "diffusers,transformer,bfloat16": "converted, with islands that stay mapped",
    "original,text_encoder,bfloat16": "a mapped pickle",
    "original,text_encoder,float32": "converted from a mapped pickle",
}


def filled(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random weights for a module that is on the meta device."""
    generator = torch.Generator().manual_seed(0)
    draw = {name: torch.rand(value.shape, generator=generator) for name, value in module.state_dict().items()}
    return {name: value.to(dtype) for name, value in draw.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A transformer and a text encoder of a few hundred MB, one in each layout; the other parts are not asked for."""
    root = tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        denoiser, text = DiT(CONFIG), TextEncoder(TEXT)
    (root / "diffusers/transformer").mkdir(parents=True)
    (root / "original").mkdir()
    tensors = {DIFFUSERS.to_theirs(name): value for name, value in filled(denoiser, torch.float32).items()}
    save_file(tensors, root / "diffusers/transformer/diffusion_pytorch_model.safetensors")
    (root / "diffusers/transformer/config.json").write_text(json.dumps(CONFIG.to_diffusers()))
    (root / "diffusers/model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    (root / "diffusers/scheduler").mkdir()
    scheduler = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0}
    (root / "diffusers/scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    values = {"model_type": "t2v", "dim": 512, "num_heads": 8, "num_layers": 24, "ffn_dim": 2048}
    values |= {"in_dim": 16, "out_dim": 16, "text_dim": 512, "_class_name": "WanModel"}
    (root / "original/config.json").write_text(json.dumps(values))
    assert kind_of(CONFIG).task == "t2v"
    tensors = {PUBLISHED.to_theirs(name): value for name, value in filled(text, torch.bfloat16).items()}
    torch.save(tensors, root / "original/models_t5_umt5-xxl-enc-bf16.pth")
    return root


def test_peak_memory_is_little_more_than_the_weights(folders):
    cases = [f"{folders}/{case}" for case in CASES]
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, f"{folders}/original", *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(CASES)
    for case, line in zip(CASES, lines):
        size, peak, used = (float(word) for word in line.split())
        print(f"{case}: {size / 1e6:.0f} MB of weights, peak {peak / 1e6:.0f} MB, {peak / size:.3f}")
        assert size > 200e6
        assert used > 0
        assert peak <= 1.15 * size, case
