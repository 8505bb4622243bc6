"""The layout of I3D against the published one, written out again here, and its arithmetic by parts."""

import pytest
import torch
from torch import nn

from carrara.evaluation.distribution.i3d import I3D, TABLE, FrozenNorm, Unit, pad_same, pool_same, same_padding

# Inputs and the six widths of every mixture, from the paper's figure and the released weights.
PUBLISHED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the released state dict, name to shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(name: str, inputs: int, outputs: int, size: int) -> None:
        shapes[f"{name}.conv3d.weight"] = (outputs, inputs, size, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (outputs,)

    unit("Conv3d_1a_7x7", 3, 64, 7)
    unit("Conv3d_2b_1x1", 64, 64, 1)
    unit("Conv3d_2c_3x3", 64, 192, 3)
    for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in PUBLISHED.items():
        unit(f"{name}.b0", inputs, b0, 1)
        unit(f"{name}.b1a", inputs, b1a, 1)
        unit(f"{name}.b1b", b1a, b1b, 3)
        unit(f"{name}.b2a", inputs, b2a, 1)
        unit(f"{name}.b2b", b2a, b2b, 3)
        unit(f"{name}.b3b", inputs, b3b, 1)
    shapes["logits.conv3d.weight"] = (400, 1024, 1, 1, 1)
    shapes["logits.conv3d.bias"] = (400,)
    return shapes


def test_names_and_shapes_are_those_of_the_released_weights():
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in I3D().state_dict().items()}
    assert {TABLE.to_theirs(name): shape for name, shape in ours.items()} == published_shapes()
    assert {TABLE.to_ours(TABLE.to_theirs(name)) for name in ours} == set(ours)
    assert sum(torch.Size(shape).numel() for name, shape in ours.items() if "running" not in name) == 12_697_264


@pytest.mark.parametrize("frames", [9, 16, 17])
def test_every_pool_and_stride_fits_down_to_the_logits(frames):
    with torch.device("meta"):
        assert I3D()(torch.empty(2, 3, frames, 224, 224)).shape == (2, 400)


def test_same_padding_gives_length_over_stride_rounded_up():
    for length in range(1, 30):
        for size, stride in ((7, 2), (3, 2), (3, 1), (2, 2), (1, 1)):
            before, after = same_padding(length, size, stride)
            assert (length + before + after - size) // stride + 1 == -(-length // stride)
            assert after - before in (0, 1)


def test_a_unit_is_convolution_norm_relu():
    torch.manual_seed(0)
    unit = Unit(3, 5, 3, 2).eval()
    reference = nn.BatchNorm3d(5, eps=1e-3).eval()
    for own, other in ((unit.norm, reference),):
        own.weight.data.uniform_(0.5, 2)
        own.bias.data.normal_()
        own.running_mean.normal_()
        own.running_var.uniform_(0.5, 2)
        other.load_state_dict(own.state_dict(), strict=False)
    assert isinstance(unit.norm, FrozenNorm)
    x = torch.randn(2, 3, 7, 8, 9)
    wanted = reference(unit.convolution(pad_same(x, (3, 3, 3), (2, 2, 2)))).relu()
    assert unit(x).allclose(wanted, atol=1e-5)
    assert unit(x).shape[2:] == (4, 4, 5)


def test_zeros_around_a_pool_change_nothing():
    x = torch.rand(1, 2, 5, 6, 7)
    wanted = nn.functional.max_pool3d(x, 3, 1, padding=1)
    assert pool_same(x, (3, 3, 3), (1, 1, 1)).equal(wanted)
