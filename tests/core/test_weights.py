"""Weights on disk: names there and back, nothing unfilled or unknown, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from carrara.core import weights
from carrara.core.weights import NameTable, fingerprint, load_weights, save_weights, shard_files

TABLE = NameTable([("blocks.{}", "layers.{}"), ("blocks.{}.norm", "layers.{}.ln_1"), ("head", "proj_out")])
STEM = "model"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.head = nn.Linear(3, 2, bias=False)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(4), persistent=False)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def folder(module, tmp_path):
    save_weights(module.state_dict(), tmp_path / "model.safetensors", TABLE)
    return tmp_path


def change(folder, **tensors):
    """Add tensors to the file, or take those away that are None; `__` stands for a dot."""
    path = folder / "model.safetensors"
    content = load_file(path) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in content.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("blocks.12.weight", "layers.12.weight"),  # the number is carried
        ("blocks.3.norm.weight", "layers.3.ln_1.weight"),  # the longest prefix wins
        ("blocks.3.normal.weight", "layers.3.normal.weight"),  # and ends at a dot
        ("head", "proj_out"),  # a whole name
        ("header.weight", "header.weight"),  # what no row names stays
        ("blocks.x.weight", "blocks.x.weight"),  # a number is digits
    ],
)
def test_names_there_and_back(ours, theirs):
    assert TABLE.to_theirs(ours) == theirs
    assert TABLE.to_ours(theirs) == ours


@given(st.integers(0, 10**6), st.integers(0, 99), st.sampled_from(["a.{}.b.{}", "a.{}.c"]), st.text("xyz", min_size=1))
def test_numbers_and_rests_survive(first, second, row, rest):
    table = NameTable([("a.{}.b.{}", "p{}.q.{}.r"), ("a.{}.c", "p{}.s")])
    name = f"{row.replace('{}', str(first), 1).replace('{}', str(second))}.{rest}"
    assert table.to_ours(table.to_theirs(name)) == name
    assert str(first) in table.to_theirs(name)


def test_a_module_comes_back_through_foreign_names(module, folder):
    assert "proj_out.weight" in load_file(folder / "model.safetensors")
    with torch.device("meta"):
        again = Small()
    load_weights(again, folder, STEM, TABLE)
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    load_weights(again, folder, STEM, TABLE, torch.bfloat16)
    assert again.head.weight.dtype == torch.bfloat16


def test_shards_make_one_module(module, folder):
    content = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(content))}
    for file in set(parts.values()):
        save_file({name: content[name] for name in content if parts[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert [path.name for path in shard_files(folder, STEM)] == ["model-0.safetensors", "model-1.safetensors"]
    again = Small()
    load_weights(again, folder, STEM, TABLE)
    assert torch.equal(again.blocks[1].bias, module.blocks[1].bias)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shard model-1\.safetensors is missing; download"):
        load_weights(again, folder, STEM, TABLE)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", ".."])
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
    (tmp_path / "inner").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "inner/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        shard_files(tmp_path / "inner", STEM)


def test_no_weights_at_all_is_told_with_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"expected model\.safetensors or model\.safetensors\.index\.json"):
        shard_files(tmp_path, STEM)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"layers__1__bias": None}, "tensor 'layers.1.bias' is missing (1 in all)"),
        ({"proj_out__weight": None, "mean": None}, "(2 in all)"),
        ({"proj_out__bias": torch.zeros(2)}, "unknown tensor 'proj_out.bias'; did you mean proj_out.weight"),
        ({"cache": torch.zeros(4)}, "unknown tensor 'cache'"),
        (
            {"layers__0__weight": torch.zeros(3, 4)},
            "tensor 'layers.0.weight' has shape (3, 4), the configuration wants",
        ),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(folder, tensors, said):
    change(folder, **tensors)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load_weights(Small(), folder, STEM, TABLE)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_file_cut_short_is_damaged(folder, share):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or not a safetensors file .*copy it again"):
        load_weights(Small(), folder, STEM, TABLE)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(module, folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def fails(_tensors, path, **_metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "save_file", fails)
    with pytest.raises(KeyboardInterrupt):
        save_weights(module.state_dict(), folder / "model.safetensors")
    assert os.listdir(folder) == ["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_only_floats_change_precision(tmp_path):
    tensors = {"w": torch.ones(2, 2).T, "steps": torch.tensor([2**40])}
    save_weights(tensors, tmp_path / "new/x.safetensors", dtype=torch.bfloat16)
    back = load_file(tmp_path / "new/x.safetensors")
    assert back["w"].dtype == torch.bfloat16
    assert back["steps"].item() == 2**40


def test_a_fingerprint_is_of_contents_in_order(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert fingerprint([a, b]) == fingerprint([c, b]) != fingerprint([b, a])
    assert fingerprint([a]) == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
