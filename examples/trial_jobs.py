"""Trials in processes of their own, each pinned to its cores: what `ablate.py` and `scaling.py` share.

A job trains one variant of a recipe on what a run has made, and on request measures the adherence of the models it
leaves on validation prompts, from written MP4s. Jobs resume where they stopped.
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from carrara.core.config import choose, read_json, write_json
from carrara.core.media import read_video
from carrara.evaluation.adherence.verdicts import ATTRIBUTES, score
from carrara.evaluation.prompts import Prompt, draw_prompts
from carrara.evaluation.reading.clip import read_clip
from carrara.evaluation.statistics import tally
from carrara.generation.request import Request
from carrara.generation.run import GenerationError, Model, load
from carrara.recipes import RECIPES
from carrara.recipes.trials import changed, for_clips, for_minutes, open_run, train_trial

CLIPS = "-clips"  # ends the name of the folder of clips that a model made
VALIDATION_SEED = 1000  # prompts to choose by; the scores that count come from others


@dataclass(frozen=True)
class Job:
    """One trial. settings: changes to the recipe; minutes of training, or budgets of clips at a constant rate;
    cores: none leaves the choice to the system; prompts: how many validation prompts, 0 for none."""

    name: str
    recipe: str
    settings: dict[str, Any]
    run: str
    folder: str
    minutes: float | None = None
    clips: tuple[int, ...] = ()
    threads: int = 0
    cores: tuple[int, ...] = ()
    prompts: int = 0
    validate_every: int = 250


def plan(job: Job) -> Any:
    """The job's recipe. Raises ValueError for settings that are wrong, before anything runs."""
    recipe: Any = changed(choose("recipe", job.recipe, RECIPES)(), job.settings)
    if job.minutes is not None:
        return for_minutes(recipe, job.minutes, job.threads, job.validate_every)
    return for_clips(recipe, job.clips, job.threads, job.validate_every)


def work(job: Job) -> None:
    """Train, then measure the models that the training left."""
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    recipe, folder = plan(job), Path(job.folder)
    train_trial(recipe, open_run(recipe, Path(job.run)), folder)
    torch.set_num_threads(job.threads or torch.get_num_threads())
    if job.prompts:
        for model in models(folder):
            measure(model, job.prompts)


def models(folder: Path) -> list[Path]:
    """The models of a trial: those of its budgets, else the one at its end. Beside each are clips that it made."""
    kept = sorted((folder / "kept").glob("step-*"))
    return [model for model in kept if not model.name.endswith(CLIPS)] or [folder / "model"]


def report_of(model: Path, prompts: int) -> Path:
    """Where the shares of a model folder are, once so many prompts were read: beside it, with the clips."""
    return model.with_name(f"{model.name}{CLIPS}") / f"adherence-{prompts}.json"


def measure(folder: Path, prompts: int) -> dict[str, Any]:
    """Shares of what was asked, read from MP4s beside the model folder; clips that are there are not made again.

    The prompts are of combinations that training may show: held-out ones are never chosen by.
    """
    report = report_of(folder, prompts)
    if report.is_file():
        return read_json(report)
    home = report.parent
    home.mkdir(parents=True, exist_ok=True)
    model = load(str(folder))
    drawn = [prompt for prompt in draw_prompts(2 * prompts, VALIDATION_SEED) if prompt.split == "held in"]
    verdicts = [judge(model, prompt, home / f"{index:04d}.mp4") for index, prompt in enumerate(drawn)]
    shares = {name: share.plain() for name, share in tally(verdicts, (*ATTRIBUTES, "all")).items()}
    write_json(report, shares)
    return shares


def judge(model: Model, prompt: Prompt, path: Path) -> dict[str, bool]:
    """What is right in the clip of one prompt; nothing, where a young model gives nothing that could be shown."""
    shown = True
    if not path.is_file():
        try:
            request = Request(prompt.text, seed=prompt.seed, model=model.name)
            model.write(model.plan(request), path, overwrite=True, progress=False)
        except GenerationError:
            shown = False
    defaults = model.system.defaults
    frames = torch.zeros(defaults.frames, defaults.height, defaults.width, 3, dtype=torch.uint8)
    fps = defaults.fps
    if shown:
        frames, fps, _ = read_video(path)
    return {name: shown and right for name, right in score(read_clip(frames.numpy(), fps), prompt.asked).items()}


def slug(name: str) -> str:
    """A trial's name as that of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


@dataclass
class Pool:
    """Runs jobs in processes, one at a time on each slot; a slot is a set of cores."""

    slots: Sequence[tuple[int, ...]]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Run all jobs; returns the names of those that failed, which have said why in their `job.log`."""
        free: queue.Queue[tuple[int, ...]] = queue.Queue()
        for slot in self.slots:
            free.put(slot)

        def one(job: Job) -> str | None:
            cores = free.get()
            try:
                return None if self._process(replace(job, cores=cores)) == 0 else job.name
            finally:
                free.put(cores)

        try:
            with ThreadPoolExecutor(len(self.slots)) as threads:
                return [name for name in threads.map(one, jobs) if name]
        finally:
            for process in self.running:  # where this was interrupted: jobs save, and resume when run again
                if process.poll() is None:
                    process.terminate()

    def _process(self, job: Job) -> int:
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        threads = job.threads or len(job.cores) or os.cpu_count() or 1
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        print(f"{job.name}: {folder / 'job.log'}", flush=True)
        with (folder / "job.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(asdict(job))], stdout=log, stderr=log, env=environment
            )
            self.running.append(process)
            code = process.wait()
        print(f"{job.name}: {'done' if code == 0 else f'failed with code {code}'}", flush=True)
        return code


def parse_slots(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """["0", "1"] is two slots of one core, ["0,1"] one of two, [] one slot of whatever there is."""
    try:
        return [tuple(int(core) for core in text.split(",")) for text in texts] or [()]
    except ValueError:
        raise ValueError(f"cores {' '.join(texts)}: give numbers, such as 0 1 (two slots) or 0,1 (one)") from None


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    work(Job(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}))
