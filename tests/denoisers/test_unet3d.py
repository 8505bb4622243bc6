"""The space-time U-Net: on single frames an image model to the bit, along time a choice that begins as the identity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from carrara.core.config import from_dict, to_dict
from carrara.core.types import TextStates
from carrara.denoisers.unet3d import (
    IMAGEN_VIDEO_TIME,
    MAKE_A_VIDEO_TIME,
    NO_TIME,
    VDM_TIME,
    VIDEO_LDM_TIME,
    Conditions,
    UNet3D,
    UNetConfig,
)
from carrara.denoisers.unet_blocks import Frames, Told
from carrara.denoisers.unet_time import Mixed, TimeAttention, TimeBlock, TimeConv
from carrara.nn.flops import count_flops

SMALL = UNetConfig(dim=8, multipliers=(1, 2), blocks=1, attention=(1,), head_dim=8, text="cross", text_dim=6)
TIMES = {
    "vdm": VDM_TIME,
    "make-a-video": MAKE_A_VIDEO_TIME,
    "imagen-video": IMAGEN_VIDEO_TIME,
    "video-ldm": VIDEO_LDM_TIME,
}
every_time = pytest.mark.parametrize("name", TIMES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def network(config: UNetConfig = SMALL, only_space: bool = False) -> UNet3D:
    """A network with every weight drawn, so that no layer is the identity; `only_space`: those along time still are."""
    net = UNet3D(config)
    net.init_weights(0)
    times = net.time_parameters()
    for name, parameter in net.named_parameters():
        if not (only_space and name in times):
            seed = sum(name.encode())  # so that networks with and without other layers share their weights
            parameter.add_(0.2 * draw(*parameter.shape, seed=seed))
    return net.eval()


def of(name: str, only_space: bool = False) -> UNet3D:
    return network(replace(SMALL, temporal=TIMES[name]), only_space)


def image_model(net: UNet3D) -> UNet3D:
    """The network without its layers along time, with its other weights."""
    plain = UNet3D(replace(net.config, temporal=NO_TIME))
    rename = {key.replace(".space.weight", ".weight").replace(".space.bias", ".bias"): key for key in net.state_dict()}
    plain.load_state_dict({key: net.state_dict()[rename.get(key, key)] for key in plain.state_dict()})
    return plain.eval()


def said(rows: int, seed: int = 3) -> Conditions:
    lengths = 1 + torch.arange(rows) % 4
    states = draw(rows, 4, 6, seed=seed) * (torch.arange(4) < lengths[:, None])[..., None]
    return Conditions(TextStates(states, lengths))


@every_time
def test_with_one_frame_the_layers_along_time_change_nothing(name):
    net = of(name)
    assert net.time_parameters()
    x, t = draw(3, 3, 1, 8, 8), torch.rand(3)
    assert torch.equal(net(x, t, said(3)), image_model(net)(x, t, said(3)))


@every_time
def test_lone_frames_are_clips_of_one_frame_and_the_clip_knows_nothing_of_them(name):
    net = of(name)
    x, t = draw(2, 3, 6, 8, 8).requires_grad_(), torch.rand(2, 6)
    text = said(2 * 3)
    made = net(x, t, text, alone=2)
    (gradient,) = torch.autograd.grad(made[:, :, :4].square().sum(), x, retain_graph=True)
    assert gradient[:, :, :4].abs().amax(dim=(1, 2, 3, 4)).gt(0).all()
    assert gradient[:, :, 4:].eq(0).all()
    (gradient,) = torch.autograd.grad(made[:, :, 5].square().sum(), x)
    assert gradient[:, :, :5].eq(0).all()
    for row in range(2):
        rows = slice(row * 3, row * 3 + 3)
        states = text.text.states[rows], text.text.lengths[rows]
        for frame in range(2):
            own = Conditions(TextStates(states[0][frame + 1 : frame + 2], states[1][frame + 1 : frame + 2]))
            at = 4 + frame
            alone = image_model(net)(x[row : row + 1, :, at : at + 1], t[row : row + 1, at], own)
            torch.testing.assert_close(made[row : row + 1, :, at : at + 1], alone, atol=2e-5, rtol=1e-4)
        clip = net(x[row : row + 1, :, :4], t[row : row + 1, :4], Conditions(TextStates(states[0][:1], states[1][:1])))
        torch.testing.assert_close(made[row : row + 1, :, :4], clip, atol=2e-5, rtol=1e-4)


@every_time
def test_the_order_of_other_frames_changes_nothing_of_a_lone_frame_nor_of_the_clip(name):
    net, t = of(name), torch.full((1,), 0.3)
    x, texts, order = draw(1, 3, 7, 8, 8), said(4).text, torch.tensor([2, 0, 1])
    made = net(x, t, Conditions(texts), alone=3)
    moved = torch.cat((x[:, :, [3, 1, 0, 2]], x[:, :, 4:]), dim=2)  # the clip's frames
    assert torch.equal(net(moved, t, Conditions(texts), alone=3)[:, :, 4:], made[:, :, 4:])
    moved = torch.cat((x[:, :, :4], x[:, :, 4:][:, :, order]), dim=2)  # the lone ones, with their prompts
    rows = torch.cat((torch.tensor([0]), 1 + order))
    again = net(moved, t, Conditions(TextStates(texts.states[rows], texts.lengths[rows])), alone=3)
    torch.testing.assert_close(again[:, :, :4], made[:, :, :4], atol=0, rtol=0)
    torch.testing.assert_close(again[:, :, 4:], made[:, :, 4:][:, :, order], atol=2e-5, rtol=1e-4)


@every_time
def test_every_frame_of_a_clip_sees_every_other(name):
    net = of(name)
    x = draw(1, 3, 4, 8, 8).requires_grad_()
    for frame in range(4):
        (gradient,) = torch.autograd.grad(net(x, torch.rand(1), said(1))[:, :, frame].square().sum(), x)
        assert gradient.abs().amax(dim=(0, 1, 3, 4)).gt(0).all()


@every_time
def test_layers_along_time_begin_as_the_identity(name):
    """A clip through an image model that has just gained them is the images that it made before."""
    net = of(name, only_space=True)
    x, t = draw(2, 3, 5, 8, 8), torch.rand(2)
    clip = net(x, t, said(2))
    assert clip.std() > 0.1
    for frame in range(5):
        image = image_model(net)(x[:, :, frame : frame + 1], t, said(2))
        torch.testing.assert_close(clip[:, :, frame : frame + 1], image, atol=2e-5, rtol=1e-4)


def test_at_alpha_one_a_mixed_layer_is_not_there_to_the_bit():
    net = of("video-ldm")
    x, t = draw(2, 3, 5, 8, 8), torch.rand(2)
    faded = [part for part in net.modules() if isinstance(part, Mixed)]
    assert len(faded) == 8  # a block in each of 5 layers, an attention in each of the 3 at the coarse level
    before = net(x, t, said(2))
    for part in faded:
        torch.nn.init.constant_(part.logit, torch.inf)
    at_one = net(x, t, said(2))
    assert torch.equal(at_one, image_model(net)(x, t, said(2)))
    assert not torch.allclose(at_one, before, atol=1e-3)


def test_the_bias_of_time_attention_tells_distances_and_nothing_else():
    attention = TimeAttention(8, 4)
    torch.nn.init.normal_(attention.distances)
    torch.nn.init.normal_(attention.out.weight)
    bias = attention.bias(50)
    assert torch.equal(bias[:, :-1, :-1], bias[:, 1:, 1:])  # moving all frames changes no score
    assert torch.equal(bias[:, 0, 32], bias[:, 0, 49])  # far is far
    assert not torch.equal(bias[:, 0, 1], bias[:, 1, 0])  # before is not after
    told = Told(Frames(1, 5), torch.zeros(5, 4))
    x, order = draw(5, 2, 2, 8), torch.tensor([3, 0, 4, 1, 2])
    assert not torch.allclose(attention(x[order], told), attention(x, told)[order], atol=1e-3)
    torch.nn.init.zeros_(attention.distances)  # without them it sees a set of frames
    torch.testing.assert_close(attention(x[order], told), attention(x, told)[order])


def test_time_layers_see_one_place_and_convolutions_three_frames():
    told = Told(Frames(1, 6), torch.zeros(6, 4))
    layers = {"attention": TimeAttention(8, 4), "convolution": TimeConv(8), "block": TimeBlock(8)}
    reach = {"attention": range(6), "convolution": range(1, 4), "block": range(5)}
    for name, layer in layers.items():
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x = draw(6, 3, 3, 8).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x, told)[2, 1, 1].square().sum(), x)
        seen = gradient.abs().sum(-1).gt(0)
        assert [frame for frame in range(6) if seen[frame, 1, 1]] == list(reach[name])
        if name != "block":  # whose norms take statistics of whole frames
            assert seen.sum() == seen[:, 1, 1].sum() == len(reach[name])


def test_conditions_matter_and_pads_do_not():
    config = replace(SMALL, given_channels=2, scalars=("fps", "noisy"), vector_dim=5)
    net = network(config)
    x, t = draw(2, 3, 3, 8, 8), torch.tensor([0.2, 0.7])
    scalars = {"fps": torch.tensor([0.1, 0.3]), "noisy": torch.tensor([0.0, 0.5])}
    full = Conditions(said(2).text, draw(2, 5), scalars, draw(2, 2, 3, 8, 8, seed=5))
    made = net(x, t, full)
    for other in (
        replace(full, text=said(2, seed=4).text),
        replace(full, vector=draw(2, 5, seed=9)),
        replace(full, scalars={**scalars, "fps": torch.tensor([0.1, 0.4])}),
        replace(full, given=draw(2, 2, 3, 8, 8, seed=6)),
    ):
        assert (net(x, t, other) - made)[1].abs().max() > 1e-3
    padded = torch.cat((full.text.states, 7 * torch.ones(2, 3, 6)), dim=1)
    longer = net(x, t, replace(full, text=TextStates(padded, full.text.lengths)))
    torch.testing.assert_close(longer, made, atol=1e-5, rtol=1e-5)
    field = net(x, t[:, None].expand(2, 3), full)  # a constant field of levels is one level
    torch.testing.assert_close(field, made, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": draw(2, 4, 3, 8, 8)}, "4 channels"),
        ({"x": draw(2, 3, 3, 9, 8)}, "height=9: must be a multiple of 2; nearest 8 or 10"),
        ({"t": torch.rand(3)}, r"t has shape \(3,\): expected \(2,\) or \(2, 3\)"),
        ({"conditions": Conditions()}, "text is missing"),
        ({"conditions": said(3)}, r"expected \(2, tokens, 6\)"),
        ({"alone": 1}, r"expected \(4, tokens, 6\), for 2 clips with 1 lone frames each"),
        ({"alone": 3}, "alone=3 of 3 frames"),
        ({"conditions": replace(said(2), vector=draw(2, 4))}, "vector_dim=0"),
        ({"conditions": replace(said(2), scalars={"fps": torch.rand(2)})}, "told of"),
        ({"conditions": replace(said(2), given=draw(2, 1, 3, 8, 8))}, "given channels"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    values = {"x": draw(2, 3, 3, 8, 8), "t": torch.rand(2), "conditions": said(2), "alone": 0, **change}
    with pytest.raises(ValueError, match=match):
        network()(**values)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dim": 7}, "dim=7"),
        ({"blocks": 0}, "blocks=0"),
        ({"multipliers": ()}, "multipliers"),
        ({"attention": (2,)}, "levels 0 to 1"),
        ({"text": "crossed"}, "did you mean cross"),
        ({"text_dim": 0}, "text_dim=0"),
        ({"dropout": 1.0}, "dropout"),
        ({"scalars": ("fps", "fps")}, "once"),
    ],
)
def test_bad_sizes_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        replace(SMALL, **change)


def test_configurations_are_json():
    for temporal in (NO_TIME, *TIMES.values()):
        config = replace(SMALL, temporal=temporal, scalars=("fps",))
        assert from_dict(UNetConfig, to_dict(config), "config.json") == config


def test_fresh_weights_predict_zero_and_come_from_the_seed_alone():
    net, again, other = (UNet3D(SMALL) for _ in range(3))
    net.init_weights(1)
    again.init_weights(torch.Generator().manual_seed(1))
    other.init_weights(2)
    assert not net(draw(1, 3, 2, 8, 8), torch.rand(1), said(1)).any()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
    assert any(not torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))


def test_bfloat16_is_near_and_pixels_stay_channels_last():
    net = of("make-a-video")
    x, t = draw(2, 3, 4, 8, 8), torch.rand(2)
    shapes = []
    hooks = [
        part.register_forward_hook(lambda _m, _i, made: shapes.append(made.is_contiguous()))
        for name, part in net.named_modules()
        if name.endswith(("norm_in", "norm_out", "space"))
    ]
    exact = net(x, t, said(2))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, t, said(2))
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()
    assert len(shapes) > 20
    assert all(shapes)
    for hook in hooks:
        hook.remove()


def test_compute_is_counted():
    a, b = draw(3, 4), draw(4, 5).requires_grad_()
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert count_flops(lambda: (a @ b).sum(), [b]) == 2 * 2 * 3 * 4 * 5  # and the gradient by b
    assert b.grad is None
    conv = TimeConv(8)
    assert count_flops(lambda: conv.along(draw(2, 6, 4, 4, 8))) == 2 * (3 * 8 * 8) * (2 * 6 * 4 * 4)
    net = network(replace(SMALL, text="none"))

    def pass_(clips: int) -> Tensor:
        return net(draw(clips, 3, 4, 8, 8), torch.rand(clips)).square().mean()

    one = count_flops(lambda: pass_(1))
    told = one - (count_flops(lambda: pass_(2)) - one)  # nothing is shared between clips
    assert told == 0
    assert 2.8 < count_flops(lambda: pass_(1), net.parameters()) / one < 3.05
