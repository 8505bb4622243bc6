"""Adapters: nothing at the start, the same as merged, off again to the bit, and seen by every path through a layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from carrara.core.types import TextStates
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.nn import lora
from carrara.nn.attention import Attention
from carrara.nn.layers import MLP, Linear, linear32
from carrara.nn.lora import AdaptedLinear, LowRank

CONFIG = DiTConfig(2, 12, 2, 32, 4, 4, text_dim=16, frequencies=16, image_dim=16)


def network(dtype: torch.dtype = torch.float32) -> DiT:
    made, generator = DiT(CONFIG), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made.to(dtype).eval().requires_grad_(False)


def given(dtype: torch.dtype = torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(1)
    x, states, image = (torch.randn(*s, generator=generator) for s in ((2, 4, 3, 4, 4), (2, 6, 16), (2, 5, 16)))
    t = torch.rand(2, generator=generator, dtype=torch.float64)
    return x.to(dtype), t, TextStates(states.to(dtype), torch.tensor([5, 3]), 9), None, image.to(dtype)


def terms_of(network: DiT, seed: int = 2, rank: int = 3, alpha: float = 6.0, trained: bool = True):
    """Terms for every linear layer of the network, the rank differing between layers."""
    generator = torch.Generator().manual_seed(seed)
    terms = lora.fresh(lora.linear_layers(network), rank, alpha, generator)
    if trained:
        for term in terms.values():
            term.up.data = 0.3 * torch.randn(term.up.shape, generator=generator)
    return terms


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("gradients", [False, True])
def test_a_fresh_adapter_changes_nothing_to_the_bit(gradients):
    model, args = network(), given()
    with torch.set_grad_enabled(gradients):
        before = model(*args)
        lora.attach(model, terms_of(model, trained=False))
        assert len(lora.adapted_layers(model)) == len(lora.linear_layers(model)) > 20
        assert torch.equal(model(*args), before)


@pytest.mark.parametrize("gradients", [False, True])
def test_merged_is_unmerged_and_both_are_the_formula(gradients):
    """The formula: W + alpha / rank up down, put in place of W in a network that has never seen an adapter."""
    model, args = network(), given()
    plain, terms = network(), terms_of(model)
    weights = dict(plain.state_dict())
    for name, term in terms.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + 6.0 / 3 * term.up.detach() @ term.down.detach()
    with torch.set_grad_enabled(gradients):
        lora.attach(model, terms)
        unmerged = model(*args)
        assert relative(unmerged, functional_call(plain, weights, args)) < 1e-6
        assert relative(unmerged, plain(*args)) > 0.1
        lora.merge(model)
        assert not lora.adapted_layers(model)
        assert relative(model(*args), unmerged) < 1e-6


def test_detached_is_the_network_it_was_to_the_bit():
    model, args = network(), given()
    before, names, kinds = model(*args), list(model.state_dict()), [type(m) for m in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    lora.attach(model, terms_of(model))
    assert [name for name in model.state_dict() if ".terms." not in name] == names
    lora.detach(model)
    assert torch.equal(model(*args), before)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_merging_the_opposite_restores_to_rounding():
    model, args = network(), given()
    before = model(*args)
    for strength in (1.0, -1.0):
        terms = terms_of(model)
        for term in terms.values():
            term.strength = strength
        lora.attach(model, terms)
        lora.merge(model)
    assert 0 < relative(model(*args), before) < 1e-5


def test_the_scale_is_alpha_over_rank_times_strength():
    layer = Linear(5, 4)
    down, up, x = torch.randn(2, 5), torch.randn(4, 2), torch.randn(3, 5)
    for alpha, strength in ((2.0, 1.0), (7.0, 1.0), (2.0, 0.25), (2.0, -1.0), (3.0, 0.0)):
        term = LowRank(down, up, alpha)
        term.strength = strength
        adapted = AdaptedLinear(layer)
        adapted.terms.append(term)
        wanted = layer(x) + strength * alpha / 2 * (x @ down.T @ up.T)
        torch.testing.assert_close(adapted(x), wanted)
        assert strength or torch.equal(adapted(x), layer(x))


def test_two_adapters_add_up_and_a_bias_is_scaled_with_its_term():
    layer, x = Linear(5, 4), torch.randn(3, 5)
    first = LowRank(torch.randn(2, 5), torch.randn(4, 2), 4.0, torch.randn(4))
    second = LowRank(torch.randn(3, 5), torch.randn(4, 3), 1.5)
    adapted = AdaptedLinear(layer)
    adapted.terms.extend([first, second])
    wanted = layer(x) + x @ (first.delta() + second.delta()).T + 2 * first.bias
    torch.testing.assert_close(adapted(x), wanted)
    torch.testing.assert_close(adapted.merged()(x), wanted)


def test_packed_layers_and_layers_in_float32_see_the_adapter():
    """Both multiply by weights without calling the layer."""
    model, packed, args = network(), network(), given()
    packed.pack()
    for each in (model, packed):
        lora.attach(each, terms_of(each))
    with torch.no_grad():
        assert relative(packed(*args), model(*args)) < 1e-6
    level = model.level.rise
    x = torch.randn(3, level.in_features)
    torch.testing.assert_close(linear32(level, x), level(x))
    assert not torch.allclose(linear32(level, x), F.linear(x, level.weight, level.bias))


def test_gradients_of_the_terms_are_those_of_the_plain_formula():
    """Through every chain whose derivative is written by hand (`nn/fused.py`): beside the layers as in the weights."""
    model, args = network(), given()
    terms = terms_of(model)
    lora.attach(model, terms)
    target = torch.randn(2, 4, 3, 4, 4)
    parameters = [p for term in terms.values() for p in (term.down, term.up)]
    ours = torch.autograd.grad((model(*args) - target).square().mean(), parameters)
    plain, base = network(), dict(network().state_dict())
    weights = {**base, **{f"{n}.weight": base[f"{n}.weight"] + 2 * t.up @ t.down for n, t in terms.items()}}
    made = functional_call(plain, weights, args)
    theirs = torch.autograd.grad((made - target).square().mean(), parameters)
    for one, other in zip(ours, theirs):
        assert relative(one, other) < 1e-4


def test_gradients_are_finite_differences():
    """Through the attention and the perceptron, which run in float64 to the end."""
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict({"attention": Attention(12, 2), "mlp": MLP(12, 20, 12)}).double().requires_grad_(False)
    terms = {name: term.double() for name, term in terms_of(parts).items()}
    lora.attach(parts, terms)
    x, turns = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(1, 5, 3, 2, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return parts["mlp"](parts["attention"](x, turns)).square().mean()

    for term in terms.values():
        for parameter in (term.down, term.up):
            (slope,) = torch.autograd.grad(loss(), parameter)
            step = 1e-4 * torch.randn_like(parameter)
            with torch.no_grad():
                parameter += step
                above = loss()
                parameter -= 2 * step
                below = loss()
                parameter += step
            torch.testing.assert_close(above - below, 2 * (slope * step).sum(), rtol=1e-3, atol=1e-8)


def test_a_frozen_layer_under_autocast_passes_gradients_on():
    """bfloat16 on a CPU is where the product is oneDNN's and its derivative ours."""
    torch.manual_seed(0)
    layer, x = Linear(32, 16), torch.randn(4, 32)
    wanted = torch.autograd.grad(F.linear(x.requires_grad_(), layer.weight, layer.bias).square().sum(), x)[0]
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(layer(x).float().square().sum(), x)
    assert relative(found, wanted) < 0.02


