"""Laws of attention and of rotary positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from carrara.nn import attention, packing
from carrara.nn.attention import Attention, CrossAttention, attend
from carrara.nn.layers import sinusoid
from carrara.nn.packing import pack
from carrara.nn.positions import axis_widths, grid_positions, rotate, rotations


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_axis_widths_fill_the_head_and_are_wans(head_dim):
    widths = axis_widths(head_dim)
    assert sum(widths) == head_dim
    assert all(width % 2 == 0 for width in widths)
    assert axis_widths(128) == (44, 42, 42)


@pytest.mark.parametrize("head_dim", [4, 63])
def test_a_head_that_cannot_be_split_in_axes_is_refused(head_dim):
    with pytest.raises(ValueError, match=f"head_dim={head_dim}"):
        axis_widths(head_dim)


def test_grid_positions_are_in_frame_row_column_order():
    positions = grid_positions(torch.tensor([0.0, 1.25]), 2, 3)
    assert positions.shape == (12, 3)
    assert positions[1].tolist() == [0, 0, 1]
    assert positions[3].tolist() == [0, 1, 0]
    assert positions[-1].tolist() == [1.25, 1, 2]


def test_scores_depend_on_differences_of_positions_only():
    q, k = draw(1, 20, 2, 32), draw(1, 20, 2, 32, seed=1)
    positions = draw(1, 20, 3, seed=2).double() * 9

    def scores(positions: torch.Tensor) -> torch.Tensor:
        turns = rotations(positions, 32)
        return torch.einsum("bnhc,bmhc->bhnm", rotate(q, turns), rotate(k, turns))

    shifted = positions + torch.tensor([100.25, 37, 5]).double()
    torch.testing.assert_close(scores(positions), scores(shifted), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores(positions), scores(positions * 1.1), atol=1e-2)


def test_a_turn_keeps_lengths_and_position_zero_keeps_everything():
    x = draw(1, 6, 2, 32)
    turned = rotate(x, rotations(draw(1, 6, 3).double(), 32))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x, rotations(torch.zeros(1, 6, 3).double(), 32)), x)


def test_short_and_streaming_attention_agree(monkeypatch):
    q, k, v = draw(2, 3, 7, 16), draw(2, 3, 9, 16, seed=1), draw(2, 3, 9, 16, seed=2)
    bias = draw(2, 1, 1, 9, seed=3)
    bias[0, ..., 4:] = -torch.inf
    short = [attend(q, k, v), attend(q, k, v, bias)]
    monkeypatch.setattr(attention, "SHORT", 0)
    torch.testing.assert_close(short, [attend(q, k, v), attend(q, k, v, bias)])


@pytest.mark.parametrize("piece", [5, 40, 150, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_pieces_is_the_whole(monkeypatch, piece, dtype):
    """Less than a row of scores at a time, some rows, some heads, and everything at once."""
    q, k, v = (x.to(dtype) for x in (draw(2, 3, 7, 16), draw(2, 3, 9, 16, seed=1), draw(2, 3, 9, 8, seed=2)))
    bias = draw(2, 1, 1, 9, seed=3)
    bias[0, ..., 4:] = -torch.inf
    whole = [attend(q, k, v), attend(q, k, v, bias)]
    monkeypatch.setattr(attention, "PIECE", piece)
    with torch.inference_mode():
        torch.testing.assert_close([attend(q, k, v), attend(q, k, v, bias)], whole)
        monkeypatch.setattr(attention, "SHORT_WIDE", 0)  # the streaming kernel for float32
        torch.testing.assert_close(attend(q, k, v, bias), whole[1])


@pytest.mark.parametrize("tiles", [True, False])
def test_either_kernel_of_many_keys_is_within_rounding_of_exact_attention(monkeypatch, tiles):
    """The one for processors with bfloat16 tiles runs everywhere, only slower; a bias keeps its bits with both."""
    q, k, v = (
        x.bfloat16() for x in (draw(2, 3, 150, 16) / 4, draw(2, 3, 150, 16, seed=1), draw(2, 3, 150, 16, seed=2))
    )
    bias = torch.tensor([497.0]).log().view(1, 1, 1, 1)
    monkeypatch.setattr(attention, "_has_tiles", lambda: tiles)
    exact = [attend(q.float(), k.float(), v.float(), each) for each in (None, bias)]
    with torch.inference_mode():
        for made, wanted in zip((attend(q, k, v), attend(q, k, v, bias)), exact):
            torch.testing.assert_close(made.float(), wanted, atol=0.02, rtol=0.02)


def test_equal_keys_are_one_key_with_the_log_of_their_number():
    q, k, v = draw(1, 2, 5, 16), draw(1, 2, 4, 16, seed=1), draw(1, 2, 4, 16, seed=2)
    many = [torch.cat((x, x[:, :, -1:].expand(-1, -1, 30, -1)), dim=2) for x in (k, v)]
    bias = torch.tensor([0, 0, 0, 31.0])
    bias[-1] = bias[-1].log()
    torch.testing.assert_close(attend(q, k, v, bias[None, None, None]), attend(q, *many))


def test_queries_and_keys_are_normalised_over_all_heads_together():
    layer = Attention(32, 4)
    x = draw(2, 6, 32)
    q, k = (F.rms_norm(part(x), (32,), eps=1e-6).unflatten(-1, (4, 8)).transpose(1, 2) for part in (layer.q, layer.k))
    v = layer.v(x).unflatten(-1, (4, 8)).transpose(1, 2)
    plain = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), layer.o(plain))


def test_reading_beforehand_equals_reading_now():
    layer, cross, x = Attention(32, 4), CrossAttention(32, 4), draw(2, 6, 32)
    cross.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), cross(x, cross.read(x)))


def test_an_image_is_attended_to_by_itself_and_added():
    layer, x, text, image = CrossAttention(32, 4, image=True), draw(2, 6, 32), draw(2, 5, 32, seed=1), draw(2, 9, 32)
    alone = CrossAttention(32, 4)
    own = ("k", "v", "norm_k")
    alone.load_state_dict(
        {
            name: layer.state_dict()[name.replace(".", "_image.", 1) if name.split(".")[0] in own else name]
            for name in alone.state_dict()
        }
    )
    both = layer(x, layer.read(text), image=layer.read_image(image))
    parts = layer(x, layer.read(text)) + alone(x, alone.read(image)) - layer.o.bias
    torch.testing.assert_close(both, parts)


def test_packed_layers_are_the_same_layers_in_one_product(monkeypatch):
    layer, x = Attention(32, 4), draw(2, 6, 32)
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    products = []
    single = packing.linear
    monkeypatch.setattr(packing, "linear", lambda x, weight, *rest: products.append(weight) or single(x, weight, *rest))
    with torch.inference_mode():
        apart = layer(x)
        assert not products
        pack((layer.q, layer.k, layer.v))
        torch.testing.assert_close(layer(x), apart)
        assert [tuple(weight.shape) for weight in products] == [(96, 32)]
    assert all(torch.equal(value, weights[name]) for name, value in layer.state_dict().items())
    layer(x).sum().backward()
    assert len(products) == 1  # gradients go to the parts
    assert layer.q.weight.grad is not None
    layer.k = nn.Linear(32, 32)
    with torch.inference_mode():
        layer(x)
    assert len(products) == 1  # what lies elsewhere is computed by itself


def test_sinusoid_is_cosines_then_sines_in_full_precision():
    position = torch.tensor([0.0, 1.0, 999.0])
    embedded = sinusoid(position, 8)
    rates = 10000.0 ** (-torch.arange(4).double() / 4)
    angles = position.double()[:, None] * rates
    assert torch.equal(embedded, torch.cat((angles.cos(), angles.sin()), dim=-1).float())
