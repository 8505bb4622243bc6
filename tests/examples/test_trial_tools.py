"""The examples that compare trials: tables with their predictions, and a law that is written before it is tested."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from carrara.recipes import RECIPES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import ablate  # noqa: E402
import scaling  # noqa: E402
import scaling_plot  # noqa: E402
import trial_jobs  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = RECIPES["pond-tiny"]()
    recipe.cache_latents(
        folder, recipe.train_autoencoder(folder / "autoencoder", torch.device("cpu")), torch.device("cpu")
    )
    return folder


@pytest.fixture
def trials(tmp_path):
    path = tmp_path / "trials.json"
    entries = [
        {"name": "base", "settings": {}, "expected": 1.0, "prediction": "as it is"},
        {
            "name": "All Even",
            "settings": {"denoiser.times.uniform": 1.0},
            "expected": 1.1,
            "prediction": "ten percent worse",
        },
    ]
    path.write_text(json.dumps(entries))
    return path


def test_every_bundled_trial_is_a_recipe_and_the_base_comes_first():
    found = ablate.read_trials(EXAMPLES / "ablations.json")
    assert (found[0].settings, found[0].expected) == ({}, 1.0)
    plans = [trial_jobs.plan(trial_jobs.Job(t.name, "pond", t.settings, "", "", minutes=20)) for t in found]
    assert len({repr(plan) for plan in plans}) == len(plans)
    study = scaling.read_study(EXAMPLES / "scaling.json")
    sizes = [scaling.future_parameters(scaling.make_job(study, size, Path(), "")) for size in study.sizes]
    assert sizes == sorted(sizes)
    assert sizes[2] > 2 * sizes[1] > 4 * sizes[0]


def test_an_ablation_trains_in_processes_and_prints_predictions_beside_results(run, trials, tmp_path, capsys):
    command = [str(run), "-o", str(tmp_path / "out"), "--trials", str(trials), "--recipe", "pond-tiny"]
    command += ["--minutes", "0.002", "--validate-every", "1", "--adherence", "1", "--threads", "1"]
    assert ablate.main([*command, "--only", "All Even"]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "| All Even | 1.10 | 1.000 |" in table
    assert "ten percent worse" in table
    assert "validation prompts" in table
    stamp = (tmp_path / "out/all-even/model-clips/adherence-1.json").stat().st_mtime_ns
    assert ablate.main([*command, "--table"]) == 0  # the other has not run: it is left out
    assert (tmp_path / "out/all-even/model-clips/adherence-1.json").stat().st_mtime_ns == stamp


def test_mistakes_are_found_before_anything_runs(run, trials, tmp_path, capsys):
    command = [str(run), "-o", str(tmp_path / "out"), "--trials", str(trials), "--recipe", "pond-tiny"]
    for more, named in (
        (["--only", "bass"], "did you mean base"),
        (["--set", "denoiser.bach=3"], "did you mean batch"),
        (["--set", "denoiser.batch"], "name=value"),
        (["--cores", "one"], "cores one"),
    ):
        assert ablate.main([*command, *more]) == 2
        assert named in capsys.readouterr().err
    assert ablate.main([str(tmp_path), *command[1:]]) == 2
    assert "no trained autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_law_is_found_again_and_doubts_itself_far_away():
    points = [(n, d, 2.0 - 0.07 * math.log(n) - 0.2 * math.log(d)) for n in (1e5, 4e5) for d in (1e3, 2e3, 4e3)]
    law = scaling.Law.fit(points)
    assert (law.a, law.b, law.c) == pytest.approx((2.0, -0.07, -0.2))
    assert law(1e6, 1e4) == pytest.approx(2.0 - 0.07 * math.log(1e6) - 0.2 * math.log(1e4))
    assert law.reach(1e6, 1e4) < 1e-6
    noisy = scaling.Law.fit([(n, d, y + 0.01 * (-1) ** i) for i, (n, d, y) in enumerate(points)])
    assert noisy.reach(1e7, 1e4) > noisy.reach(1e6, 4e3) > noisy.reach(2e5, 2e3) > 0.02
    with pytest.raises(ValueError, match="two sizes"):
        scaling.Law.fit(points[:3])


def test_a_prediction_covers_as_often_as_it_says():
    """Over many noisy studies, a new point lies in its 95% interval 95 times of 100."""
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        noise = (0.03 * torch.randn(7, generator=generator, dtype=torch.float64)).tolist()
        places = [(n, d) for n in (1e5, 4e5) for d in (1e3, 2e3, 4e3)]
        law = scaling.Law.fit([(n, d, 1 - 0.1 * math.log(n) + e) for (n, d), e in zip(places, noise)])
        hits += abs(law(1e6, 4e3) - (1 - 0.1 * math.log(1e6) + noise[6])) < law.reach(1e6, 4e3)
    assert hits / 400 == pytest.approx(0.95, abs=0.03)


def test_odds_are_finite_and_go_back():
    assert scaling.chance(scaling.odds(0.75, 1000)) == pytest.approx(0.75, abs=0.001)
    assert math.isfinite(scaling.odds(0.0, 60))
    assert scaling.odds(1.0, 60) == -scaling.odds(0.0, 60)


def test_the_largest_is_predicted_before_it_is_trained_and_never_after(run, tmp_path, capsys):
    sizes = {
        "small": {"denoiser.model.layers": 1, "denoiser.model.head_dim": 12},
        "middle": {},
        "large": {"denoiser.model.heads": 4},
    }
    out, study = tmp_path / "out", tmp_path / "study.json"
    study.write_text(json.dumps({"recipe": "pond-tiny", "clips": [8, 16, 32], "sizes": sizes}))
    assert scaling.main(["train", str(run), "-o", str(out), "--study", str(study)]) == 2
    assert "predicted before" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    (out / "study.json").write_text(study.read_text())
    read = scaling.read_study(study)
    for size in ("small", "middle"):
        trial_jobs.work(scaling.make_job(read, size, out, str(run), threads=1))
    assert scaling.main(["predict", "-o", str(out)]) == 0
    told = json.loads((out / "prediction.json").read_text())
    assert {cell["size"] for cell in told["from"]} == {"small", "middle"}
    assert [entry["clips"] for entry in told["predictions"]] == [8, 16, 32]
    trial_jobs.work(scaling.make_job(read, "large", out, str(run), threads=1))
    assert scaling.main(["predict", "-o", str(out)]) == 2
    assert "too late" in capsys.readouterr().err
    cells = scaling.read_cells(out, read, list(sizes))
    assert len(cells) == 9
    assert told["predictions"][0]["parameters"] == cells[-1].parameters
    assert scaling.main(["report", "-o", str(out), "--plot", str(tmp_path / "plot.svg")]) == 0
    assert f"{told['predictions'][2]['loss']:.4f} [" in (out / "table.md").read_text()
    assert (tmp_path / "plot.svg").read_text().count("<circle") == 9 + 3 + 4  # measured, predicted, legend


def test_the_clips_of_a_kept_model_are_no_model_when_its_trial_goes_on(tmp_path):
    for name in ("step-00000008", "step-00000016"):
        (tmp_path / "kept" / name).mkdir(parents=True)
    kept = trial_jobs.models(tmp_path)
    for model in kept:
        trial_jobs.report_of(model, 60).parent.mkdir()
    assert trial_jobs.models(tmp_path) == kept
    assert [model.name for model in kept] == ["step-00000008", "step-00000016"]
    assert trial_jobs.models(tmp_path / "elsewhere") == [tmp_path / "elsewhere" / "model"]


def test_ticks_are_round_and_inside():
    for low, high in ((15.0, 17.5), (0.05, 0.3), (-0.6, -0.55), (2.0, 2.01)):
        found = scaling_plot.ticks(low, high)
        assert 3 <= len(found) <= 8
        assert all(10**low <= value <= 10**high for value in found)
