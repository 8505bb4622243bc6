from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from carrara.core.weights import save_weights
from carrara.training.checkpoint import checkpoints, load_ema, read_state
from carrara.training.config import TrainConfig
from carrara.training.loop import Stopped, train
from carrara.training.metrics import read_metrics

QUIET = io.StringIO()
CONFIG = TrainConfig(
    steps=14, warmup=3, log_every=1, validate_every=5, picture_every=7, checkpoint_every=4, checkpoint_every_minutes=0
)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.drop = nn.Dropout(0.1)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.drop(self.up(self.norm(x)).relu()))


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.start = nn.Linear(2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.end = nn.Linear(width, 1)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = block(x)
        return self.end(x) * self.scale


class Regression:
    """Learns sin(a) + b from noised inputs; `at` runs something inside the loss of a step."""

    def __init__(self, at: dict[int, Callable[[Tensor], Tensor]] | None = None, width: int = 16) -> None:
        torch.manual_seed(0)
        self.module = Net(width)
        self.at = at or {}
        self.losses: dict[int, float] = {}
        self.validated: list[dict[str, Tensor]] = []

    def batch(self, step: int) -> dict[str, Tensor]:
        x = torch.randn(32, 2, generator=torch.Generator().manual_seed(step))
        return {"x": x, "y": x[:, :1].sin() + x[:, 1:]}

    def loss(self, batch: Any, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        noised = batch["x"] + 0.05 * torch.randn(batch["x"].shape, generator=generator)
        loss = (self.module(noised).float() - batch["y"]).square().mean()
        self.losses[step] = loss.item()
        if step in self.at:
            loss = self.at[step](loss)
        return {"loss": loss, "root": loss.detach().sqrt()}

    def validate(self) -> dict[str, float]:
        assert not self.module.training
        self.validated.append({n: p.detach().clone() for n, p in self.module.named_parameters()})
        batch = self.batch(10**6)
        return {"error": float((self.module(batch["x"]).float() - batch["y"]).square().mean())}

    def picture(self) -> Tensor:
        return torch.full((6, 8, 3), 90, dtype=torch.uint8)

    def export(self, folder: Path) -> None:
        save_weights(self.module.state_dict(), folder / "weights.safetensors")


def weights(phase: Regression) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in phase.module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def run(phase: Regression, config: TrainConfig, folder: Path, **more: Any) -> Regression:
    train(phase, config, folder, out=QUIET, **more)
    return phase


def interrupt(loss: Tensor) -> Tensor:
    raise KeyboardInterrupt


def ctrl_c(loss: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGINT)
    return loss


def terminate(loss: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [interrupt, ctrl_c, terminate])
def test_stop_and_resume_is_bit_equal(tmp_path: Path, optimizer: str, stop: Callable[[Tensor], Tensor]):
    config = replace(CONFIG, optimizer=optimizer)
    whole = run(Regression(), config, tmp_path / "whole")
    first = Regression(at={6: stop})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match=r"stopped after step [67]; run the same command again"):
        run(first, config, tmp_path / "parts")
    assert signal.getsignal(signal.SIGINT) is before
    torch.manual_seed(99)
    second = run(Regression(), replace(config, prefetch=False), tmp_path / "parts")
    assert min(second.losses) == (6 if stop is interrupt else 7)
    assert {**first.losses, **second.losses} == whole.losses
    assert same(weights(second), weights(whole))
    exported = [(tmp_path / name / "model" / "weights.safetensors").read_bytes() for name in ("whole", "parts")]
    assert exported[0] == exported[1]

    def told(name: str) -> list[dict[str, Any]]:
        free = {"seconds", "samples_per_second"}
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k not in free} for line in lines if line["kind"] != "event"]

    assert told("whole") == told("parts")


def test_a_crash_goes_on_from_the_last_checkpoint_and_its_metrics(tmp_path: Path):
    def crash(loss: Tensor) -> Tensor:
        raise RuntimeError("power cut")

    whole = run(Regression(), CONFIG, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(Regression(at={6: crash}), CONFIG, tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    second = run(Regression(), CONFIG, tmp_path / "parts")
    assert min(second.losses) == 4
    assert same(weights(second), weights(whole))
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 15))


