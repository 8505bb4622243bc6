"""Laws of training on several processes: it is the same training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from carrara.training.checkpoint import checkpoints, load_ema
from carrara.training.config import Parallel, TrainConfig
from carrara.training.metrics import read_metrics
from carrara.training.parallel import Team, join
from carrara.training.pieces import Pieces, cut
from carrara.training.sharding import Rows


@dataclass
class Runs:
    """The folder in which two processes have worked, and one beside them."""

    folder: Path
    one: ranks.Denoising
    codes: dict[str, list[int]]
    told: dict[str, str]

    def losses(self, name: str) -> list[float]:
        return [line["loss"] for line in read_metrics(self.folder / name / "metrics.jsonl") if line["kind"] == "train"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return ranks.tensors_of(checkpoints(self.folder / name)[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    top = tmp_path_factory.mktemp("ranks")
    folder, threads = top / "all", torch.get_num_threads()
    torch.set_num_threads(1)
    ranks.run(top / "saved-by-one", replace(ranks.MUON, steps=3))
    ranks.run(top / "begun-by-one", replace(ranks.CONSTANT, steps=3))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, ranks.__file__, str(top)], env=environment)
    one = ranks.run(top / "one")
    ranks.run(top / "one-words-kept", ranks.CONFIG, ranks.WordsKept())
    ranks.run(top / "one-constant", ranks.CONSTANT)
    ranks.run(top / "one-piece", replace(ranks.CONFIG, pieces=1))
    ranks.run(top / "one-uneven", ranks.CONFIG, ranks.Denoising(uneven=True))
    ranks.run(top / "one-muon", ranks.MUON)
    ranks.run(top / "one-bfloat16", replace(ranks.CONFIG, precision="bfloat16"))
    assert process.wait(timeout=280) == 0
    codes = json.loads((top / "codes.json").read_text())
    told = {path.stem: path.read_text() for path in top.glob("*.told")}
    assert codes["all"] == [0, 0], told
    for path in top.iterdir():
        if path.is_dir() and path != folder and not (folder / path.name).exists():
            path.rename(folder / path.name)
    ranks.run(folder / "begun-by-two", ranks.CONSTANT)
    torch.set_num_threads(threads)
    return Runs(folder, one, codes, told)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("two", "one"),
    [
        ("sharded", "one"),
        ("copied", "one-muon"),
        ("muon", "one-muon"),
        ("sequence", "one-piece"),
        ("uneven", "one-uneven"),
        ("words-kept", "one-words-kept"),
        ("begun-by-one", "one-constant"),
        ("begun-by-two", "one-constant"),
    ],
)
def test_two_processes_equal_one(runs: Runs, two: str, one: str):
    """Losses of all steps, gradients' norms that clip, validation with averaged weights, and what is exported."""
    # Muon rounds to bfloat16 on the way: a last bit of a gradient may become a thousandth of an update.
    assert runs.losses(two) == pytest.approx(runs.losses(one), abs=1e-6 if one != "one-muon" else 1e-5)
    lines = [read_metrics(runs.folder / name / "metrics.jsonl") for name in (two, one)]
    for key in ("gradient_norm", "twice", "error"):
        found, wanted = ({line["step"]: line[key] for line in each if key in line} for each in lines)
        assert len(wanted) == (3 if key == "error" else 6)
        # A run that ended early, and then went on, was validated there too.
        ended = {3} if two.startswith("begun") and key == "error" else set()
        assert found.keys() - wanted.keys() == ended
        assert [found[step] for step in wanted] == pytest.approx(list(wanted.values()), abs=2e-5, rel=1e-5)
    exported = [load_file(runs.folder / name / "model" / "weights.safetensors") for name in (two, one)]
    assert apart(*exported) < (1e-5 if one != "one-muon" else 2e-4)


def test_muon_of_rows_is_muon(runs: Runs):
    """To the bit, for matrices that do not divide, too: one row, tall, wide."""
    whole = [nn.Parameter(value) for value in ranks.drawn(0)]
    muon = torch.optim.Muon(whole, lr=0.1, adjust_lr_fn="match_rms_adamw")
    for step in (1, 2, 3):
        for parameter, gradient in zip(whole, ranks.drawn(step)):
            parameter.grad = gradient
        muon.step()
    parts = [load_file(runs.folder / f"muon-{rank}") for rank in (0, 1)]
    for number, parameter in enumerate(whole):
        assert torch.cat([part[str(number)] for part in parts]).equal(parameter.detach())


