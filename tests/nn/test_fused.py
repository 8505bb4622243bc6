"""Laws of the written-out derivatives: each chain equals its plain formula, and its gradient the finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.nn import fused, products
from carrara.nn.layers import MLP, Linear
from carrara.nn.lora import attach, fresh, linear_layers, merge
from carrara.nn.positions import grid_positions, rotate, rotations

EPS = 1e-6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turns(n: int, width: int) -> Tensor:
    return rotations(grid_positions(torch.arange(float(n))[None], 1, 1), width).double()


def plain_heads(x: Tensor, weight: Tensor, turned: bool) -> Tensor:
    normed = (x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight).unflatten(-1, (2, -1))
    if turned:
        (real, imaginary), (cos, sin) = (
            normed.unflatten(-1, (-1, 2)).unbind(-1),
            turns(3, 6)[..., None, :, :].unbind(-1),
        )
        normed = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2)
    return normed.transpose(1, 2)


def plain_attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    scores = torch.einsum("bhnc,bhmc->bhnm", q, k)
    return torch.einsum("bhnm,bhmc->bhnc", (scores if bias is None else scores + bias).softmax(-1), v)


BIAS = torch.tensor([0, -torch.inf, 0.7, 0]).double().view(1, 1, 1, 4)

# name: (the chain, its plain formula, shapes of the inputs)
CHAINS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "gelu": (products.gelu, lambda x: F.gelu(x, approximate="tanh"), [(3, 7)]),
    "norm, a level per clip": (
        lambda x, shift, scale: fused.modulated_norm(x, shift, scale, EPS, x.dtype),
        lambda x, shift, scale: F.layer_norm(x, (6,), eps=EPS) * (1 + scale) + shift,
        [(2, 1, 3, 6), (2, 1, 1, 6), (2, 1, 1, 6)],
    ),
    "norm, a level per token": (
        lambda x, shift, scale: fused.modulated_norm(x, shift, scale, EPS, x.dtype),
        lambda x, shift, scale: F.layer_norm(x, (6,), eps=EPS) * (1 + scale) + shift,
        [(2, 3, 1, 6), (2, 3, 1, 6), (2, 3, 1, 6)],
    ),
    "gated sum": (fused.gated_sum, lambda x, h, gate: x + gate * h, [(2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 1, 4)]),
    "sum": (fused.gated_sum, lambda x, h: x + h, [(2, 3), (2, 3)]),
    "heads": (
        lambda x, weight: fused.normed_heads(x, weight, None, 2, EPS, x.dtype),
        lambda x, weight: plain_heads(x, weight, False),
        [(2, 3, 12), (12,)],
    ),
    "turned heads": (
        lambda x, weight: fused.normed_heads(x, weight, turns(3, 6), 2, EPS, x.dtype),
        lambda x, weight: plain_heads(x, weight, True),
        [(2, 3, 12), (12,)],
    ),
    "attention": (fused.attend, plain_attend, [(2, 2, 3, 5), (2, 2, 4, 5), (2, 2, 4, 5)]),
    "attention with a bias": (
        lambda q, k, v: fused.attend(q, k, v, BIAS),
        lambda q, k, v: plain_attend(q, k, v, BIAS),
        [(2, 2, 3, 5), (2, 2, 4, 5), (2, 2, 4, 5)],
    ),
}
every_chain = pytest.mark.parametrize("name", CHAINS)


def inputs(name: str) -> list[Tensor]:
    return [draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(CHAINS[name][2])]


@every_chain
def test_a_chain_is_its_formula_and_leaves_its_inputs_alone(name):
    chain, plain, _ = CHAINS[name]
    given = inputs(name)
    before = [x.detach().clone() for x in given]
    made = chain(*given)
    torch.testing.assert_close(made, plain(*given), rtol=1e-12, atol=1e-12)
    made.square().sum().backward()
    assert all(torch.equal(x, past) for x, past in zip(given, before))
    with torch.no_grad():
        torch.testing.assert_close(chain(*given), made, rtol=1e-6, atol=1e-6)


@every_chain
def test_the_gradient_of_a_chain_is_its_finite_difference(name):
    assert torch.autograd.gradcheck(CHAINS[name][0], inputs(name))


@every_chain
def test_in_bfloat16_results_and_gradients_are_within_its_rounding(name):
    """All inputs are rounded alike; what is compared is what the chain adds to that."""
    chain, plain, _ = CHAINS[name]
    rounded = [x.detach().bfloat16() for x in inputs(name)]
    results = []
    for function, dtype in ((chain, torch.bfloat16), (plain, torch.float64)):
        given = [x.to(dtype).requires_grad_() for x in rounded]
        made = function(*given)
        assert made.dtype == dtype
        gradients = torch.autograd.grad(made, given, torch.ones_like(made))
        results.append([made, *gradients])
    for made, exact in zip(*results):
        assert (made.double() - exact).norm() <= 0.01 * exact.norm() + 0.01, name


def test_gelu_is_the_same_across_the_borders_of_its_chunks(monkeypatch):
    x = draw(50).requires_grad_()
    whole = products.gelu(x)
    monkeypatch.setattr(products, "CHUNK", 7)
    parts = products.gelu(x)
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=1e-14)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (whole, parts)]
    torch.testing.assert_close(*slopes, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ["heads", "turned heads", "attention", "attention with a bias"])
def test_a_chain_and_its_gradient_are_the_same_across_the_borders_of_its_pieces(name, monkeypatch):
    results = []
    for size in (fused.ROWS, 1):
        monkeypatch.setattr(fused, "ROWS", size)
        monkeypatch.setattr(fused, "SCORES", size)
        given = inputs(name)
        made = CHAINS[name][0](*given)
        results.append([made, *torch.autograd.grad(made.square().sum(), given)])
    for whole, pieces in zip(*results):
        torch.testing.assert_close(pieces, whole, rtol=1e-13, atol=1e-13)


def test_gelu_of_far_values_is_finite():
    x = torch.tensor([-1e4, -30, 0, 30, 1e4], requires_grad=True)
    y = products.gelu(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0, 30, 1e4]
    assert x.grad.tolist() == [0, 0, 0.5, 1, 1]


def test_what_runs_elsewhere_and_without_gradients_are_the_same_formulas(monkeypatch):
    for module in (fused, products):
        monkeypatch.setattr(module, "by_hand", lambda x: False)
    for name, (chain, plain, _) in CHAINS.items():
        given = inputs(name)
        torch.testing.assert_close(chain(*given), plain(*given), rtol=1e-6, atol=1e-6)


def test_rotated_in_place_is_rotated():
    x = draw(2, 3, 12).float()
    made = fused.normed_heads(x, torch.ones(12), turns(3, 6), 2, EPS, x.dtype)
    normed = F.rms_norm(x, (12,), eps=EPS).unflatten(-1, (2, -1))
    torch.testing.assert_close(made, rotate(normed, turns(3, 6).float()).transpose(1, 2))


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8), (2, 3, 5, 8)])
def test_a_linear_layer_in_bfloat16_is_the_product_it_says(shape):
    layer, x = Linear(8, 12), draw(*shape).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(x)
    assert made.dtype == torch.bfloat16
    exact = F.linear(x, layer.weight, layer.bias)
    assert (made - exact).norm() <= 0.01 * exact.norm()
    given = (x, layer.weight, layer.bias)
    for found, true in zip(torch.autograd.grad(made.sum(), given), torch.autograd.grad(exact.sum(), given)):
        assert found.dtype == torch.float32
        assert (found - true).norm() <= 0.01 * true.norm()


@pytest.mark.parametrize("grad", [False, True])
def test_norms_are_the_same_bits_across_the_borders_of_their_rows(monkeypatch, grad):
    x, weight, shift, scale = (
        draw(*shape, seed=i) for i, shape in enumerate([(2, 3, 7, 12), (12,), *[(2, 3, 1, 12)] * 2])
    )
    results = []
    for rows in (fused.ROWS, 2 * 3 * 12 * 2, 1):
        monkeypatch.setattr(fused, "ROWS", rows)
        with torch.set_grad_enabled(grad):
            norm = fused.modulated_norm(x, shift, scale, EPS, torch.bfloat16)
            heads = fused.normed_heads(x.flatten(1, 2), weight, turns(21, 6), 2, EPS, torch.bfloat16)
        results.append((norm, heads))
    for part in zip(*results):
        assert all(torch.equal(part[0], other) for other in part[1:])


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8), (0, 8)])
@torch.no_grad()
def test_what_follows_a_product_of_bfloat16_is_within_its_rounding(shape):
    """Bias and GELU, for weights that lie anywhere in memory, as those of a mapped file do."""
    x, weight = draw(*shape).bfloat16(), draw(12 * 8 + 1, seed=1).bfloat16()[1:].view(12, 8)
    bias = draw(12, seed=2).bfloat16()
    exact = F.linear(x.double(), weight.double(), bias.double())
    made = products.linear(x, weight, bias, torch.bfloat16)
    risen = products.linear_gelu(x, weight, bias, torch.bfloat16)
    assert made.dtype == risen.dtype == torch.bfloat16
    assert (made - exact).norm() <= 0.004 * exact.norm()
    assert (risen - F.gelu(exact, approximate="tanh")).norm() <= 0.004 * exact.norm()


@torch.no_grad()
def test_gelu_within_a_product_is_finite_for_far_values():
    x = torch.tensor([[-1e30], [-1e4], [-30], [0], [30], [1e4]]).bfloat16()
    made = products.linear_gelu(x, torch.ones(1, 1).bfloat16(), torch.zeros(1).bfloat16(), torch.bfloat16)
    assert made.flatten().tolist() == [0, 0, 0, 0, 30, x[-1].item()]


@torch.no_grad()
def test_an_adapters_terms_are_added_before_gelu():
    mlp, x = MLP(8, 16, 8).bfloat16(), draw(5, 8).bfloat16()
    plain = mlp(x)
    terms = fresh(linear_layers(mlp), rank=4, alpha=4, generator=torch.Generator().manual_seed(0))
    for index, term in enumerate(terms.values()):
        term.up.copy_(draw(*term.up.shape, seed=index))
    attach(mlp, terms)
    apart = mlp(x)
    merge(mlp)
    assert (apart - mlp(x)).norm() <= 0.02 * apart.norm()
    assert (apart - plain).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize("keys", [fused.MANY, 144, 333, 576])
@torch.no_grad()
def test_softmax_of_many_rounded_scores_is_that_of_their_wide_copy(keys):
    q, k, v = (
        torch.randn(1, 2, n, 32, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (70, keys, keys)
    )
    wide = fused.shares(q, k).bfloat16() @ v
    assert torch.equal(fused.attend(q, k, v), wide)
    assert torch.equal(fused.attend(q, k, v, q.new_zeros(1, 1, 1, 0, dtype=torch.float32)), wide), "a bias on no key"
