"""Filling a module: its weights are the mapped file, islands of precision stay wide, and shards are known by number."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from carrara.core.weights import Shard, fill, load_weights, sampled_fingerprint, shard_files


def empty() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def mapped_bytes(name: str) -> int:
    """How many bytes of a file this process has mapped."""
    total = 0
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            if line.rstrip().endswith(name):
                start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
                total += end - start
    return total


def test_weights_of_the_same_type_are_the_mapped_file(tmp_path):
    path = tmp_path / "mapped-weights.safetensors"
    save_file({"weight": torch.randn(512, 512), "bias": torch.zeros(512)}, path)
    with torch.device("meta"):
        module = nn.Linear(512, 512)
    fill(module, [path], Shard)
    assert mapped_bytes(path.name) >= 512 * 512 * 4
    fill(module, [path], Shard, dtype=torch.bfloat16)
    assert mapped_bytes(path.name) == 0  # what was converted holds on to nothing


def test_islands_are_never_narrowed_and_widened_where_asked(tmp_path):
    full = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

    def is_norm(name: str) -> bool:
        return name.startswith("1.")

    for stored, wanted, kept in (
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, None, torch.float32),
    ):
        save_file({k: v.to(stored) for k, v in full.state_dict().items()}, tmp_path / "m.safetensors")
        module = empty()
        load_weights(module, tmp_path, "m", dtype=wanted, keep=is_norm)
        assert module[1].weight.dtype == kept
        assert module[0].weight.dtype == (wanted or stored)


def test_what_is_skipped_is_not_read(tmp_path):
    content = nn.LayerNorm(4).state_dict()
    save_file({**content, "text.w": torch.zeros(1), "scale": torch.zeros(1)}, tmp_path / "m.safetensors")
    module = nn.LayerNorm(4)
    with pytest.raises(ValueError, match=r"unknown tensor 'scale'|unknown tensor 'text\.w'"):
        fill(module, [tmp_path / "m.safetensors"], Shard)
    fill(module, [tmp_path / "m.safetensors"], Shard, skip=lambda name: name in ("text.w", "scale"))


def test_shards_without_an_index_are_known_by_their_numbers(tmp_path):
    content = {"weight": torch.randn(2, 2), "bias": torch.randn(2)}
    for i, (name, value) in enumerate(content.items(), 1):
        save_file({name: value}, tmp_path / f"m-{i:05}-of-00002.safetensors")
    module = nn.Linear(2, 2)
    load_weights(module, tmp_path, "m")
    assert torch.equal(module.weight, content["weight"])
    (tmp_path / "m-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shard m-00001-of-00002\.safetensors is missing; download"):
        shard_files(tmp_path, "m")


def test_a_pointer_of_git_lfs_is_told_from_weights(tmp_path):
    (tmp_path / "m.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load_weights(nn.Linear(2, 2), tmp_path, "m")


def test_a_sampled_fingerprint_tells_sizes_and_contents_apart(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(bytes(range(256)) * 40)
    before = sampled_fingerprint([path], block=64, blocks=4)
    assert sampled_fingerprint([path], block=64, blocks=4) == before
    for at in (0, 256 * 40 - 1):  # the first and the last byte are always read
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        (tmp_path / "other").write_bytes(content)
        assert sampled_fingerprint([tmp_path / "other"], block=64, blocks=4) != before
    (tmp_path / "other").write_bytes(path.read_bytes() * 2)
    assert sampled_fingerprint([tmp_path / "other"], block=64, blocks=4) != before
