"""Offloading changes where weights are and nothing else: the same bits, two blocks at a time."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import random_system
from tests.systems.foreign import write_diffusers, write_original

from carrara.core.types import TextStates, VideoShape
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS
from carrara.denoisers.first_block import FirstBlock
from carrara.generation.command import generate
from carrara.generation.loading import check_room
from carrara.systems.folder import recognise
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.offload import OffloadedBlocks, StagedTextEncoder, offload
from carrara.systems.parts import ModelFolder

SHAPE = VideoShape(5, 32, 32)
SAMPLING = Sampling(steps=2, guidance=3.0)


def network(seed: int = 0) -> DiT:
    made = DiT(DiTConfig(2, 12, 5, 32, 4, 4, text_dim=16, frequencies=16))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made.eval().requires_grad_(False)


def given(seed: int) -> tuple[torch.Tensor, torch.Tensor, TextStates]:
    generator = torch.Generator().manual_seed(seed)
    x, states = (torch.randn(*shape, generator=generator) for shape in ((1, 4, 3, 4, 4), (1, 6, 16)))
    return x, torch.rand(1, generator=generator, dtype=torch.float64), TextStates(states, torch.tensor([5]), 9)


def test_a_pass_is_the_same_to_the_bit_and_again_for_the_next_step():
    whole, offloaded = network(), offload(network(), "cpu")
    with torch.inference_mode():
        for seed in range(3):
            assert torch.equal(whole(*given(seed)), offloaded(*given(seed)))


def test_skipping_most_blocks_is_the_same_to_the_bit():
    whole, offloaded = FirstBlock(network(), 0.5), FirstBlock(offload(network(), "cpu"), 0.5)
    x, t, text = given(0)
    with torch.inference_mode():
        for step in range(4):
            args = (x * (1 - 0.01 * step), t, text)
            assert torch.equal(whole(*args), offloaded(*args))
    assert whole.reused == offloaded.reused > 0


@pytest.mark.parametrize("kind", ["t2v", "i2v", "t2v-experts"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_from_a_folder_it_holds_what_loading_would_have_made(tmp_path, kind, dtype, write):
    write(tmp_path, kind)
    found = recognise(tmp_path)
    for part in ("transformer", "transformer_2"):
        if part in found.networks:
            whole, offloaded = found.load(part, dtype), found.load_offloaded(part, dtype)
            assert len(offloaded.blocks) == len(whole.blocks)
            for one, other in zip(whole.blocks, offloaded.blocks):
                assert_same(one.state_dict(), other.state_dict())
            outside = {name: value for name, value in whole.state_dict().items() if not name.startswith("blocks.")}
            assert_same(outside, dict(offloaded.named_parameters()))


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        assert torch.equal(value, other[name]), name


def test_a_clip_is_the_same_to_the_bit_and_the_text_encoder_is_gone_while_it_is_denoised(tmp_path):
    write_diffusers(tmp_path, "t2v-experts")
    whole, lean = LatentVideo.load(tmp_path), LatentVideo.load(tmp_path, staged=True, offload=True)
    assert isinstance(lean.text_encoder, StagedTextEncoder)
    assert isinstance(lean.denoiser.blocks, OffloadedBlocks)
    there = []
    for prompt in ("two cats", "a red ball"):  # the second one loads it again
        args = ([prompt], [3], SHAPE, SAMPLING, "green")
        made = lean.sample(*args, progress=lambda done, total: there.append(lean.text_encoder.loaded is not None))
        assert torch.equal(whole.sample(*args), made)
    assert there
    assert not any(there)


def test_no_block_is_held_between_two_passes():
    offloaded = offload(network(), "cpu")
    held = []
    blocks = offloaded.blocks
    assert isinstance(blocks, OffloadedBlocks)
    load = blocks._load

    def watched(index):
        block = load(index)
        held.append(weakref.ref(block))
        return block

    blocks._load = watched  # type: ignore[method-assign]
    with torch.inference_mode():
        offloaded(*given(0))
    gc.collect()
    assert len(held) == 2 * 5  # the text's keys, and the pass
    assert all(block() is None for block in held)


def test_what_is_offloaded_is_not_written(tmp_path):
    write_diffusers(tmp_path / "model", "t2v")
    lean = LatentVideo.load(tmp_path / "model", offload=True)
    with pytest.raises(ValueError, match="offloaded"):
        lean.save(tmp_path / "copy")
    assert not (tmp_path / "copy/model_index.json").exists()


def test_a_file_that_vanishes_is_an_error_of_the_pass(tmp_path):
    write_diffusers(tmp_path, "t2v")
    lean = recognise(tmp_path).load_offloaded("transformer")
    for path in (tmp_path / "transformer").glob("*.safetensors"):
        path.unlink()
    with pytest.raises((ValueError, OSError), match="safetensors"):
        lean.blocks[0]


CONFIG = DiTConfig(8, 64, 24, 2048, in_channels=4, out_channels=4, text_dim=64)
MEASURE = """
import sys, torch
from pathlib import Path
from carrara.core.types import TextStates
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.denoisers.dit_weights import DIFFUSERS, is_island
from carrara.systems.parts import Network
import carrara.systems.folder

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

