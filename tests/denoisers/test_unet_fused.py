"""Laws of the U-Net's chains: each is its plain formula, and its gradient the finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from einops import repeat
from torch import Tensor

from carrara.denoisers import unet_fused
from carrara.denoisers.unet_blocks import Norm
from carrara.denoisers.unet_time import SpaceConv


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normed(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None = None) -> Tensor:
    return unet_fused.norm_silu(x, weight, bias, 3, 1e-5, added)


# name: (the chain, shapes of its inputs)
CHAINS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "norm": (normed, [(2, 3, 2, 6), (6,), (6,)]),
    "norm of a sum": (normed, [(2, 3, 2, 6), (6,), (6,), (2, 6)]),
    "attention in space": (lambda qkv: unet_fused.attend_space(qkv, 2), [(3, 4, 24)]),
    "attention in time": (unet_fused.attend_time, [(2, 3, 2, 24), (2, 3, 3)]),
}
every_chain = pytest.mark.parametrize("name", CHAINS)


def inputs(name: str) -> list[Tensor]:
    return [(1.5 * draw(*shape, seed=seed) + 0.5).requires_grad_() for seed, shape in enumerate(CHAINS[name][1])]


@every_chain
@pytest.mark.parametrize("few", [0, 1024])
def test_a_chain_is_its_formula_and_leaves_its_inputs_alone(name, few, monkeypatch):
    """On either kernel of the norm, and whether gradients are wanted or not."""
    monkeypatch.setattr(unet_fused, "FEW", few)
    given, chain = inputs(name), CHAINS[name][0]
    before = [x.detach().clone() for x in given]
    made = chain(*given)
    made.square().sum().backward()
    assert all(torch.equal(x, past) for x, past in zip(given, before))
    with torch.no_grad():
        assert torch.equal(chain(*given), made)
    monkeypatch.setattr(unet_fused, "by_hand", lambda _: False)
    plain = inputs(name)
    torch.testing.assert_close(made, chain(*plain), rtol=1e-10, atol=1e-10)
    chain(*plain).square().sum().backward()
    for x, exact in zip(given, plain):
        torch.testing.assert_close(x.grad, exact.grad, rtol=1e-9, atol=1e-9)


@every_chain
def test_the_gradient_of_a_chain_is_its_finite_difference(name):
    assert torch.autograd.gradcheck(CHAINS[name][0], inputs(name))


@every_chain
@pytest.mark.parametrize("few", [0, 1024])
def test_in_bfloat16_results_and_gradients_are_within_its_rounding(name, few, monkeypatch):
    monkeypatch.setattr(unet_fused, "FEW", few)
    rounded = [x.detach().bfloat16() for x in inputs(name)]
    results = []
    for hand, dtype in ((True, torch.bfloat16), (False, torch.float64)):
        monkeypatch.setattr(unet_fused, "by_hand", lambda _, hand=hand: hand)
        given = [x.to(dtype).requires_grad_() for x in rounded]
        made = CHAINS[name][0](*given)
        results.append([made, *torch.autograd.grad(made, given, torch.linspace(-1, 1, made.numel()).view_as(made))])
    for made, exact in zip(*results):
        assert made.dtype == torch.bfloat16
        assert (made.double() - exact).norm() <= 0.02 * exact.norm()


def test_a_large_mean_costs_the_norm_no_precision():
    """Sums of squares about zero would lose the variance, and in bfloat16 the gradient."""
    x, outer = (draw(2, 8, 8, 16, seed=seed).bfloat16() for seed in range(2))
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        given = (x + torch.linspace(60, 68, 16).bfloat16()).to(dtype).requires_grad_()
        made = Norm(16).to(dtype).silu(given)
        results.append((made, *torch.autograd.grad(made, given, outer.to(dtype))))
    for made, exact in zip(*results):
        assert (made.double() - exact).norm() <= 0.02 * exact.norm()


def test_attention_is_the_same_in_pieces(monkeypatch):
    qkv = draw(5, 4, 24).requires_grad_()
    whole = unet_fused.attend_space(qkv, 2)
    gradient = torch.autograd.grad(whole.square().sum(), qkv)[0]
    monkeypatch.setattr(unet_fused, "SCORES", 2 * 2 * 4 * 4)  # two frames at a time, the last alone
    pieces = unet_fused.attend_space(qkv, 2)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces.square().sum(), qkv)[0], gradient)


def test_a_doubled_frame_is_convolved_as_if_it_were_there():
    conv, x = SpaceConv(6, 4).double(), draw(2, 3, 5, 6).requires_grad_()
    made, large = conv.doubled(x), conv(repeat(x, "n h w c -> n (h p) (w q) c", p=2, q=2))
    assert made.is_contiguous()
    torch.testing.assert_close(made, large)
    wanted = (x, conv.weight, conv.bias)
    for ours, theirs in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in (made, large))):
        torch.testing.assert_close(ours, theirs)
