"""The same adapter in diffusers and PEFT: theirs read here, ours read there, and the same numbers come out."""

from __future__ import annotations

import pytest
import torch
from tests.systems.lora_fixtures import drawn_terms
from tests.systems.wan_fixtures import KINDS, carrara_system, random_pipeline

from carrara.systems.latent import LatentVideo
from carrara.systems.lora import apply, denoisers
from carrara.systems.lora_export import write_adapter
from carrara.systems.lora_files import read_adapter

pytest.importorskip("peft", reason="diffusers loads adapters through peft")
pytestmark = pytest.mark.filterwarnings("ignore")
MODULES = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "proj_out", "time_proj"]


def asked(config) -> dict:
    """What diffusers' transformer is called with."""
    generator = torch.Generator().manual_seed(1)
    given = {
        "hidden_states": torch.randn(1, config.in_channels, 2, 4, 4, generator=generator),
        "timestep": torch.tensor([417]),
        "encoder_hidden_states": torch.randn(1, 512, config.text_dim, generator=generator),
    }
    given["encoder_hidden_states"][:, 12:] = 0  # as pipelines pad; what lies before the last 512 is an image's
    if config.image_dim is not None:
        given["encoder_hidden_states_image"] = torch.randn(1, 5, config.image_dim, generator=generator)
    return given


@torch.no_grad()
def theirs(transformer) -> torch.Tensor:
    return transformer(**asked(transformer.config), return_dict=False)[0]


@torch.no_grad()
def ours(denoiser) -> torch.Tensor:
    from carrara.core.types import TextStates

    given = asked(denoiser.config)
    text = given["encoder_hidden_states"]
    told = given["timestep"].double() / 1000
    image = given.get("encoder_hidden_states_image")
    return denoiser(given["hidden_states"], told, TextStates(text[:, :12], torch.tensor([12]), 512), None, image)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("kind", ["t2v", "i2v", "t2v-a14b"])
@pytest.mark.parametrize("layout", ["diffusers", "wan"])
def test_diffusers_loads_what_is_written_here(kind, layout, tmp_path):
    pipeline = random_pipeline(kind)
    system = carrara_system(pipeline)
    targets = (
        "self_attention.*",
        "cross_attention.*",
        "mlp.*",
        *(("head", "level.*") if layout == "diffusers" else ()),
    )
    write_adapter(drawn_terms(system, targets), tmp_path, {}, layout)
    before = theirs(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path)
    if KINDS[kind].boundary:
        pipeline.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
    apply(system, read_adapter(tmp_path))
    for part, denoiser in denoisers(system).items():
        assert close(ours(denoiser), theirs(getattr(pipeline, part))), part
    assert not close(theirs(pipeline.transformer), before)


def test_peft_loads_what_is_written_here_and_the_other_way(tmp_path):
    import peft

    pipeline = random_pipeline("t2v")
    system = carrara_system(pipeline)
    write_adapter(drawn_terms(system), tmp_path / "ours", {}, "peft")
    apply(system, read_adapter(tmp_path / "ours"))
    adapted = peft.PeftModel.from_pretrained(pipeline.transformer, tmp_path / "ours")
    assert close(ours(system.denoiser), theirs(adapted.base_model.model))

    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=MODULES,
        rank_pattern={"ffn.net.2": 2},
        alpha_pattern={"to_v": 1.5},
        lora_bias=True,
    )
    for rslora in (False, True):
        pipeline = random_pipeline("t2v")
        config.use_rslora = rslora
        made = peft.get_peft_model(pipeline.transformer, config)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_" in name:
                    parameter.copy_(
                        0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                    )
        made.save_pretrained(tmp_path / f"theirs-{rslora}")
        system: LatentVideo = carrara_system(random_pipeline("t2v"))
        before = ours(system.denoiser)
        apply(system, read_adapter(tmp_path / f"theirs-{rslora}"))
        assert close(ours(system.denoiser), theirs(made.base_model.model))
        assert not close(ours(system.denoiser), before)


def test_what_diffusers_saves_is_read_here(tmp_path):
    from diffusers import WanPipeline
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = random_pipeline("t2v")
    config = LoraConfig(r=2, lora_alpha=6, target_modules=MODULES, init_lora_weights=False)
    pipeline.transformer.add_adapter(config)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.transformer))
    values = {
        k: v for k, v in config.to_dict().items() if k in ("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias")
    }
    WanPipeline.save_lora_weights(tmp_path / "said", layers, transformer_lora_adapter_metadata=values)
    system = carrara_system(random_pipeline("t2v"))
    apply(system, read_adapter(tmp_path / "said"))
    assert close(ours(system.denoiser), theirs(pipeline.transformer))

    WanPipeline.save_lora_weights(tmp_path / "silent", layers)  # no alpha is said: both take the rank
    system, again = carrara_system(random_pipeline("t2v")), random_pipeline("t2v")
    apply(system, read_adapter(tmp_path / "silent"))
    again.load_lora_weights(tmp_path / "silent")
    assert close(ours(system.denoiser), theirs(again.transformer))
    assert not close(ours(system.denoiser), theirs(pipeline.transformer))