def test_clipping_was_at_work(runs: Runs):
    lines = read_metrics(runs.folder / "one" / "metrics.jsonl")
    assert min(line["gradient_norm"] for line in lines if line["kind"] == "train") > ranks.CONFIG.clip


def test_bfloat16_differs_by_no_more_than_its_rounding(runs: Runs):
    assert runs.losses("bfloat16") == pytest.approx(runs.losses("one-bfloat16"), rel=0.02)


def test_gradient_accumulation_is_what_two_processes_do(runs: Runs):
    assert all(len(losses) == 2 for losses in runs.one.losses.values())
    assert [sum(losses) / 2 for losses in runs.one.losses.values()] == pytest.approx(runs.losses("one"), abs=1e-6)


def test_resharding_is_exact(runs: Runs, tmp_path: Path):
    """Weights, averages and optimizer state, from one process to two and from two to one, to the bit."""
    saved, two, twice = (runs.tensors(f"saved-by-one{name}") for name in ("", "-then-two", "-then-two-twice"))
    ranks.reshard(runs.folder / "saved-by-one-then-two", tmp_path)
    one = ranks.tensors_of(checkpoints(tmp_path)[-1])
    assert any(name.endswith("/momentum_buffer") for name in saved)
    assert any(name.endswith("/exp_avg_sq") for name in saved)
    assert any(name.startswith("average/") for name in saved)
    for found in (two, twice, one):
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_each_process_writes_its_rows_alone(runs: Runs):
    first, second = (load_file(path) for path in sorted(checkpoints(runs.folder / "sharded")[-1].iterdir()))
    sharded = [name for name in first if "/denoiser." in name and not name.endswith("/step")]
    assert len(sharded) > 200
    sizes = [sum(part[name].nbytes for name in sharded) for part in (first, second)]
    assert 0.9 < sizes[1] / sizes[0] < 1.0  # weights of one row are the first one's
    assert not any("words" in name for name in second)


def test_averages_of_a_sharded_run_fill_a_plain_module(runs: Runs):
    phase = ranks.Denoising()
    load_ema(runs.folder / "sharded", phase.module)
    exported = load_file(runs.folder / "sharded" / "model" / "weights.safetensors")
    assert all(torch.equal(value, exported[name]) for name, value in phase.module.state_dict().items())


def test_one_process_writes(runs: Runs):
    lines = (runs.folder / "sharded" / "metrics.jsonl").read_text().splitlines()
    trained = [json.loads(line)["step"] for line in lines if json.loads(line)["kind"] == "train"]
    assert trained == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in checkpoints(runs.folder / "sharded")] == ["step-00000003", "step-00000006"]
    assert not list((runs.folder / "sharded").rglob("*.partial"))
    assert len(list((runs.folder / "sharded" / "pictures").iterdir())) == 2
    pictures = [(runs.folder / name / "pictures/step-000003.png").read_bytes() for name in ("sharded", "one")]
    assert pictures[0] == pictures[1]


def test_missing_and_damaged_parts_are_refused(runs: Runs, tmp_path: Path):
    import shutil

    shutil.copytree(runs.folder / "sharded", tmp_path / "run")
    newest = checkpoints(tmp_path / "run")[-1]
    part = newest / "part-00001-of-00002.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-2] + bytes([content[-2] ^ 64]) + content[-1:])
    with pytest.raises(
        ValueError, match=r"step-00000006: tensor '.*' is damaged; delete it to go on from step-00000003"
    ):
        ranks.run(tmp_path / "run")
    part.unlink()
    with pytest.raises(ValueError, match="step-00000006: parts are missing; delete it to go on from step-00000003"):
        ranks.run(tmp_path / "run")


@pytest.mark.parametrize("case", ranks.CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_split_sequences_are_whole_ones(runs: Runs, case: str, checkpointing: bool):
    """What the network makes and every gradient, of inputs and of weights."""
    made, gradients = ranks.flow_of(ranks.random_network(), case)
    for rank in (0, 1):
        found = load_file(runs.folder / f"{case}-{checkpointing}-{rank}")
        torch.testing.assert_close(found.pop("made"), made, rtol=1e-5, atol=1e-6)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * scale + 1e-7)