def test_averages_are_swapped_in_for_validation_and_export_only(tmp_path: Path):
    phase = run(Regression(), CONFIG, tmp_path)
    assert phase.module.training
    final = dict(phase.module.named_parameters())
    assert not same(phase.validated[-1], final)
    exported = Net()
    load_ema(tmp_path, exported)
    assert same(phase.validated[-1], dict(exported.named_parameters()))


def test_a_network_that_was_read_to_evaluate_trains_as_any_other(tmp_path: Path):
    """Dropout from the first step on, so that steps before and behind a validation or a resume are alike."""
    fresh, read = Regression(), Regression()
    read.module.eval()
    run(fresh, CONFIG, tmp_path / "fresh")
    run(read, CONFIG, tmp_path / "read")
    assert same(weights(fresh), weights(read))


def test_kept_steps_are_what_shorter_runs_at_the_same_rate_export(tmp_path: Path):
    """A budget read off a run at a constant rate is the run of that budget."""
    constant = replace(CONFIG, decay_share=0.0)
    phase = run(Regression(), replace(constant, keep=(3, 5, 8)), tmp_path / "long")
    kept = sorted(path.name for path in (tmp_path / "long" / "kept").iterdir())
    assert kept == ["step-00000003", "step-00000005", "step-00000008"]
    lines = [line for line in read_metrics(tmp_path / "long" / "metrics.jsonl") if line["kind"] == "validation"]
    assert [line["step"] for line in lines] == [3, 5, 8, 10, 14]  # the kept steps, each once, and every fifth
    for steps, name in zip((3, 5, 8), kept):
        run(Regression(), replace(constant, steps=steps), tmp_path / name)
        exported = [
            folder / "weights.safetensors" for folder in (tmp_path / name / "model", tmp_path / "long/kept" / name)
        ]
        assert exported[0].read_bytes() == exported[1].read_bytes()
    assert same(weights(phase), weights(run(Regression(), constant, tmp_path / "plain")))
    with pytest.raises(ValueError, match="keep="):
        replace(CONFIG, keep=(0,))


