"""The norm is the public formula, its hand-written gradient the true one, and convolutions are what torch says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from carrara.autoencoders.causal import CausalConv, RMSNorm, Stream, conv3d


def norm(dtype: torch.dtype = torch.float32) -> RMSNorm:
    module = RMSNorm(6).to(dtype)
    with torch.no_grad():
        module.gamma.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    return module


def test_rms_norm_is_l2_normalisation_times_the_root_of_the_width() -> None:
    module, x = norm(), torch.randn(2, 6, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = F.normalize(x, dim=1) * 6**0.5 * module.gamma
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.silu(x), F.silu(expected), rtol=1e-5, atol=1e-6)
    assert torch.equal(module.silu(torch.zeros_like(x)), torch.zeros_like(x)), "zeros in, zeros out"


def test_the_gradient_of_norm_and_silu_is_the_true_one() -> None:
    module = norm(torch.float64)
    x = torch.randn(2, 6, 2, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, gamma: module.silu(x), (x, module.gamma))


def test_convolutions_keep_channels_last_in_memory() -> None:
    x = torch.randn(2, 6, 5, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    y = norm().silu(CausalConv(6, 6)(x, Stream()))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (1, 1, 1), (0, 1, 1)), ((1, 3, 3), (1, 2, 2), (0, 0, 0)), ((3, 1, 1), (2, 1, 1), (0, 0, 0))],
)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_convolutions_are_what_torch_says(kernel, stride, padding, grad, autocast, dtype) -> None:
    """Whichever kernel is asked for them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 5, 9, 11, generator=generator).to(dtype, memory_format=torch.channels_last_3d)
    weight, bias = (torch.randn(*sides, generator=generator).to(dtype) for sides in ((6, 8, *kernel), (6,)))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made, expected = conv3d(x, weight, bias, stride, padding), F.conv3d(x, weight, bias, stride, padding)
    assert made.dtype == expected.dtype
    assert made.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(made, expected, rtol=2e-5, atol=2e-5)  # sums in another order
