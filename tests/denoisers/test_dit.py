"""Laws of the transformer: fields, keyframes, text, initialisation, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from carrara.core.types import Keyframes, TextStates
from carrara.denoisers.dit import DiT, DiTConfig

CONFIG = DiTConfig(
    heads=2, head_dim=32, layers=2, ffn_dim=96, in_channels=4, out_channels=4, text_dim=24, frequencies=32
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def dit() -> DiT:
    """A network in which every parameter matters: fresh weights plus noise."""
    model = DiT(CONFIG).eval().requires_grad_(False)
    model.init_weights(0)
    for index, parameter in enumerate(model.parameters()):
        parameter.add_(draw(*parameter.shape, seed=index), alpha=0.1)
    return model


@pytest.fixture
def text() -> TextStates:
    states = draw(2, 5, 24, seed=7)
    states[0, 3:] = 0
    return TextStates(states, torch.tensor([3, 5]), padded_length=40)


def latents() -> torch.Tensor:
    return draw(2, 4, 3, 4, 6, seed=5)


def keyframes(count: int = 2, seed: int = 3) -> Keyframes:
    times = torch.tensor([[2.75, 0.5, 1.0], [0.25, 4.0, 2.0]])[:, :count]
    levels = torch.tensor([[0.0, 0.3, 0.1], [0.2, 0.0, 0.6]])[:, :count]
    return Keyframes(draw(2, 4, count, 4, 6, seed=seed), times, levels)


T = torch.tensor([0.25, 0.8])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_constant_field_equals_a_scalar(dit, text):
    x = latents()
    scalar = dit(x, T, text)
    assert close(dit(x, T[:, None].expand(-1, 3), text), scalar)
    assert close(dit(x, T[:, None].expand(-1, 18), text), scalar)


def test_a_field_per_frame_equals_the_one_per_token(dit, text):
    x, field = latents(), torch.tensor([[0.0, 0.4, 0.9], [0.3, 0.3, 1.0]])
    per_frame = dit(x, field, text)
    assert close(per_frame, dit(x, field.repeat_interleave(6, dim=1), text))
    assert not close(per_frame, dit(x, field.flip(1), text))
    both = [dit(x, each, text, keyframes()) for each in (field, field.repeat_interleave(6, dim=1))]
    assert close(*both)


def test_levels_are_distinct_in_the_embedding(dit, text, monkeypatch):
    seen = []
    forward = dit.level.forward
    monkeypatch.setattr(dit.level, "forward", lambda t: seen.append(t.shape) or forward(t))
    field = torch.zeros(2, 18)
    field[:, 9:] = 0.7
    dit(latents(), field, text)
    dit(latents(), T, text)
    assert seen == [(2,), (2,)]


def test_samples_do_not_touch_each_other(dit, text):
    x = latents()
    whole = dit(x, T, text, keyframes())
    keys = keyframes()
    alone = dit(
        x[1:],
        T[1:],
        TextStates(text.states[1:], text.lengths[1:], text.padded_length),
        Keyframes(keys.latents[1:], keys.times[1:], keys.levels[1:]),
    )
    assert close(whole[1:], alone)


def test_no_keyframes_is_none(dit, text):
    x = latents()
    assert torch.equal(dit(x, T, text, keyframes(0)), dit(x, T, text))


def test_the_order_of_keyframes_does_not_matter(dit, text):
    x, keys, order = latents(), keyframes(3), torch.tensor([2, 0, 1])
    moved = Keyframes(keys.latents[:, :, order], keys.times[:, order], keys.levels[:, order])
    assert close(dit(x, T, text, keys), dit(x, T, text, moved))


def test_what_when_and_how_noisy_a_keyframe_is_matter(dit, text):
    x, keys = latents(), keyframes()
    base = dit(x, T, text, keys)
    changed = (
        dataclasses.replace(keys, latents=keys.latents + 1),
        dataclasses.replace(keys, times=keys.times + 0.25),
        dataclasses.replace(keys, levels=keys.levels + 0.25),
        None,
    )
    assert all(not close(base, dit(x, T, text, each)) for each in changed)


def test_a_keyframe_in_place_of_a_latent_frame_is_that_frame(dit, text):
    """A token is its content, time and level: frame 2 given as a keyframe at time 2 changes nothing for the others."""
    x = latents()
    field = torch.tensor([[0.5, 0.5, 0.0], [0.7, 0.7, 0.0]])
    last = Keyframes(x[:, :, 2:], torch.full((2, 1), 2.0), torch.zeros(2, 1))
    assert close(dit(x, field, text)[:, :, :2], dit(x[:, :, :2], field[:, :2], text, last))


def test_the_pad_key_equals_explicit_pads(dit, text):
    x = latents()
    explicit = torch.zeros(2, 40, 24)
    explicit[:, :5] = text.states
    full = TextStates(explicit, torch.tensor([40, 40]), padded_length=40)
    assert close(dit(x, T, text), dit(x, T, full))
    assert not close(dit(x, T, text), dit(x, T, dataclasses.replace(text, padded_length=400)))


def test_text_read_once_equals_text_read_every_time(dit, text):
    x = latents()
    assert torch.equal(dit(x, T, dit.read_text(text)), dit(x, T, text))


def test_rows_beyond_a_prompts_length_are_not_read(dit, text):
    dirty = text.states.clone()
    dirty[0, 3:] = 9
    assert torch.equal(dit(latents(), T, dataclasses.replace(text, states=dirty)), dit(latents(), T, text))


def test_an_empty_prompt_is_all_padding(dit):
    empty = TextStates(torch.zeros(2, 0, 24), torch.tensor([0, 0]), padded_length=40)
    explicit = TextStates(torch.zeros(2, 40, 24), torch.tensor([40, 40]), padded_length=40)
    assert close(dit(latents(), T, empty), dit(latents(), T, explicit))


def test_fresh_blocks_are_the_identity_and_predict_zero(text):
    model = DiT(CONFIG)
    model.init_weights(1)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, result: seen.append(torch.equal(given[0], result)))
    assert torch.equal(model(latents(), T, text), torch.zeros(2, 4, 3, 4, 6))
    assert seen == [True, True]


def test_a_seed_is_the_weights():
    states = []
    for seed in (1, 1, 2):
        model = DiT(CONFIG)
        model.init_weights(seed)
        states.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def gradients(model: DiT, text: TextStates, autocast: bool) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        flow = model(latents(), T, text, keyframes())
    flow.float().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def trainable(dit: DiT) -> DiT:
    model = DiT(CONFIG)
    model.load_state_dict(dit.state_dict())
    return model


def test_every_parameter_learns_in_both_precisions(dit, text):
    model = trainable(dit)
    full, mixed = gradients(model, text, autocast=False), gradients(model, text, autocast=True)
    for name, gradient in full.items():
        assert gradient.isfinite().all(), name
        assert mixed[name].isfinite().all(), name
        assert gradient.abs().max() > 0, name
    whole, rough = (torch.cat([g.flatten() for g in each.values()]) for each in (full, mixed))
    assert (whole - rough).norm() / whole.norm() < 0.05


def test_checkpointing_gives_the_same_gradients(dit, text):
    model = trainable(dit)
    plain = gradients(model, text, autocast=True)
    model.checkpointing = True
    again = gradients(model, text, autocast=True)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_weights_may_be_bfloat16(dit, text):
    model = trainable(dit).bfloat16()
    flow = model(latents(), T, text)
    assert flow.dtype == torch.float32
    reference = dit(latents(), T, text)
    assert (flow - reference).norm() / reference.norm() < 0.03


def test_wrong_shapes_are_refused_with_what_was_expected(dit, text):
    x, keys = latents(), keyframes()
    with pytest.raises(ValueError, match="5 channels: this model takes 4"):
        dit(draw(2, 5, 3, 4, 6), T, text)
    with pytest.raises(ValueError, match="latent width=5"):
        dit(x[..., :5], T, text)
    with pytest.raises(ValueError, match=r"t has shape \(2, 7\): expected \(2,\), \(2, 3\) or \(2, 18\)"):
        dit(x, torch.zeros(2, 7), text)
    with pytest.raises(ValueError, match="one prompt per clip"):
        dit(x, T, TextStates(text.states[:1], text.lengths[:1]))
    with pytest.raises(ValueError, match="this model reads 24"):
        dit(x, T, TextStates(text.states[..., :8], text.lengths))
    with pytest.raises(ValueError, match="padded_length=4"):
        dit(x, T, dataclasses.replace(text, padded_length=4))
    with pytest.raises(ValueError, match="keyframes have latents"):
        dit(x, T, text, dataclasses.replace(keys, latents=keys.latents[..., :4]))


IMAGE = dataclasses.replace(CONFIG, in_channels=7, image_dim=20)


@pytest.fixture(scope="module")
def reader() -> DiT:
    """A network that reads an image, by three channels and by states of a tower."""
    model = DiT(IMAGE).eval().requires_grad_(False)
    model.init_weights(0)
    for index, parameter in enumerate(model.parameters()):
        parameter.add_(draw(*parameter.shape, seed=index), alpha=0.1)
    return model


def test_an_images_channels_and_states_are_read(reader, text):
    x, states = draw(2, 7, 3, 4, 6), draw(2, 9, 20, seed=1)
    base = reader(x, T, text, image=states)
    assert base.shape == (2, 4, 3, 4, 6)
    assert torch.equal(base, reader(x, T, reader.read_text(text, states)))
    other = x.clone()
    other[:, 4:] += 1
    assert not close(base, reader(other, T, text, image=states))
    assert not close(base, reader(x, T, text, image=draw(2, 9, 20, seed=3)))
    assert close(base, reader(x, T, text, image=states.flip(1)))  # without positions a set


def test_a_reader_may_be_bfloat16_with_its_islands_in_float32(reader, text):
    model, x, states = DiT(IMAGE), draw(2, 7, 3, 4, 6), draw(2, 9, 20, seed=1)
    model.load_state_dict(reader.state_dict())
    model.eval().requires_grad_(False)
    exact = reader(x, T, text, image=states)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if "norm" in name else torch.bfloat16)
    for packed in (False, True):
        if packed:
            model.pack()
        with torch.inference_mode():
            rough = model(x, T, text, image=states.bfloat16())
        assert (rough - exact).norm() / exact.norm() < 0.03


def test_an_image_is_asked_for_and_refused_where_it_is_not_read(dit, reader, text):
    states = draw(2, 9, 20)
    with pytest.raises(ValueError, match="4 channels: this model takes 7, 3 of them the given image's"):
        reader(latents(), T, text, image=states)
    with pytest.raises(ValueError, match="give those of its image tower"):
        reader.read_text(text)
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        reader.read_text(text, states[:1])
    with pytest.raises(ValueError, match=r"this model reads \(clips, states, 20\)"):
        reader.read_text(text, draw(2, 9, 21))
    with pytest.raises(ValueError, match="no layers that read them"):
        dit.read_text(text, states)
    both = DiT(dataclasses.replace(IMAGE, image_positions=18))
    with pytest.raises(ValueError, match="9 image states: this model reads 18"):
        both.read_text(text, states)


def test_a_fresh_reader_is_the_identity_too(text):
    model = DiT(dataclasses.replace(IMAGE, image_positions=9))
    model.init_weights(1)
    assert torch.equal(model(draw(2, 7, 3, 4, 6), T, text, image=draw(2, 9, 20)), torch.zeros(2, 4, 3, 4, 6))


def test_two_prompts_in_one_batch_are_each_by_itself(dit, reader, text):
    """Joined keys, of texts of different lengths, give what either gives."""
    longer = TextStates(draw(2, 8, 24, seed=9), torch.tensor([8, 6]), padded_length=40)
    x, states = draw(2, 7, 3, 4, 6), draw(2, 9, 20, seed=1)
    keys = [reader.read_text(each, states) for each in (text, longer)]
    apart = torch.cat([reader(x, T, each) for each in keys])
    assert close(reader(torch.cat((x, x)), torch.cat((T, T)), keys[0].join(keys[1])), apart)
    assert close(reader(torch.cat((x, x)), torch.cat((T, T)), keys[1].join(keys[0])), torch.cat(apart.chunk(2)[::-1]))
    with pytest.raises(ValueError, match="give both or none"):
        keys[0].join(dataclasses.replace(keys[1], image=None))


@pytest.mark.parametrize("padded", [5, 6, 40])
def test_prompts_that_fill_their_rows_have_a_bias_on_the_pads_alone(dit, text, padded):
    """The same numbers as with a bias on every key, which is how it is read where something is to be learned."""
    states = dataclasses.replace(text, lengths=torch.tensor([5, 5]), padded_length=padded)
    with torch.no_grad():
        keys = dit.read_text(states)
        x, short = dit(latents(), T, keys), dit.read_text(dataclasses.replace(text, padded_length=padded))
    assert keys.length == 5 + (padded > 5)
    assert keys.bias.shape[-1] == (padded > 5)
    assert close(x, dit(latents(), T, dit.read_text(states)))
    for other in (keys, short):  # of as many keys biased alike, and not
        for first, second in ((keys, other), (other, keys)):
            joint = dit(latents().repeat(2, 1, 1, 1, 1), T.repeat(2), first.join(second))
            apart = torch.cat((dit(latents(), T, first), dit(latents(), T, second)))
            assert close(joint, apart)
