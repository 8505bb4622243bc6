"""Adapters on whole models: which layers, on and off, offloaded, with two experts, merged into a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.systems.lora_fixtures import drawn_terms
from tests.systems.wan_fixtures import KINDS, carrara_system, random_pipeline

from carrara.core.types import VideoShape
from carrara.denoisers.dit import WAN_I2V_14B, DiTConfig
from carrara.nn import lora
from carrara.systems.latent import LatentVideo, Sampling
from carrara.systems.lora import TARGETS, Asked, apply, attach, choose_layers, detach, fresh_terms, layers_of
from carrara.systems.lora_export import write_adapter
from carrara.systems.lora_files import read_adapter
from carrara.systems.lora_merge import merge_folder

PROMPT, SHAPE, SAMPLING = "a red ball bounces", VideoShape(5, 64, 64), Sampling(steps=2, guidance=3.0)


def drawn(system: LatentVideo) -> torch.Tensor:
    return system.sample([PROMPT], [3], SHAPE, SAMPLING)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def adapter(small_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(drawn_terms(LatentVideo.load(small_folder)), folder, {"words": ["teal"]})
    return folder


def test_any_spelling_names_the_same_layers():
    config = DiTConfig(2, 12, 3, 32, 4, 4, text_dim=16, frequencies=16, image_dim=16)
    both = {f"blocks.{i}.{a}.q" for i in range(3) for a in ("self_attention", "cross_attention")}
    for target in ("q", "to_q", "self_attention.q cross_attention.q", "attn1.to_q attn2.to_q", "*_attn.q"):
        assert set(choose_layers(config, target.split())) == both, target
    assert set(choose_layers(config, ["blocks.1.mlp.*"])) == {"blocks.1.mlp.rise", "blocks.1.mlp.fall"}
    assert set(choose_layers(config, ["ffn.net.0.proj"])) == {f"blocks.{i}.mlp.rise" for i in range(3)}
    assert set(choose_layers(config, ["add_k_proj"])) == {f"blocks.{i}.cross_attention.k_image" for i in range(3)}
    assert set(choose_layers(config, ["*"])) == set(layers_of(config))
    assert len(choose_layers(config, TARGETS)) == 3 * (4 + 6 + 2)
    assert len(choose_layers(WAN_I2V_14B, TARGETS)) == 40 * 12  # two more in every block than a text-to-video model


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("to_w", "did you mean .*to_q"),
        ("self_atention.q", "did you mean self_attention.q"),
        ("everything", "known: cross_attention.k,"),
    ],
)
def test_a_pattern_that_means_nothing_names_the_nearest(target, said):
    with pytest.raises(ValueError, match=f"no layer is called '{target}'; {said}"):
        choose_layers(DiTConfig(2, 12, 2, 32, 4, 4, text_dim=16, frequencies=16), [target])


def test_a_fresh_adapter_makes_the_same_bits_and_a_detached_one_too(small_folder, adapter):
    system = LatentVideo.load(small_folder)
    before = drawn(system)
    attach(system, fresh_terms(system, 4, 4.0, ["*"], torch.Generator().manual_seed(0)))
    assert torch.equal(drawn(system), before)
    apply(system, read_adapter(adapter), 0.7)
    assert system.unknown_words("a Teal frog") == []
    assert relative(drawn(system), before) > 0.01
    detach(system)
    assert torch.equal(drawn(system), before)
    assert system.unknown_words("a teal frog") == ["teal"]


def test_strength_scales_and_adapters_add_up(small_folder, adapter):
    """Twice at 0.5 is once at 1; 1 and -1 are nothing; 0 is nothing to the bit."""
    read, made = read_adapter(adapter), {}
    for name, strengths in {
        "none": (),
        "zero": (0.0,),
        "one": (1.0,),
        "halves": (0.5, 0.5),
        "both": (1.0, -1.0),
    }.items():
        system = LatentVideo.load(small_folder)
        for strength in strengths:
            apply(system, read, strength)
        made[name] = drawn(system)
    assert torch.equal(made["none"], made["zero"])
    assert relative(made["halves"], made["one"]) < 1e-4
    assert relative(made["both"], made["none"]) < 1e-4
    assert relative(made["one"], made["none"]) > 0.01


def test_an_offloaded_model_makes_the_same_bits(small_folder, adapter):
    whole, offloaded = LatentVideo.load(small_folder), LatentVideo.load(small_folder, offload=True)
    for system in (whole, offloaded):
        apply(system, read_adapter(adapter), 0.8)
    assert torch.equal(drawn(whole), drawn(offloaded))
    for system in (whole, offloaded):
        detach(system)
    assert torch.equal(drawn(whole), drawn(offloaded))


def test_every_kind_of_wan_takes_adapters():
    """Image projections and both experts among them; each changes what its model computes."""
    for kind in ("i2v", "t2v-a14b"):
        system = carrara_system(random_pipeline(kind))
        terms = drawn_terms(system, ("*",))
        assert set(terms) == ({"transformer", "transformer_2"} if KINDS[kind].boundary else {"transformer"})
        assert ("blocks.0.cross_attention.v_image" in terms["transformer"]) == (kind == "i2v")
        attach(system, terms)
        for part in (system.denoiser, system.low_denoiser):
            assert part is None or len(lora.adapted_layers(part)) == len(terms["transformer"])


def test_an_adapter_of_two_experts_does_not_fit_one(small_folder, tmp_path):
    system = LatentVideo.load(small_folder)
    terms = drawn_terms(system)["transformer"]
    write_adapter({"transformer": terms, "transformer_2": terms}, tmp_path, {})
    with pytest.raises(ValueError, match="adapts transformer_2 too, and this model has transformer only"):
        apply(system, read_adapter(tmp_path))
    assert not lora.adapted_layers(system.denoiser)


def test_a_model_with_adapters_on_it_is_not_written(small_folder, adapter, tmp_path):
    system = LatentVideo.load(small_folder)
    apply(system, read_adapter(adapter))
    with pytest.raises(ValueError, match="has adapters on it; merge them"):
        system.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    lora.merge(system.denoiser)
    system.save(tmp_path / "model")


def test_a_merged_folder_makes_what_the_adapter_makes(small_system, adapter, tmp_path):
    """From a folder in float32, to rounding; everything but the transformer is the same file."""
    base = tmp_path / "base"
    small_system.save(base, torch.float32)
    (base / "README.md").write_text("the base's card")
    merge_folder(base, [Asked(str(adapter), 0.5), Asked(str(adapter), 0.25)], tmp_path / "merged")
    adapted = LatentVideo.load(base)
    apply(adapted, read_adapter(adapter), 0.75)
    assert relative(drawn(LatentVideo.load(tmp_path / "merged")), drawn(adapted)) < 1e-4
    assert relative(drawn(adapted), drawn(small_system)) > 0.01
    weights = "transformer/diffusion_pytorch_model.safetensors"
    for file in (path for path in base.rglob("*") if path.is_file()):
        name = "README.base.md" if file.name == "README.md" else str(file.relative_to(base))
        assert ((tmp_path / "merged" / name).read_bytes() == file.read_bytes()) == (name != weights), name
    mine, theirs = load_file(tmp_path / "merged" / weights), load_file(base / weights)
    assert {name: value.dtype for name, value in mine.items()} == {name: value.dtype for name, value in theirs.items()}
    card = (tmp_path / "merged/README.md").read_text()
    assert read_adapter(adapter).fingerprint in card
    assert "| 0.25 |" in card
    assert "taught: teal" in card
    assert LatentVideo.load(tmp_path / "merged").fingerprint != small_system.fingerprint


def test_what_cannot_be_merged_leaves_nothing_behind(small_folder, tiny_system, adapter, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_folder, base)
    tiny_system.save(tmp_path / "other")
    cases = {
        "belongs to a model of another size": (tmp_path / "other", [Asked(str(adapter))], tmp_path / "x"),
        "no adapter to merge": (base, [], tmp_path / "x"),
        "is there already": (base, [Asked(str(adapter))], base),
        "no such adapter": (base, [Asked(str(tmp_path / "nowhere"))], tmp_path / "x"),
    }
    for message, (model, asked, output) in cases.items():
        with pytest.raises(ValueError, match=message):
            merge_folder(model, asked, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "other"]


def test_a_path_and_its_weight_are_told_apart(tmp_path):
    assert Asked.parse("runs/a") == Asked("runs/a", 1.0)
    assert Asked.parse("runs/a:0.8") == Asked("runs/a", 0.8)
    assert Asked.parse("runs/a:-1") == Asked("runs/a", -1.0)
    (tmp_path / "b:2").mkdir()
    assert Asked.parse(f"{tmp_path}/b:2") == Asked(f"{tmp_path}/b:2", 1.0)
    assert Asked.parse(f"{tmp_path}/b:2:3") == Asked(f"{tmp_path}/b:2", 3.0)
    for wrong in ("runs/a:much", "runs/a:", "runs/a:nan", "runs/a:inf"):
        with pytest.raises(ValueError, match="weight"):
            Asked.parse(wrong)