def test_the_global_random_state_is_left_alone(tmp_path: Path):
    phase = Regression()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(phase, CONFIG, tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, value: float):
    seen: dict[int, dict[str, Tensor]] = {}
    phase = Regression()

    def look(step: int, spoil: bool) -> Callable[[Tensor], Tensor]:
        def act(loss: Tensor) -> Tensor:
            seen[step] = weights(phase)
            return loss * value if spoil else loss

        return act

    phase.at = {step: look(step, step == 5) for step in (4, 5, 6, 7)}
    run(phase, CONFIG, tmp_path)
    assert same(seen[5], seen[6])
    assert not same(seen[4], seen[5])
    assert not same(seen[6], seen[7])
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line.get("event") == "skipped"] == [6]
    assert [line["skipped"] for line in lines if line["kind"] == "train"] == [0] * 5 + [1] * 9
    assert 6 not in [line["step"] for line in lines if line["kind"] == "train" and "loss" in line]


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path):
    class Wild(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * float("inf")

    phase = run(Regression(at={3: Wild.apply}), CONFIG, tmp_path)
    assert all(value.isfinite().all() for value in weights(phase).values())
    state, _ = read_state(checkpoints(tmp_path)[-1])
    assert (state.step, state.skipped, state.skipped_in_row) == (14, 1, 0)


def test_too_many_skips_in_a_row_end_the_run(tmp_path: Path):
    spoiled = {step: (lambda loss: loss * float("nan")) for step in (5, 6, 7)}
    with pytest.raises(FloatingPointError, match="step 8: loss not finite for 3 steps in a row"):
        run(Regression(at=spoiled), replace(CONFIG, max_skips=3), tmp_path)


class Clock:
    """A clock that moves by a given time whenever a step is taken."""

    def __init__(self, per_step: float, phase: Regression) -> None:
        self.phase, self.per_step = phase, per_step

    def __call__(self) -> float:
        return len(self.phase.losses) * self.per_step


def test_minutes_trigger_the_decay_and_the_record_replays_it(tmp_path: Path):
    timed = Regression()
    config = replace(CONFIG, steps=None, minutes=1.0)
    run(timed, config, tmp_path / "timed", clock=Clock(6.0, timed))  # 48 s are over after 8 steps
    decay = next(line for line in read_metrics(tmp_path / "timed" / "metrics.jsonl") if line.get("event") == "decay")
    assert (decay["start"], decay["end"]) == (8, 10)
    assert len(timed.losses) == 10
    replayed = run(Regression(), replace(CONFIG, steps=None, decay_at=8), tmp_path / "again")
    assert replayed.losses == timed.losses
    assert same(weights(replayed), weights(timed))


def test_minutes_are_summed_over_resumes(tmp_path: Path):
    config = replace(CONFIG, steps=None, minutes=1.0)
    first = Regression(at={4: ctrl_c})
    with pytest.raises(Stopped):
        run(first, config, tmp_path, clock=Clock(6.0, first))
    assert read_state(checkpoints(tmp_path)[-1])[0].seconds == 30.0
    second = Regression()
    run(second, config, tmp_path, clock=Clock(6.0, second))
    assert list(second.losses) == [5, 6, 7, 8, 9]


def test_a_recorded_decay_outlives_a_stop(tmp_path: Path):
    config = replace(CONFIG, steps=None, minutes=1.0)
    first = Regression(at={8: ctrl_c})
    with pytest.raises(Stopped):
        run(first, config, tmp_path, clock=Clock(6.0, first))
    slow = Regression()
    run(slow, config, tmp_path, clock=Clock(1000.0, slow))
    assert list(slow.losses) == [9]


def test_other_settings_are_refused_by_name(tmp_path: Path):
    run(Regression(), CONFIG, tmp_path, settings={"data": {"clips": 100}})
    with pytest.raises(ValueError, match=r"train\.learning_rate=0\.001, now it is 0\.002"):
        run(Regression(), replace(CONFIG, learning_rate=2e-3), tmp_path, settings={"data": {"clips": 100}})
    with pytest.raises(ValueError, match=r"recipe\.data\.clips=100, now it is 200"):
        run(Regression(), CONFIG, tmp_path, settings={"data": {"clips": 200}})
    run(Regression(), replace(CONFIG, log_every=3, threads=1), tmp_path, settings={"data": {"clips": 100}})


def test_a_run_may_be_made_longer_before_its_decay(tmp_path: Path):
    whole = run(Regression(), replace(CONFIG, steps=20), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(Regression(at={7: ctrl_c}), CONFIG, tmp_path / "parts")
    longer = run(Regression(), replace(CONFIG, steps=20), tmp_path / "parts")
    assert same(weights(longer), weights(whole))


def test_a_length_that_has_passed_is_refused_and_leaves_the_run_as_it_was(tmp_path: Path):
    """Its rate would never fall, and nothing was said."""
    with pytest.raises(Stopped):
        run(Regression(at={7: ctrl_c}), replace(CONFIG, steps=20), tmp_path)
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for shorter in (replace(CONFIG, steps=4), replace(CONFIG, steps=None, decay_at=2)):
        with pytest.raises(ValueError, match=r"asked for \d steps in all, and 8 are done"):
            run(Regression(), shorter, tmp_path)
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert run(Regression(), replace(CONFIG, steps=10), tmp_path).losses


def test_a_length_below_the_end_of_a_rate_that_falls_is_refused(tmp_path: Path):
    """It was passed over, and the run went on to its recorded end."""
    falling = replace(CONFIG, steps=20, decay_share=0.9)
    with pytest.raises(Stopped):
        run(Regression(at={7: ctrl_c}), falling, tmp_path)
    told = r"asked for 12 steps in all, and the rate has been falling since step 2, to 0 at step 20"
    with pytest.raises(ValueError, match=told):
        run(Regression(), replace(falling, steps=12), tmp_path)
    assert run(Regression(), falling, tmp_path).losses


def test_a_finished_run_only_exports_again(tmp_path: Path):
    run(Regression(), CONFIG, tmp_path)
    exported = (tmp_path / "model" / "weights.safetensors").read_bytes()
    again = run(Regression(), CONFIG, tmp_path)
    assert not again.losses
    assert (tmp_path / "model" / "weights.safetensors").read_bytes() == exported


def test_the_last_step_is_validated_and_drawn_though_it_was_saved(tmp_path: Path):
    run(Regression(), replace(CONFIG, steps=8, checkpoint_every=4, validate_every=5, picture_every=5), tmp_path)
    validated = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "validation"]
    last = validated[-1]
    assert last % 4 == 0  # so that it was saved
    assert last % 5
    assert last == max(line["step"] for line in read_metrics(tmp_path / "metrics.jsonl"))
    assert (tmp_path / "pictures" / f"step-{last:06d}.png").is_file()


def test_half_written_checkpoints_are_never_loaded(tmp_path: Path):
    with pytest.raises(Stopped):
        run(Regression(at={6: ctrl_c}), CONFIG, tmp_path)
    good = checkpoints(tmp_path)[-1]
    (good.parent / "step-00000009.partial").write_bytes(good.read_bytes()[:1000])
    second = run(Regression(), CONFIG, tmp_path)
    assert min(second.losses) == 7


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path):
    run(Regression(), CONFIG, tmp_path)
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-00000012", "step-00000014"]


