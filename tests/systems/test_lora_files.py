"""Adapters on disk: what is written is read to the bit, foreign spellings mean the same, and bad files are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.systems.lora_fixtures import drawn_terms

from carrara.denoisers.dit_weights import DIFFUSERS, WAN
from carrara.nn.lora import LowRank
from carrara.systems.lora import fit, named_terms
from carrara.systems.lora_export import LAYOUTS, write_adapter
from carrara.systems.lora_files import DIFFUSERS_FILE, PEFT_CONFIG, PEFT_FILE, read_adapter

ABOUT = {"base": {"name": "pond", "fingerprint": "abc"}, "words": ["teal"]}


@pytest.fixture(scope="module")
def terms(tiny_system):
    """Ranks, alphas and biases that differ from layer to layer."""
    drawn = drawn_terms(tiny_system)["transformer"]
    for number, (name, term) in enumerate(drawn.items()):
        if number % 3 == 1:
            up, down = torch.cat([term.up, term.up], dim=1), torch.cat([term.down, term.down])
            drawn[name] = LowRank(down.contiguous(), up.contiguous(), 2.5)
    return drawn


def same(ours: dict[str, LowRank], theirs: dict[str, LowRank]) -> bool:
    return set(ours) == set(theirs) and all(
        term.alpha == theirs[name].alpha
        and torch.equal(term.down, theirs[name].down)
        and torch.equal(term.up, theirs[name].up)
        and (term.bias is None) == (theirs[name].bias is None)
        and (term.bias is None or torch.equal(term.bias, theirs[name].bias))
        for name, term in ours.items()
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_to_the_bit(layout, terms, tiny_system, tmp_path):
    write_adapter({"transformer": terms}, tmp_path, ABOUT, layout)
    adapter = read_adapter(tmp_path)
    read = fit(adapter.parts["transformer"], tiny_system.denoiser.config, "here")
    assert same(terms, read)
    assert same(terms, named_terms(adapter)["transformer"])
    assert adapter.about == ABOUT
    assert (adapter.base, adapter.words) == ("abc", ("teal",))
    assert not list(tmp_path.glob("*.partial"))


def test_biases_are_kept_where_there_is_a_name_for_them(tiny_system, tmp_path):
    term = LowRank(torch.randn(2, 24), torch.randn(24, 2), 2.0, torch.randn(24))
    parts = {"transformer": {"blocks.0.self_attention.q": term}}
    write_adapter(parts, tmp_path / "a", {})
    read = fit(read_adapter(tmp_path / "a").parts["transformer"], tiny_system.denoiser.config, "here")
    assert same(parts["transformer"], read)
    with pytest.raises(ValueError, match="has a bias, for which this layout has no name"):
        write_adapter(parts, tmp_path / "b", {}, "wan")


def test_keys_are_those_of_diffusers_and_of_peft(terms, tmp_path):
    write_adapter({"transformer": terms}, tmp_path / "d", {})
    write_adapter({"transformer": terms}, tmp_path / "p", {}, "peft")
    with safe_open(tmp_path / "d" / DIFFUSERS_FILE, framework="pt") as file:
        names, header = set(file.keys()), file.metadata()
    assert "transformer.blocks.0.attn1.to_out.0.lora_A.weight" in names
    assert "transformer.blocks.1.ffn.net.0.proj.lora_B.weight" in names
    config = json.loads(header["lora_adapter_metadata"])
    assert config["transformer.r"] == 2
    assert config["transformer.lora_alpha"] == 3
    assert "blocks.0.attn1.to_q" in config["transformer.target_modules"]
    assert "base_model.model.blocks.0.attn1.to_q.lora_A.weight" in load_file(tmp_path / "p" / PEFT_FILE)
    assert json.loads((tmp_path / "p" / PEFT_CONFIG).read_text())["peft_type"] == "LORA"


SPELLINGS = {
    "ours": lambda name: name,
    "diffusers": DIFFUSERS.to_theirs,
    "wan": WAN.to_theirs,
    "underscores": lambda name: WAN.to_theirs(name).replace(".", "_"),
}


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model.", "diffusion_model.", "lora_unet_"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("ends", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_A.default", "lora_B.default")])
def test_foreign_spellings_mean_the_same(prefix, spelling, ends, terms, tiny_system, tmp_path):
    file, tensors = tmp_path / "it.safetensors", {}
    for name, term in terms.items():
        said = prefix + SPELLINGS[spelling](name)
        tensors |= {f"{said}.{ends[0]}.weight": term.down, f"{said}.{ends[1]}.weight": term.up}
        tensors[f"{said}.alpha"] = torch.tensor(term.alpha)
    save_file(tensors, file)
    for path in (file, tmp_path):  # the file, or the folder with nothing else in it
        adapter = read_adapter(path)
        assert same(terms, fit(adapter.parts["transformer"], tiny_system.denoiser.config, "here"))


def alphas(folder: Path, config: dict | None, rank: int = 4) -> dict[str, float]:
    tensors = {}
    for name in ("blocks.0.attn1.to_q", "blocks.1.attn1.to_q", "proj_out"):
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, 6)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(6, rank)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / PEFT_FILE)
    if config is not None:
        (folder / PEFT_CONFIG).write_text(json.dumps(config))
    return {name: pair.alpha for name, pair in read_adapter(folder).parts["transformer"].items()}


def test_alphas_are_looked_up_as_peft_does(tmp_path):
    q0, q1, out = "blocks.0.attn1.to_q", "blocks.1.attn1.to_q", "proj_out"
    assert alphas(tmp_path / "a", None) == {q0: 4, q1: 4, out: 4}  # nothing said: a scale of 1
    assert alphas(tmp_path / "b", {"lora_alpha": 16}) == {q0: 16, q1: 16, out: 16}
    assert alphas(tmp_path / "c", {"lora_alpha": 16, "alpha_pattern": {"to_q": 2}}) == {q0: 2, q1: 2, out: 16}
    assert alphas(tmp_path / "d", {"lora_alpha": 16, "alpha_pattern": {f"^{q1}": 2}}) == {q0: 16, q1: 2, out: 16}
    assert alphas(tmp_path / "e", {"lora_alpha": 3, "use_rslora": True})[q0] == 3 * 2  # alpha / sqrt(rank) of it


def test_two_experts_are_two_files(terms, tmp_path):
    write_adapter({"transformer": terms, "transformer_2": terms}, tmp_path / "a", {})
    assert set(read_adapter(tmp_path / "a").parts) == {"transformer", "transformer_2"}
    pair = tmp_path / "b"
    pair.mkdir()
    for name in ("high_noise_model", "low_noise_model"):
        shutil.copy(tmp_path / "a" / DIFFUSERS_FILE, pair / f"{name}.safetensors")
    assert set(read_adapter(pair).parts) == {"transformer", "transformer_2"}


def test_the_fingerprint_is_that_of_the_bytes(terms, tmp_path):
    write_adapter({"transformer": terms}, tmp_path / "a", {})
    write_adapter({"transformer": terms}, tmp_path / "b", {})
    write_adapter({"transformer": terms}, tmp_path / "c", {"words": ["teal"]})
    a, b, c = (read_adapter(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def written(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / DIFFUSERS_FILE)
    return folder


GOOD = {
    "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 24),
    "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.ones(24, 2),
}
DOWN, UP = GOOD
BAD = {
    "half a pair": (dict(list(GOOD.items())[:1]), "layer 'blocks.0.attn1.to_q' has no up matrix"),
    "two ranks": ({**GOOD, UP: torch.ones(24, 3)}, "has ranks 2 and 3"),
    "rank 0": (
        {DOWN: torch.ones(0, 24), UP: torch.ones(24, 0)},
        "has ranks 0 and 0; .* at least 1",
    ),
    "nan": (
        {**GOOD, DOWN: torch.full((2, 24), float("nan"))},
        "lora_A.weight' holds values that are not finite",
    ),
    "a convolution": ({k: v[..., None] for k, v in GOOD.items()}, "shape .*; only linear layers are read"),
    "dora": ({**GOOD, "transformer.blocks.0.attn1.to_q.dora_scale": torch.ones(1)}, "DoRA LoRA is not read here"),
    "differences": ({**GOOD, "transformer.blocks.0.norm2.diff": torch.ones(1)}, "whole differences"),
    "whole weights": ({"transformer.proj_out.weight": torch.ones(2, 2)}, r"names that end in \.lora_A\.weight"),
    "text encoder": ({"text_encoder.q.lora_A.weight": torch.ones(2, 2)}, "only transformers are adapted here"),
    "nothing": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tensors_are_refused_by_name(case, tmp_path):
    tensors, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        read_adapter(written(tmp_path / "it", tensors))


def test_unknown_layers_and_other_widths_are_refused(tiny_system, tmp_path):
    config = tiny_system.denoiser.config
    wide = read_adapter(
        written(tmp_path / "a", {k: v.repeat_interleave(2, -1 - i) for i, (k, v) in enumerate(GOOD.items())})
    )
    with pytest.raises(ValueError, match=r"is for 'blocks.0.attn1.to_q' of 48 x 48, this model's is 24 x 24; .*size"):
        fit(wide.parts["transformer"], config, "a")
    deep = read_adapter(written(tmp_path / "b", {k.replace(".0.", ".7.", 1): v for k, v in GOOD.items()}))
    with pytest.raises(
        ValueError, match=r"adapts 'blocks\.7\.attn1\.to_q', which this model does not have; did you mean"
    ):
        fit(deep.parts["transformer"], config, "b")
    odd = read_adapter(written(tmp_path / "c", {k.replace("attn1", "attention"): v for k, v in GOOD.items()}))
    with pytest.raises(ValueError, match="which no model of this family has"):
        named_terms(odd)


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt", "lora.ckpt"])
def test_pickles_are_refused_unread(name, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=r"a pickle, which could run any code; convert it to \.safetensors"):
            read_adapter(path)


def test_missing_damaged_and_ambiguous_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such adapter"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no adapter here; expected pytorch_lora_weights"):
        read_adapter(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        read_adapter(tmp_path)
    save_file(GOOD, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match=r"several files \(x.safetensors, y.safetensors\); name the one to use"):
        read_adapter(tmp_path)
    assert read_adapter(tmp_path / "y.safetensors").parts


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "a IA3 adapter; only LoRA is read"),
        ({"use_dora": True}, "use_dora=True: such adapters are not read"),
        ({"lora_alpha": "much"}, "lora_alpha='much'.* not readable"),
        ({"lora_alpha": 1, "alpha_pattern": {"(": 2}}, "alpha_pattern=.* not readable"),
    ],
)
def test_configurations_that_mean_something_else_are_refused(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        alphas(tmp_path, config)
