"""The transformer is Wan's: same numbers as diffusers, same names and shapes everywhere, both ways."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

from carrara.core.types import TextStates
from carrara.denoisers.dit import (
    WAN_1_3B,
    WAN_14B,
    WAN_FLF2V_14B,
    WAN_I2V_14B,
    WAN_I2V_A14B,
    WAN_TI2V_5B,
    DiT,
    DiTConfig,
)
from carrara.denoisers.dit_weights import DIFFUSERS, WAN

SMALL = {
    "even": DiTConfig(heads=2, head_dim=32, layers=2, ffn_dim=96, in_channels=4, out_channels=4, text_dim=24),
    "odd": DiTConfig(
        heads=3, head_dim=20, layers=3, ffn_dim=50, in_channels=6, out_channels=3, text_dim=16, frequencies=64, eps=1e-5
    ),
    "image": DiTConfig(2, 16, 2, 48, in_channels=9, out_channels=4, text_dim=24, image_dim=20),
    "two images": DiTConfig(2, 16, 2, 48, in_channels=9, out_channels=4, text_dim=24, image_dim=20, image_positions=14),
}
RELEASED = [WAN_1_3B, WAN_14B, WAN_I2V_14B, WAN_FLF2V_14B, WAN_TI2V_5B, WAN_I2V_A14B]


@pytest.fixture(scope="module", params=SMALL)
def pair(request) -> tuple[DiT, WanTransformer3DModel]:
    config = SMALL[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = WanTransformer3DModel.from_config(config.to_diffusers()).eval().requires_grad_(False)
        for parameter in theirs.parameters():  # norms and biases too
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = DiT(config).eval().requires_grad_(False)
    ours.load_state_dict({DIFFUSERS.to_ours(name): value for name, value in theirs.state_dict().items()})
    return ours, theirs


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(config: DiTConfig) -> tuple[torch.Tensor, TextStates, torch.Tensor]:
    """Latents, trimmed text, and the text as the other side wants it: zeros up to 512 rows."""
    lengths = torch.tensor([3, 9])
    states = draw(2, 9, config.text_dim, seed=1) * (torch.arange(9) < lengths[:, None])[..., None]
    padded = torch.cat((states, torch.zeros(2, 503, config.text_dim)), dim=1)
    return draw(2, config.in_channels, 3, 4, 10), TextStates(states, lengths), padded


def images(config: DiTConfig) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """States of the images of two clips, as we and as they want them: two images of a clip are two rows there."""
    if config.image_dim is None:
        return None, None
    states = draw(2, config.image_positions or 7, config.image_dim, seed=2)
    return states, states.reshape(-1, 7, config.image_dim)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_parity_with_a_level_per_sample(pair):
    ours, theirs = pair
    x, text, padded = inputs(ours.config)
    mine, yours = images(ours.config)
    for steps in ([1, 999], [250, 731]):
        steps = torch.tensor(steps)
        want = theirs(x, steps, padded, yours, return_dict=False)[0]
        assert relative(ours(x, steps.double() / 1000, text, image=mine), want) < 1e-5


def test_parity_with_a_level_per_token(pair):
    ours, theirs = pair
    x, text, padded = inputs(ours.config)
    steps = torch.full((2, 30), 620)
    steps[:, :10] = 0
    steps[1, 20:] = 57
    mine, yours = images(ours.config)
    want = theirs(x, steps, padded, yours, return_dict=False)[0]
    assert relative(ours(x, steps.double() / 1000, text, image=mine), want) < 1e-5
    assert relative(ours(x, steps[:, ::10].double() / 1000, text, image=mine), want) < 1e-5


def test_weights_go_back(pair):
    ours, theirs = pair
    with torch.device("meta"):
        again = WanTransformer3DModel.from_config(ours.config.to_diffusers())
    again.load_state_dict({DIFFUSERS.to_theirs(k): v for k, v in ours.state_dict().items()}, assign=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in theirs.state_dict().items())


def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_TI2V_5B, WAN_FLF2V_14B])
def test_names_and_shapes_are_a_bijection_with_diffusers(config):
    with torch.device("meta"):
        ours, theirs = shapes(DiT(config)), shapes(WanTransformer3DModel.from_config(config.to_diffusers()))
    assert {DIFFUSERS.to_theirs(name): shape for name, shape in ours.items()} == theirs
    assert {DIFFUSERS.to_ours(name): shape for name, shape in theirs.items()} == ours


def published_names(config: DiTConfig) -> set[str]:
    """Every tensor of the original checkpoints."""
    both = ("weight", "bias")
    linear = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
    linear += ["time_projection.1", "head.head"]
    linear += [f"img_emb.proj.{number}" for number in (0, 1, 3, 4) if config.image_dim]
    names = {f"{layer}.{part}" for layer in linear for part in both} | {"head.modulation"}
    names |= {"img_emb.emb_pos"} if config.image_positions else set()
    for index in range(config.layers):
        block = f"blocks.{index}"
        names.add(f"{block}.modulation")
        names |= {f"{block}.{layer}.{part}" for layer in ("norm3", "ffn.0", "ffn.2") for part in both}
        for attention in ("self_attn", "cross_attn"):
            names |= {f"{block}.{attention}.{layer}.{part}" for layer in "qkvo" for part in both}
            names |= {f"{block}.{attention}.norm_{layer}.weight" for layer in "qk"}
        if config.image_dim:
            names |= {f"{block}.cross_attn.{layer}.{part}" for layer in ("k_img", "v_img") for part in both}
            names.add(f"{block}.cross_attn.norm_k_img.weight")
    return names


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_I2V_14B, WAN_FLF2V_14B])
def test_names_are_a_bijection_with_the_published_ones(config):
    with torch.device("meta"):
        ours = set(DiT(config).state_dict())
    assert {WAN.to_theirs(name) for name in ours} == published_names(config)
    assert {WAN.to_ours(name) for name in published_names(config)} == ours


@pytest.mark.parametrize(("config", "billions"), [(WAN_1_3B, 1.4190), (WAN_14B, 14.2885), (WAN_TI2V_5B, 4.9998)])
def test_public_sizes_have_the_public_number_of_parameters(config, billions):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in DiT(config).parameters())
    assert count / 1e9 == pytest.approx(billions, abs=1e-4)


@pytest.mark.parametrize("config", [*SMALL.values(), *RELEASED])
def test_configurations_survive_the_trip(config):
    assert DiTConfig.from_diffusers(config.to_diffusers()) == config


def test_foreign_configurations_are_refused_by_name():
    good = WAN_1_3B.to_diffusers()
    with pytest.raises(ValueError, match="no setting 'num_layer'; did you mean num_layers"):
        DiTConfig.from_diffusers({**good, "num_layer": 3})
    with pytest.raises(ValueError, match="added_kv_proj_dim=None is not supported beside image_dim=1280"):
        DiTConfig.from_diffusers({**good, "image_dim": 1280})
    with pytest.raises(ValueError, match="image_positions=514: there are none without an image_dim"):
        DiTConfig.from_diffusers({**good, "pos_embed_seq_len": 514})
    assert DiTConfig.from_diffusers({**good, "out_channels": None}).out_channels == good["in_channels"]
    good.pop("ffn_dim")
    with pytest.raises(ValueError, match="'ffn_dim' is missing"):
        DiTConfig.from_diffusers(good)
    with pytest.raises(ValueError, match="layers=0"):
        DiTConfig(layers=0)
