"""The scoreboard: every system trained with the same compute on the same world, then asked the same prompts.

    carrara systems --run runs/systems --flops 1e15

Rows and their trainings (`--seeds`) are made one after the other in folders of their own; what is finished is left
alone, so the same command goes on after a stop. Who loads a model and makes clips of it is passed in. Not counted as
training: the latent system's autoencoder, which is given, or trained for its recipe's own length; it stands beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from carrara.core.config import choose, read_json, to_dict, write_json
from carrara.core.files import check_folder
from carrara.core.media import write_picture
from carrara.core.precision import dtype_of
from carrara.core.types import VideoShape
from carrara.evaluation.prompts import check_prompts, draw_prompts
from carrara.evaluation.scoreboard import ASKED, MEASURES, PARTS, Cell, cells_of, over_trainings, side_by_side, stacked
from carrara.evaluation.sources import MODEL, TRUTH
from carrara.evaluation.statistics import mean_estimate
from carrara.evaluation.subject import Subject
from carrara.evaluation.suite import evaluate
from carrara.recipes.compute import COMPUTE, check_flops
from carrara.recipes.device import chosen_device
from carrara.recipes.pond import PondRecipe
from carrara.recipes.prepared_clips import without_folder
from carrara.recipes.runs import Recipe
from carrara.recipes.systems import SYSTEMS, Contest
from carrara.recipes.trials import Made, open_run, train_trial
from carrara.training.config import check_same

RECORDED = Path(__file__).parents[1] / "models" / "scoreboard.json"
PICTURED = 8  # prompts that are shown side by side
SETTINGS, BOARD = "settings.json", "scoreboard.json"


class Clips(Protocol):
    """A loaded model that makes clips as they are compared; see `carrara.generation.measured`."""

    @property
    def makes(self) -> VideoShape: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path]) -> None: ...

    def seconds(self, paths: Sequence[Path]) -> list[float]: ...

    def peak(self) -> int | None: ...


Opens = Callable[[Path, VideoShape, float, bool, str], Clips]
"""From a model's folder, the shape and rate that are compared, whether its frames are made alone, and what networks
compute in."""


@dataclass(frozen=True)
class Scoreboard:
    """One scoreboard.

    flops: for each system; seeds: trainings of each; prompts: clips of each training; rows: which systems; pond: a run
    of the recipe `pond` whose autoencoder and latents the latent system uses, None to make them; precision: what
    networks compute in when they make clips, "" for float32.
    """

    contest: Contest
    opens: Opens
    flops: float = 1e15
    seeds: int = 1
    prompts: int = 60
    rows: tuple[str, ...] = tuple(SYSTEMS)
    pond: Path | None = None
    precision: str = ""
    tell: Callable[[str], None] = print

    def __post_init__(self) -> None:
        check_flops(self.flops)
        check_prompts(self.prompts)
        dtype_of(self.precision)
        for row in self.rows:
            choose("row", row, SYSTEMS)
        if not self.rows or self.seeds < 1:
            raise ValueError(f"rows={self.rows}, seeds={self.seeds}: at least one of each")

    def make(self, folder: Path) -> dict[str, Any]:
        """Train and measure the rows below `folder`; returns the board of these and of what is there already, which is
        in `scoreboard.json`, with pictures beside it. Raises ValueError, before anything runs, for a folder of another
        scoreboard."""
        self._claim(folder)
        measured = {row: self._trainings(row, folder) for row in SYSTEMS if row in self.rows}
        shown = self._shown(folder)  # with what another process has measured meanwhile
        rows, truth = [], None
        for row in shown:
            found = measured.get(row) or self._trainings(row, folder)
            rows.append(self._row(row, found))
            truth = truth or next((each["truth"] for each in found if each["truth"]), None)
        if truth:
            rows.append(self._truth(truth))
        shape = self.contest.shape
        board = {
            "flops": self.flops,
            "seeds": self.seeds,
            "prompts": self.prompts,
            "read": f"{shape.frames} frames of {shape.width}x{shape.height} at {self.contest.fps:g} per second",
            "intervals": "95%, over trainings" if self.seeds > 1 else "95%, over prompts, of one training",
            "machine": f"{chosen_device('auto')}, {torch.get_num_threads()} threads",
            "command": f"carrara systems --flops {self.flops:g} --seeds {self.seeds} --prompts {self.prompts}"
            + (f" --precision {self.precision}" if self.precision else "")
            + (" --pond RUN" if self.pond else ""),
            **self._as_drawn(),
            "rows": rows,
        }
        write_json(folder / BOARD, board)
        self._picture(folder, shown)
        return board

    def _claim(self, folder: Path) -> None:
        """Make the folder that of this scoreboard, or see that it is."""
        now: dict[str, Any] = {"flops": self.flops, "prompts": self.prompts, "pond": str(self.pond or "")}
        now |= {"shape": to_dict(self.contest.shape), "fps": self.contest.fps} | self._as_drawn()
        now |= {each.name: _deciding(getattr(self.contest, each.name)) for each in fields(Contest)[:4]}
        check_folder(folder)
        path = folder / SETTINGS
        if path.is_file():
            check_same(read_json(path), now, path)
        if self.pond is not None and "latent" in self.rows:
            open_run(self.contest.latent, self.pond)
        write_json(path, now)

    def _shown(self, folder: Path) -> list[str]:
        """The rows that are asked for, and those of which all trainings have been measured."""
        done = {
            row
            for row in SYSTEMS
            if all((folder / row / f"seed-{seed}" / "row.json").is_file() for seed in range(self.seeds))
        }
        return [row for row in SYSTEMS if row in self.rows or row in done]

    def _as_drawn(self) -> dict[str, str]:
        return {"precision": self.precision} if self.precision else {}

    def _trainings(self, row: str, folder: Path) -> list[dict[str, Any]]:
        return [self._measured(row, folder / row, seed) for seed in range(self.seeds)]

    def _measured(self, row: str, home: Path, seed: int) -> dict[str, Any]:
        """What is known of one training of a row, made or read back; a failure to make clips is told in its cells."""
        folder = home / f"seed-{seed}"
        if (folder / "row.json").is_file():
            return read_json(folder / "row.json")
        self.tell(f"{row}, seed {seed}: training")
        model, beside = self._trained(row, home, folder, seed)
        compute = checked(row, read_json(folder / COMPUTE))
        self.tell(f"{row}, seed {seed}: measuring")
        found: dict[str, Any] = {"model": str(model), "flops": compute, "beside": beside, "truth": {}}
        contest = self.contest
        try:
            clips = self.opens(model, contest.shape, contest.fps, SYSTEMS[row].alone, self.precision)
            made = clips.makes
            found["makes"] = f"{made.frames} of {made.width}x{made.height} at {contest.fps:g} fps"
            subject = Subject(contest.shape, contest.fps, clips, about={"model": SYSTEMS[row].title, **clips.about})
            sections = evaluate(
                subject, folder / "evaluation", only=PARTS, prompts=self.prompts, tell=lambda line: None
            )
            found["truth"] = _plain(cells_of(sections, TRUTH))
            written = sorted((folder / "evaluation" / MODEL).glob("*.mp4"))
            found["cells"] = _plain(cells_of(sections, MODEL) | _costs(clips, written))
        except (ValueError, RuntimeError) as error:  # is told, and tried again by the next call
            found.setdefault("makes", "-")
            why = f"failed: {' '.join(str(error).split())}"
            return found | {"cells": _plain(dict.fromkeys(MEASURES, Cell(None, "-")) | {ASKED: Cell(None, why)})}
        write_json(folder / "row.json", found)
        return found

    def _trained(self, row: str, home: Path, folder: Path, seed: int) -> tuple[Path, str]:
        """The trained model of a row, and what was trained beside its compute."""
        recipe = self.contest.recipe(row, self.flops, seed)
        if not isinstance(recipe, PondRecipe):
            return recipe.run(folder), "-"
        made = open_run(recipe, self.pond) if self.pond else self._latents(home)
        compute = made.autoencoder.parent / COMPUTE
        spent = f"{read_json(compute)['flops']:.3g} FLOP" if compute.is_file() else "not counted"
        return train_trial(recipe, made, folder), f"autoencoder, {spent}"

    def _latents(self, home: Path) -> Made:
        """The latent system's autoencoder and cached clips, the same for all trainings."""
        recipe = self.contest.latent
        device = torch.device(chosen_device(recipe.device))
        trained = recipe.train_autoencoder(home / "autoencoder", device)
        return Made(trained, *recipe.cache_latents(home, trained, device), device)

    def _row(self, row: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        system = SYSTEMS[row]
        cells = {key: over_trainings([Cell.of(each["cells"][key]) for each in found]) for key in MEASURES}
        return {
            "name": row,
            "title": system.title,
            "recipe": system.recipe,
            "makes": found[0]["makes"],
            "flops": float(np.mean([each["flops"] for each in found])),
            "beside": found[0]["beside"],
            "cells": _plain(cells),
        }

    def _truth(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """The ceiling: the world's own clips of the same prompts."""
        none = _plain(dict.fromkeys(MEASURES, Cell(None, "-")))
        about = {"name": TRUTH, "title": "truth", "recipe": None, "makes": "-", "flops": None, "beside": "-"}
        return {**about, "cells": {**none, **cells}}

    def _picture(self, folder: Path, rows: Sequence[str]) -> None:
        """The same prompts through every system: a picture for each prompt, and half of them on one sheet."""
        sheets = []
        for number, prompt in enumerate(draw_prompts(min(PICTURED, self.prompts))):
            places = {row: folder / row / "seed-0" / "evaluation" / MODEL for row in rows}
            if places:
                places |= {TRUTH: next(iter(places.values())).parent / TRUTH}
            files = {name: place / f"{number:04d}.mp4" for name, place in places.items()}
            there = {name: file for name, file in files.items() if file.is_file()}
            if there:
                sheets.append(side_by_side(prompt.text, there))
                write_picture(folder / "pictures" / f"prompt-{number}.png", torch.from_numpy(sheets[-1].copy()))
        if sheets:
            write_picture(folder / "scoreboard.png", torch.from_numpy(stacked(sheets[: PICTURED // 2])))


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings without where it runs and what it reads: all rows learn the same world."""
    whole = without_folder(recipe.recorded())
    whole.pop("device")
    return whole


def checked(row: str, compute: Mapping[str, Any]) -> int:
    """FLOP of all stages. Raises ValueError where one that the system must have is missing."""
    stages = [stage["stage"] for stage in compute.get("stages", [compute])]
    missing = [stage for stage in SYSTEMS[row].stages if stage not in stages]
    if missing:
        raise ValueError(f"{row}: stage {', '.join(missing)} was not trained; {row} is compared whole")
    return int(compute["flops"])


def _costs(clips: Clips, written: Sequence[Path]) -> dict[str, Cell]:
    peak = clips.peak()
    memory = Cell(None, "not told here") if peak is None else Cell(mean_estimate([round(peak / 2**20)]))
    return {"seconds": Cell(mean_estimate(clips.seconds(written))), "memory": memory}


def _plain(cells: Mapping[str, Cell]) -> dict[str, Any]:
    return {key: cell.plain() for key, cell in cells.items()}
