"""A scaling curve: three sizes of a recipe's transformer by three budgets of clips, predicted before it is measured.

    python examples/scaling.py train runs/pond -o runs/scaling --only small middle
    python examples/scaling.py predict -o runs/scaling
    python examples/scaling.py train runs/pond -o runs/scaling --only large
    python examples/scaling.py report -o runs/scaling --plot docs/pictures/scaling.svg

A run is at a constant rate, so that its averaged weights after 1x, 2x and 4x clips are models of three budgets. The law
is a power of both, log loss = a + b log parameters + c log clips, by least squares; adherence follows the same form in
log odds. `predict` fits the smaller sizes and refuses once the largest has been looked at.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from scaling_plot import draw
from scipy.special import stdtrit
from trial_jobs import Job, Pool, models, parse_slots, plan, report_of, slug

from carrara.core.config import choose, from_dict, read_json, to_dict, write_json
from carrara.denoisers.dit import DiT
from carrara.evaluation.adherence.verdicts import ATTRIBUTES
from carrara.recipes.trials import open_run, read_curve


@dataclass(frozen=True)
class Study:
    """Budgets of clips; sizes, from small to large, as changes to the recipe; and how many prompts are read of each."""

    clips: tuple[int, ...]
    sizes: dict[str, Any]
    recipe: str = "pond"
    settings: dict[str, Any] | None = None
    prompts: int = 0

    @property
    def largest(self) -> str:
        return list(self.sizes)[-1]


@dataclass(frozen=True)
class Cell:
    """One size at one budget.

    parameters: of the transformer; flops: 6 x parameters x tokens x clips; loss: the mean of validation's; adherence:
    the mean over attributes of the share that is right, on `verdicts` prompts, None where it was not read.
    """

    size: str
    clips: int
    parameters: int
    flops: float
    loss: float
    adherence: float | None = None
    verdicts: int = 0


@dataclass(frozen=True)
class Law:
    """y = a + b log parameters + c log clips, by least squares.

    spread: standard deviation of what is left; freedom: points less three; inverse: (X'X)^-1 of the fit's inputs.
    """

    a: float
    b: float
    c: float
    spread: float
    freedom: int
    inverse: tuple[tuple[float, ...], ...]

    def __call__(self, parameters: float, clips: float) -> float:
        return self.a + self.b * math.log(parameters) + self.c * math.log(clips)

    def reach(self, parameters: float, clips: float) -> float:
        """Half of the 95% prediction interval of a new point, which widens away from those that were fitted."""
        if not self.freedom:
            return math.inf
        x = np.array([1.0, math.log(parameters), math.log(clips)])
        leverage = float(x @ np.array(self.inverse) @ x)
        return float(stdtrit(self.freedom, 0.975)) * self.spread * math.sqrt(1 + leverage)

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float, float]]) -> Law:
        """Through (parameters, clips, y). Raises ValueError unless sizes and budgets both vary."""
        inputs = np.array([[1.0, math.log(n), math.log(d)] for n, d, _ in points])
        if len(points) < 3 or np.linalg.matrix_rank(inputs) < 3:
            raise ValueError("a law needs at least two sizes and two budgets; train and keep more of them")
        values = np.array([y for _, _, y in points])
        a, b, c = np.linalg.lstsq(inputs, values, rcond=None)[0].tolist()
        left = values - inputs @ np.array([a, b, c])
        freedom = len(points) - 3
        spread = math.sqrt(float(left @ left) / freedom) if freedom else 0.0
        inverse = tuple(map(tuple, np.linalg.inv(inputs.T @ inputs).tolist()))
        return cls(a, b, c, spread, freedom, inverse)


def odds(share: float, count: int) -> float:
    """Log odds of a share of so many verdicts, half a verdict drawn in from both ends so that it is finite."""
    right = share * count
    return math.log((right + 0.5) / (count - right + 0.5))


def chance(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def laws(cells: Sequence[Cell]) -> dict[str, Law]:
    """The law of the loss, and that of adherence where every cell has it."""
    found = {"loss": Law.fit([(c.parameters, c.clips, math.log(c.loss)) for c in cells])}
    if all(cell.adherence is not None for cell in cells):
        found["adherence"] = Law.fit([(c.parameters, c.clips, odds(c.adherence or 0.0, c.verdicts)) for c in cells])
    return found


def read_cells(folder: Path, study: Study, sizes: Sequence[str]) -> list[Cell]:
    """What the finished runs of these sizes have measured. Raises ValueError for one that has not finished."""
    cells = []
    for size in sizes:
        job = make_job(study, size, folder, "")
        recipe, home = plan(job), Path(job.folder)
        if not (home / "model").is_dir():
            raise ValueError(f"{home}: has not finished; run `scaling.py train ... --only {size}` again to resume")
        curve = read_curve(home, recipe.denoiser.batch)
        frames, rows, columns = recipe.shape.latent(recipe.autoencoder.model.stride).tokens(recipe.denoiser.model.patch)
        for model in models(home):
            clips = int(model.name.removeprefix("step-")) * recipe.denoiser.batch
            parameters = count_parameters(model)
            flops = 6.0 * parameters * frames * rows * columns * clips
            adherence, verdicts = read_adherence(model, study.prompts)
            cells.append(Cell(size, clips, parameters, flops, curve.at(clips)["loss_mean"], adherence, verdicts))
    return cells


def count_parameters(model: Path) -> int:
    """Weights of a model folder's transformer."""
    count = 0
    for path in sorted((model / "transformer").glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def read_adherence(model: Path, prompts: int) -> tuple[float | None, int]:
    """The mean share over attributes and the number of prompts, if they were measured."""
    path = report_of(model, prompts)
    if not prompts or not path.is_file():
        return None, 0
    shares = [found["share"] for name, found in read_json(path).items() if name in ATTRIBUTES and found["total"]]
    return sum(shares) / len(shares), prompts


def make_job(study: Study, size: str, folder: Path, run: str, threads: int = 0) -> Job:
    settings = {**(study.settings or {}), **study.sizes[size]}
    return Job(
        size, study.recipe, settings, run, str(folder / slug(size)), None, study.clips, threads, prompts=study.prompts
    )


def read_study(path: Path) -> Study:
    """The study of a JSON file. Raises ValueError for one that cannot be fitted."""
    study = from_dict(Study, read_json(path), str(path))
    if len(study.clips) < 2 or len(study.sizes) < 3:
        raise ValueError(f"{path}: {len(study.clips)} budgets of {len(study.sizes)} sizes; give at least 2 of 3")
    return study


def train(options: argparse.Namespace) -> int:
    """Train the sizes asked for. The study is kept in the folder, and later commands take it from there."""
    kept = options.output / "study.json"
    study = read_study(kept if kept.is_file() else options.study)
    sizes = options.only or list(study.sizes)
    if study.largest in sizes and not (options.output / "prediction.json").is_file():
        raise ValueError(
            f"{study.largest} is predicted before it is trained: train the others (--only "
            f"{' '.join(list(study.sizes)[:-1])}), then run `scaling.py predict -o {options.output}`"
        )
    slots = parse_slots(options.cores)
    threads = options.threads or len(slots[0])
    jobs = [
        make_job(
            study, choose("size", size, dict.fromkeys(study.sizes, size)), options.output, str(options.run), threads
        )
        for size in sizes
    ]
    plans = [plan(job) for job in jobs]  # every mistake is found before the first size is trained
    open_run(plans[0], options.run)
    write_json(kept, to_dict(study))
    return 1 if Pool(slots).run(jobs) else 0


def predict(options: argparse.Namespace) -> int:
    """Write down what the largest size will do, from the smaller ones alone."""
    study = read_study(options.output / "study.json")
    if (options.output / slug(study.largest) / "metrics.jsonl").is_file():
        raise ValueError(f"{study.largest} has been looked at in {options.output}: it is too late to predict it")
    cells = read_cells(options.output, study, list(study.sizes)[:-1])
    found = laws(cells)
    job = make_job(study, study.largest, options.output, "")
    parameters = future_parameters(job)
    predictions = []
    for clips in sorted({cell.clips for cell in cells}):
        entry = {"clips": clips, "parameters": parameters, **band("loss", found["loss"], parameters, clips, math.exp)}
        if "adherence" in found:
            entry |= band("adherence", found["adherence"], parameters, clips, chance)
        predictions.append(entry)
    report = {
        "size": study.largest,
        "from": [asdict(cell) for cell in cells],
        "laws": {name: asdict(law) for name, law in found.items()},
        "predictions": predictions,
    }
    write_json(options.output / "prediction.json", report)
    print(json.dumps(report["predictions"], indent=2))
    return 0


def band(name: str, law: Law, parameters: int, clips: int, shown: Callable[[float], float]) -> dict[str, float]:
    """A prediction with its 95% interval; shown: from the law's logarithms to what is measured."""
    value, reach = law(parameters, clips), law.reach(parameters, clips)
    return {name: shown(value), f"{name} low": shown(value - reach), f"{name} high": shown(value + reach)}


def future_parameters(job: Job) -> int:
    """Weights of a transformer that has not been trained, from its configuration."""
    recipe = plan(job)
    channels = recipe.autoencoder.model.latent_channels
    config = replace(
        recipe.denoiser.model, in_channels=channels, out_channels=channels, text_dim=recipe.denoiser.text_width
    )
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DiT(config).parameters())


def report(options: argparse.Namespace) -> int:
    """Print the table, and draw the curve."""
    study = read_study(options.output / "study.json")
    finished = [size for size in study.sizes if (options.output / slug(size) / "model").is_dir()]
    cells = read_cells(options.output, study, finished)
    path = options.output / "prediction.json"
    predicted = read_json(path)["predictions"] if path.is_file() else []
    found = laws(cells)
    text = table(cells, predicted, study.largest, found)
    (options.output / "table.md").write_text(text, encoding="utf-8")
    print(text)
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        tokens = cells[0].flops / (6.0 * cells[0].parameters * cells[0].clips)
        points = {size: [(c.flops, c.loss) for c in cells if c.size == size] for size in finished}
        told = [(6.0 * p["parameters"] * tokens * p["clips"], p["loss"]) for p in predicted]
        options.plot.write_text(draw(points, told, study.largest), encoding="utf-8")
        print(options.plot)
    return 0


def table(cells: Sequence[Cell], predicted: Sequence[Mapping[str, Any]], largest: str, found: Mapping[str, Law]) -> str:
    """Markdown: what was measured, beside what had been predicted, and the laws of all that is there."""
    told = {entry["clips"]: entry for entry in predicted}
    lines = ["| size | parameters | clips | FLOPs | loss | predicted | adherence | predicted |", "|" + "---|" * 8]
    for cell in cells:
        entry = told.get(cell.clips, {}) if cell.size == largest else {}
        loss = f"{entry['loss']:.4f} [{entry['loss low']:.4f}, {entry['loss high']:.4f}]" if entry else ""
        share = (
            f"{entry['adherence']:.0%} [{entry['adherence low']:.0%}, {entry['adherence high']:.0%}]"
            if "adherence" in entry
            else ""
        )
        read = "" if cell.adherence is None else f"{cell.adherence:.0%}"
        cells_of_row = (cell.size, f"{cell.parameters / 1e6:.2f} M", f"{cell.clips:,}", f"{cell.flops:.2e}")
        lines.append(f"| {' | '.join((*cells_of_row, f'{cell.loss:.4f}', loss, read, share))} |")
    lines.append("")
    for name, law in found.items():
        what = "log loss" if name == "loss" else "log odds of adherence"
        terms = f"{law.a:.3f} {law.b:+.3f} log parameters {law.c:+.3f} log clips"
        lines.append(f"{what} = {terms}, to within {law.spread:.3f} (1 s.d.)")
    return "\n".join([*lines, ""])


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training = commands.add_parser("train", help="train sizes at a constant rate, keeping every budget")
    training.add_argument("run", type=Path, help="folder of a run with a finished autoencoder and latents")
    training.add_argument("--study", type=Path, default=Path(__file__).with_name("scaling.json"))
    training.add_argument("--only", nargs="*", default=[], metavar="SIZE")
    training.add_argument("--cores", nargs="*", default=[], metavar="CORES", help="a slot each: 0 1, or 0,1 for both")
    training.add_argument("--threads", type=int, default=0)
    predicting = commands.add_parser("predict", help="write down what the largest size will do")
    reporting = commands.add_parser("report", help="print the table, draw the curve")
    reporting.add_argument("--plot", type=Path, help="an SVG")
    for command, act in ((training, train), (predicting, predict), (reporting, report)):
        command.add_argument("-o", "--output", type=Path, required=True, help="the study's folder")
        command.set_defaults(act=act)
    options = parser.parse_args(args)
    try:
        return int(options.act(options))
    except ValueError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
