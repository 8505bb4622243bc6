"""A run that is killed loses at most an interval of checkpoints, and goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kills
import pytest

from carrara.training.checkpoint import checkpoints, read_state

STEPS = kills.CONFIG.steps
assert STEPS is not None


class Trainer:
    """A process that forks one for every run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, kills.__file__]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path, **more: Any) -> int:
        """Begin a run and return its process."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), **more}) + "\n")
        self.process.stdin.flush()
        return self._said()

    def end(self) -> int:
        """Wait for the run and return how it ended: below 0 the signal."""
        return self._said()

    def run(self, folder: Path, **more: Any) -> int:
        self.start(folder, **more)
        return self.end()

    def kill(self, folder: Path, when: Callable[[], bool], **more: Any) -> int:
        """Kill a run, as soon as something holds, by a signal that nobody can catch. One that ends before is told."""
        process = self.start(folder, **more)
        assert process > 1
        try:
            while not when():
                if select.select([self.process.stdout], [], [], 0)[0]:
                    break
            else:
                os.kill(process, signal.SIGKILL)
        except BaseException:
            os.kill(process, signal.SIGKILL)
            self.end()  # or the next run would be told how this one ended
            raise
        return self.end()

    def _said(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    folder = tmp_path_factory.mktemp("kills")
    kills.write_clips(folder / "latents")
    made = Trainer(folder)
    assert made.run(folder / "whole") == 0
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(30)
    assert made.process.stdout is not None
    made.process.stdout.close()


def losses(folder: Path) -> list[tuple[int, str]]:
    """Every loss that was computed, in the order of time, to the bit."""
    path = folder / "losses"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(step), value) for step, value in (line.split() for line in lines)]


def half_written(folder: Path) -> list[Path]:
    """The files of checkpoints that are being written, or were when their process died."""
    found: list[Path] = []
    for place in folder.glob("checkpoints/*.partial"):
        with contextlib.suppress(FileNotFoundError):  # it was whole, and renamed, between the two looks
            found += place.iterdir()
    return found


def check_resumed(trainer: Trainer, folder: Path) -> None:
    """Go on, and compare with the run that nobody disturbed."""
    before = len(losses(folder))
    done = losses(folder)[-1][0] if before else 0
    saved = checkpoints(folder)
    first = read_state(saved[-1])[0].step if saved else 0
    assert trainer.run(folder) == 0, (folder / "error").read_text()
    after = losses(folder)[before:]
    assert done - first < kills.EVERY  # steps that are done again
    expected = dict(losses(trainer.folder / "whole"))
    assert all(expected[step] == value for step, value in losses(folder))
    assert [step for step, _ in after] == list(range(first, STEPS))
    weights = [path / "model" / "weights.safetensors" for path in (folder, trainer.folder / "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("step", [0, 2, 3, 7, 12])
def test_a_killed_run_goes_on_bit_for_bit(trainer: Trainer, step: int):
    folder = trainer.folder / f"killed-{step}"
    assert trainer.kill(folder, lambda: len(losses(folder)) > step, pause=0.01) == -signal.SIGKILL
    assert 0 < len(losses(folder)) < STEPS + 1
    check_resumed(trainer, folder)


def test_killed_again_and_again(trainer: Trainer):
    """Each time so early that it gets no further than one checkpoint, or not even there."""
    folder = trainer.folder / "killed-often"
    for steps in (2, 4, 1, 4, 3):
        before = len(losses(folder))
        code = trainer.kill(folder, lambda: len(losses(folder)) >= before + steps, pause=0.02)  # noqa: B023
        assert code == -signal.SIGKILL
    check_resumed(trainer, folder)


@pytest.mark.parametrize("save", ["first", "later"])
def test_killed_while_a_checkpoint_is_being_written(trainer: Trainer, save: str):
    """As soon as the half-written file is seen. Sometimes it is whole by the time it is looked for, or the signal
    comes: try again."""
    for attempt in range(20):
        folder = trainer.folder / f"writing-{save}-{attempt}"
        if save == "later":
            trainer.kill(folder, lambda: len(checkpoints(folder)) == 1, pause=0.005)  # noqa: B023
        code = trainer.kill(folder, lambda: bool(half_written(folder)), pause=0.005)  # noqa: B023
        if half := half_written(folder):
            assert code == -signal.SIGKILL
            assert len(half) == 1
            assert len(checkpoints(folder)) == (save == "later")
            check_resumed(trainer, folder)
            return
    pytest.fail("never caught in the act")


def test_dead_at_the_first_byte_of_a_checkpoint(trainer: Trainer):
    """The kernel ends the process where the file would grow too large, and nothing is cleaned up."""
    folder = trainer.folder / "first-byte"
    assert trainer.run(folder, limit=10_000, fatal=True) == -signal.SIGXFSZ
    assert len(losses(folder)) == kills.EVERY
    assert not checkpoints(folder)
    assert len(half_written(folder)) == 1
    check_resumed(trainer, folder)


def test_killed_while_the_model_is_exported(trainer: Trainer):
    folder = trainer.folder / "exporting"
    trainer.kill(folder, lambda: (folder / ".model.partial").exists() or (folder / "model").exists())
    assert len(losses(folder)) == STEPS
    assert trainer.run(folder) == 0
    assert len(losses(folder)) == STEPS
    weights = [path / "model" / "weights.safetensors" for path in (folder, trainer.folder / "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_full_disk_is_told_and_keeps_the_last_checkpoint(trainer: Trainer):
    folder = trainer.folder / "full"
    trainer.kill(folder, lambda: len(checkpoints(folder)) == 2, pause=0.01)
    kept = checkpoints(folder)
    content = kept[-1].read_bytes()
    assert trainer.run(folder, limit=len(content) // 2) == 2
    told = (folder / "error").read_text()
    assert told.startswith("OSError: ")
    assert "cannot be written" in told
    assert f"the last good checkpoint is {kept[-1].name}: free some space and run the same command again" in told
    assert checkpoints(folder) == kept
    assert kept[-1].read_bytes() == content
    assert not list(folder.rglob("*.partial"))
    check_resumed(trainer, folder)


def test_a_full_file_system_is_told_too(trainer: Trainer):
    """A real one, of a size that takes the first checkpoint and not the second."""
    size = checkpoints(trainer.folder / "whole")[0].stat().st_size
    place, after = trainer.folder / "small", trainer.folder / "small-after"
    spec = json.dumps({"folder": str(place)})
    kept = f"mount -t tmpfs -o size={size * 3 // 2} tmpfs {place}"
    command = f"{kept} && {{ {sys.executable} {kills.__file__} '{spec}'; code=$?; cp -a {place} {after}; exit $code; }}"
    place.mkdir()
    if subprocess.run(["unshare", "-rm", "sh", "-c", kept], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    told = (after / "error").read_text()
    assert "No space left on device" in told
    assert "the last good checkpoint is step-00000003.safetensors: free some space" in told
    after.rename(trainer.folder / "moved")
    check_resumed(trainer, trainer.folder / "moved")


def test_a_missing_shard_is_told_and_keeps_the_last_checkpoint(trainer: Trainer):
    folder = trainer.folder / "shards" / "run"
    shutil.copytree(trainer.folder / "latents", folder.parent / "latents")
    trainer.kill(folder, lambda: len(checkpoints(folder)) == 1, pause=0.01)
    kept = [(path, path.read_bytes()) for path in checkpoints(folder)]
    shard = sorted((folder.parent / "latents").glob("*.safetensors"))[1]
    shard.rename(shard.with_suffix(".away"))
    assert trainer.run(folder) == 2
    told = (folder / "error").read_text()
    assert told.startswith("ValueError: ")
    assert f"{shard}: missing" in told
    assert [(path, path.read_bytes()) for path in checkpoints(folder)] == kept
    shard.with_suffix(".away").rename(shard)
    check_resumed(trainer, folder)