def test_damaged_checkpoints_are_named(tmp_path: Path):
    run(Regression(), CONFIG, tmp_path)
    older, newest = checkpoints(tmp_path)
    content = newest.read_bytes()
    newest.write_bytes(content[:-3] + bytes([content[-3] ^ 64]) + content[-2:])
    with pytest.raises(
        ValueError, match=r"step-00000014\.safetensors: tensor '.*' is damaged; delete it to go on from"
    ):
        run(Regression(), CONFIG, tmp_path)
    newest.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"step-00000014\.safetensors: damaged or not a checkpoint"):
        run(Regression(), CONFIG, tmp_path)
    newest.unlink()
    assert min(run(Regression(), CONFIG, tmp_path).losses) == 12
    assert older.exists()


def test_another_model_is_refused_by_tensor(tmp_path: Path):
    run(Regression(), CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"tensor 'model/start\.weight' has shape \(16, 2\), the model has \(24, 2\)"):
        run(Regression(width=24), CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"tensor 'model/weight' is missing"):
        load_ema(tmp_path, nn.Linear(2, 3))
    with pytest.raises(ValueError, match="no checkpoint here"):
        load_ema(tmp_path / "model", Net())


def test_the_folder_tells_the_story(tmp_path: Path):
    out = io.StringIO()
    train(Regression(), CONFIG, tmp_path, settings={"name": "tiny"}, out=out)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert {
        "step",
        "loss",
        "root",
        "learning_rate",
        "gradient_norm",
        "samples_per_second",
        "seconds",
        "skipped",
    } <= set(trained[0])
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [5, 10, 14]
    assert trained[-1]["loss"] < trained[0]["loss"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["train"]["steps"] == 14
    assert config["recipe"] == {"name": "tiny"}
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["step-000007.png", "step-000014.png"]
    with Image.open(tmp_path / "pictures" / pictures[0]) as image:
        assert image.size == (8, 6)
    assert "step 1/14" in out.getvalue()
    assert "left" in out.getvalue()


def test_batches_are_prepared_in_another_thread_one_ahead(tmp_path: Path):
    class Watched(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[str, int]] = []

        def batch(self, step: int) -> dict[str, Tensor]:
            self.asked.append((threading.current_thread().name.split("_")[0], step))
            return super().batch(step)

    asked = [(name, step) for name, step in run(Watched(), CONFIG, tmp_path).asked if step < 10**6]
    assert asked[:14] == [("batch", step) for step in range(14)]


def test_training_works_off_the_main_thread(tmp_path: Path):
    phase = Regression()
    worker = threading.Thread(target=run, args=(phase, CONFIG, tmp_path))
    worker.start()
    worker.join()
    assert len(phase.losses) == 14