def test_what_cannot_be_split_is_refused(runs: Runs):
    told = {path.name: path.read_text() for path in runs.folder.glob("refused-*")}
    assert "3 heads, which must divide by it; use one of 1, 3" in told["refused-heads"]
    assert "1 tokens for 2 processes: too short a clip to split; lower parallel.sequence" in told["refused-short"]
    for rank in (0, 1):
        assert "parallel.sequence=3 with 2 processes" in told[f"refused-sequence-{rank}"]
        assert "pieces=3 on 2 processes" in told[f"refused-pieces-{rank}"]
    with pytest.raises(ValueError, match=r"parallel\.sequence=2 with 1 process:"):
        ranks.run(runs.folder / "refused", replace(ranks.CONFIG, parallel=Parallel(sequence=2)))
    assert not (runs.folder / "refused").exists()


def test_what_one_makes_the_others_find(runs: Runs):
    assert [(runs.folder / f"found-by-{rank}").read_text() for rank in (0, 1)] == ["0", "0"]


@pytest.mark.parametrize("end", ["die", "hang"])
def test_a_process_that_is_lost_ends_the_run(runs: Runs, end: str):
    """With a word on what to do, at once or when patience is over; the last checkpoint stands."""
    assert runs.codes[end] == [1, 9 if end == "die" else -9]
    told = runs.told[f"{end}-0"]
    assert "process 0 of 2 lost the others" in told
    assert "run the same command again to go on from the last checkpoint" in told
    saved = [path.name for path in checkpoints(runs.folder / end)]
    assert saved == ["step-00000001.safetensors", "step-00000002.safetensors"]


def test_settings_that_a_checkpoint_does_not_know_had_their_defaults(tmp_path: Path):
    """Checkpoints written before there were pieces can be gone on with."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = replace(ranks.CONSTANT, steps=3, pieces=0)
    ranks.run(tmp_path, config)
    path = checkpoints(tmp_path)[-1]
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    settings = json.loads(header["settings"])
    for name in ("pieces", "parallel"):
        del settings["train"][name]
    save_file(load_file(path), path, {**header, "settings": json.dumps(settings)})
    assert sorted(ranks.run(tmp_path, replace(config, steps=4)).losses) == [3]
    with pytest.raises(ValueError, match=r"train\.pieces=0, now it is 2"):
        ranks.run(tmp_path, replace(config, steps=5, pieces=2))


def test_an_environment_without_a_meeting_place_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert join() == Team()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE=2 but RANK is not set; start with `torchrun"):
        join()
    assert "RANK" not in os.environ


@pytest.mark.parametrize(("whole", "size"), [(1, 2), (5, 2), (7, 4), (4, 8), (16, 4)])
def test_rows_are_dealt_as_torch_does(whole: int, size: int):
    chunks = torch.arange(whole).chunk(size)
    for rank in range(size):
        rows = Rows.of(whole, rank, size)
        expected = chunks[rank] if rank < len(chunks) else torch.arange(0)
        assert torch.arange(whole)[rows.start : rows.start + rows.count].equal(expected)


def test_pieces_are_the_batch_in_its_order():
    batch = {"x": torch.arange(6), "words": list("abcdef"), "pairs": torch.arange(12), "fps": 8.0, "name": "pond"}
    parts = [cut(batch, slice(start, start + 2), 6) for start in (0, 2, 4)]
    assert torch.cat([part["x"] for part in parts]).equal(batch["x"])
    assert [word for part in parts for word in part["words"]] == batch["words"]
    assert torch.cat([part["pairs"] for part in parts]).equal(batch["pairs"])
    assert all(part["fps"] == 8.0 and part["name"] == "pond" for part in parts)
    with pytest.raises(ValueError, match="has 5 rows and the batch 6: it cannot be cut"):
        cut({"x": torch.arange(6), "y": torch.arange(5)}, slice(0, 2), 6)


def test_every_piece_draws_its_own_numbers_and_none_of_those_of_batches():
    from carrara.data.batches import mix

    seeds = [Pieces.of(4, 0, 1).seed(3, 5, number) for number in range(4)]
    batches = [mix(3, 5), *(mix(3, 5, number) for number in range(4))]
    assert len({*seeds, *batches}) == len(seeds) + len(batches)


def test_settings_of_processes_are_checked():
    with pytest.raises(ValueError, match=r"parallel\.sequence=0: must be at least 1"):
        Parallel(sequence=0)
    with pytest.raises(ValueError, match="pieces=-1"):
        TrainConfig(steps=1, pieces=-1)
