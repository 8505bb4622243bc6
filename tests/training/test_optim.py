from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from carrara.training.config import TrainConfig
from carrara.training.optim import Average, Optimizers, block_matrices, ema_decay, trainable
from carrara.training.schedule import Decay, decay_due, rate, seconds_left


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.to_q = nn.Linear(4, 4)
        self.bias_table = nn.Embedding(3, 4)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.shared = self.tokens
        self.blocks = nn.ModuleList([Part(), Part()])
        self.end = nn.Linear(4, 2)


def test_muon_takes_block_matrices_and_adamw_the_rest():
    model = Model()
    chosen = block_matrices(model)
    names = trainable(model)
    assert {n for n, p in names.items() if chosen(n, p)} == {"blocks.0.to_q.weight", "blocks.1.to_q.weight"}
    config = TrainConfig(steps=1, optimizer="muon")
    adamw, muon = Optimizers(names, chosen, config).parts
    assert len(muon.param_groups[0]["params"]) == 2
    assert muon.param_groups[0]["lr"] == config.matrix_learning_rate
    decayed, kept = adamw.param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    owned = [p for part in (adamw, muon) for group in part.param_groups for p in group["params"]]
    assert len(owned) == len(names) == len({id(p) for p in owned})


def test_a_model_without_block_matrices_refuses_muon():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no parameter is a block matrix"):
        Optimizers(trainable(model), block_matrices(model), TrainConfig(steps=1, optimizer="muon"))


def test_only_float32_is_trained():
    with pytest.raises(ValueError, match=r"parameter 'weight' is torch\.bfloat16"):
        trainable(nn.Linear(2, 2).bfloat16())
    with pytest.raises(ValueError, match="nothing to train"):
        trainable(nn.Linear(2, 2).requires_grad_(False))


def test_the_average_follows_its_formula():
    model = nn.Linear(3, 2)
    average = Average(trainable(model))
    expected = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    for update in range(6):
        decay = ema_decay(update, 0.4)
        assert decay == min(0.4, (1 + update) / (10 + update))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(update)))
        average.update(decay)
        for name, p in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().double()
    for name, value in expected.items():
        torch.testing.assert_close(average.values[name].double(), value, rtol=1e-6, atol=1e-6)


def test_swapping_the_average_in_restores_the_weights_even_after_an_error():
    model = nn.Linear(3, 2)
    average = Average(trainable(model))
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)

    def fail_inside() -> None:
        with average.swapped_in():
            assert torch.equal(model.weight, before)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert torch.equal(model.weight, before + 1)
    assert torch.equal(average.values["weight"], before)


@given(st.integers(1, 400), st.integers(0, 50), st.floats(0, 0.9))
def test_the_rate_rises_holds_and_falls_to_zero(steps: int, warmup: int, share: float):
    config = TrainConfig(steps=steps, warmup=warmup, decay_share=share)
    rates = []
    decay = None
    for step in range(steps + 1):
        decay = decay or decay_due(config, step, 0.0)
        rates.append(rate(step, warmup, decay))
    assert decay is not None
    assert decay.end == steps
    assert rates[-1] == 0.0
    assert all(0 < value <= 1 for value in rates[:-1])
    assert all(value == 1 for value in rates[warmup : decay.start])
    assert rates[: min(warmup, decay.start)] == [(i + 1) / warmup for i in range(min(warmup, decay.start))]
    assert rates[max(warmup, decay.start) :] == sorted(rates[max(warmup, decay.start) :], reverse=True)


@given(st.integers(0, 10_000), st.floats(0, 0.9))
def test_the_decay_is_its_share_of_the_run(start: int, share: float):
    decay = Decay.after(start, share)
    assert abs(decay.length - share * decay.end) <= 0.5


def test_time_decides_only_when_the_decay_starts():
    config = TrainConfig(minutes=10)
    assert decay_due(config, 300, 479.9) is None
    assert decay_due(config, 300, 480.0) == Decay(300, 75)
    assert decay_due(TrainConfig(minutes=10, decay_at=400), 300, 1e9) is None
    assert decay_due(TrainConfig(minutes=10, decay_at=400), 400, 0.0) == Decay(400, 100)
    assert decay_due(TrainConfig(minutes=10, steps=200), 160, 0.0) == Decay(160, 40)


def test_time_left_is_what_ends_first():
    assert seconds_left(TrainConfig(steps=100), None, 20, 0.0, 2.0) == 160
    assert seconds_left(TrainConfig(minutes=2), None, 20, 30.0, 2.0) == 90
    assert seconds_left(TrainConfig(minutes=1, steps=100), None, 20, 30.0, 2.0) == 30
    assert seconds_left(TrainConfig(minutes=1), Decay(90, 10), 95, 30.0, 2.0) == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "say how long to train"),
        ({"steps": 0}, "steps=0: must be more than 0"),
        ({"steps": 1, "optimizer": "sgd"}, "optimizer='sgd': must be one of adamw, muon"),
        ({"steps": 1, "precision": "half"}, "precision='half'"),
        ({"steps": 1, "decay_share": 1.0}, "decay_share=1.0: must be at least 0 and below 1"),
        ({"steps": 1, "betas": (0.9, 1.0)}, "betas="),
        ({"steps": 1, "learning_rate": -1.0}, "learning_rate=-1.0: must be more than 0"),
    ],
)
def test_wrong_settings_are_refused(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv3d(3, 4, 3)])


def convolution_and_optimizer() -> tuple[Convolution, Optimizers]:
    torch.manual_seed(0)
    model = Convolution()
    config = TrainConfig(steps=4, optimizer="muon", learning_rate=0.1, matrix_learning_rate=0.1)
    return model, Optimizers(trainable(model), lambda name, p: p.ndim > 2, config)


def test_muon_treats_a_convolution_as_the_matrix_of_its_filters():
    """The update equals Muon's on the flattened filters; the rows share the weight's storage, and average-swapping
    leaves them in place."""
    model, optimizers = convolution_and_optimizer()
    weight = model.levels[0].weight
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    reference = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    average = Average(optimizers.parameters)
    for _ in range(3):
        gradient = torch.randn(weight.shape)
        weight.grad, matrix.grad = gradient, gradient.flatten(1)
        optimizers.step(1.0)
        reference.step()
        with average.swapped_in():
            assert not torch.equal(model.levels[0].weight.flatten(1), matrix)
        assert torch.equal(weight.flatten(1), matrix)


def test_the_state_of_muon_on_convolutions_resumes():
    model, optimizers = convolution_and_optimizer()
    again, resumed = convolution_and_optimizer()
    gradients = [torch.randn(4, 3, 3, 3, 3) for _ in range(2)]
    for step, gradient in enumerate(gradients):
        if step == 1:
            again.load_state_dict(model.state_dict())
            resumed.load_state({name: value.clone() for name, value in optimizers.state().items()})
        model.levels[0].weight.grad = gradient
        optimizers.step(1.0)
    again.levels[0].weight.grad = gradients[1]
    resumed.step(1.0)
    assert torch.equal(again.levels[0].weight, model.levels[0].weight)