config = DiTConfig(8, 64, 24, 2048, in_channels=4, out_channels=4, text_dim=64)
network = Network(lambda: DiT(config), lambda: [Path(sys.argv[1])], table=lambda _: DIFFUSERS, keep=is_island)
text = TextStates(torch.zeros(1, 4, 64), torch.tensor([4]), 8)
with torch.inference_mode():
    warm = DiT(DiTConfig(8, 64, 1, 2048, in_channels=4, out_channels=4, text_dim=64)).to(torch.bfloat16)
    network.check()
    warm(torch.zeros(1, 4, 1, 4, 4), torch.zeros(1), text)
    before = status("VmRSS")
    lean = carrara.systems.offload.load_offloaded(network, torch.bfloat16)
    for _ in range(2):
        lean(torch.zeros(1, 4, 1, 4, 4), torch.zeros(1), text)
print(status("VmHWM") - before)
"""


def test_memory_is_that_of_a_few_blocks(tmp_path):
    """Of everything, mapped pages as well: 24 blocks in float32 on disk run in bfloat16."""
    with torch.device("meta"):
        empty = DiT(CONFIG)
    generator = torch.Generator().manual_seed(0)
    values = {name: 0.02 * torch.randn(value.shape, generator=generator) for name, value in empty.state_dict().items()}
    save_file({DIFFUSERS.to_theirs(name): value for name, value in values.items()}, tmp_path / "weights.safetensors")
    block = 2 * sum(value.numel() for value in empty.blocks[0].parameters())  # bytes in bfloat16
    rest = 4 * sum(value.numel() for name, value in empty.named_parameters() if not name.startswith("blocks."))
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path / "weights.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout)
    print(f"24 blocks of {block / 1e6:.1f} MB: peak {peak / 1e6:.1f} MB, outside of blocks {rest / 1e6:.1f}")
    assert peak < rest + 7 * block < 24 * block / 2


def test_the_command_makes_the_same_clip_offloaded(small_folder, tmp_path):
    files = [tmp_path / name for name in ("whole.mp4", "lean.mp4")]
    for file, more in zip(files, ([], ["--offload"])):
        asked = ["a red ball", "--model", str(small_folder), "--seed", "1", "-o", str(file), *more]
        assert generate(asked) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_does_not_fit_whole_is_told_to_offload(tmp_path):
    found = recognise_large(tmp_path)
    whole = found.converted(torch.bfloat16)
    with pytest.raises(ValueError, match="with --offload it runs"):
        check_room(tmp_path, torch.bfloat16, available=whole)
    check_room(tmp_path, torch.bfloat16, available=whole, offload=True)
    with pytest.raises(ValueError, match="free some, or run a smaller model"):
        check_room(tmp_path, torch.bfloat16, available=1000, offload=True)


def recognise_large(folder: Path) -> ModelFolder:
    """A model whose transformer is deep and is most of it."""
    system = random_system()
    system.denoiser = DiT(DiTConfig(4, 32, 16, 512, 8, 8, text_dim=32, frequencies=16))
    system.save(folder, torch.float32)
    return recognise(folder)