def test_terms_of_narrow_weights_run_in_the_layers_type():
    model = network()
    terms = terms_of(model)
    exact = network()
    lora.attach(exact, terms_of(exact))
    model.to(torch.bfloat16)
    lora.attach(model, terms)
    x, t, text, _, image = given()
    made = model(x, t, text, None, image)
    assert made.dtype == torch.float32
    assert next(iter(terms.values())).down.dtype == torch.float32
    assert relative(made, exact(*given())) < 0.1


@pytest.mark.parametrize("rank", [0, -1, 17])
def test_ranks_that_no_product_has_are_refused(rank):
    with pytest.raises(ValueError, match=rf"rank={rank}.*is 24 x 16; expected 1 to 16"):
        lora.fresh({"text.rise": torch.nn.Linear(16, 24)}, rank, 1.0, torch.Generator())


def test_what_does_not_fit_changes_nothing():
    model, args = network(), given()
    before, terms = model(*args), terms_of(model)
    terms["head"] = LowRank(torch.randn(2, 7), torch.randn(16, 2), 1.0)
    with pytest.raises(ValueError, match="a term of 16 x 7 for 'head', which is 16 x 24"):
        lora.attach(model, terms)
    with pytest.raises(ValueError, match=r"'blocks\.0\.patches' is no linear layer"):
        lora.attach(model, {"blocks.0.patches": terms["head"]})
    assert not lora.adapted_layers(model)
    assert torch.equal(model(*args), before)
