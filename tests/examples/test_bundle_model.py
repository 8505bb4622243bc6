"""The example that ships a model: other defaults for both programs, the same weights, nothing half-written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import carrara
from carrara.systems.folder import scheduler_config
from carrara.systems.latent import LatentVideo

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import bundle_model

BUNDLED = Path(carrara.__file__).parent / "models" / "pond"


def solver(folder: Path) -> dict[str, object]:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))


def test_the_bundled_model_says_the_same_to_diffusers():
    defaults = json.loads((BUNDLED / "carrara.json").read_text(encoding="utf-8"))["defaults"]
    assert solver(BUNDLED) == scheduler_config(defaults["sampling"]["shift"])


def test_new_defaults_old_weights_and_the_card_that_was_there(tiny_folder, tmp_path):
    target = tmp_path / "models" / "shipped"
    bundle_model.main([str(tiny_folder), "-o", str(target), "--shift", "5"])
    (target / "README.md").write_text("# its card")
    bundle_model.main([str(target), "-o", str(target), "--steps", "7", "--guidance", "3"])
    made, before = LatentVideo.load(target), LatentVideo.load(tiny_folder)
    sampling = made.defaults.sampling
    assert (sampling.steps, sampling.shift, sampling.guidance) == (7, 5, 3)
    assert sampling.sampler == before.defaults.sampling.sampler
    assert solver(target) == scheduler_config(5.0)
    weights = before.denoiser.state_dict()
    assert all(value.equal(weights[name]) for name, value in made.denoiser.state_dict().items())
    assert (target / "README.md").read_text() == "# its card"
    assert [path.name for path in target.parent.iterdir()] == ["shipped"]


def test_what_is_no_model_is_not_replaced(tiny_folder, tmp_path):
    target = tmp_path / "other"
    target.mkdir()
    (target / "notes").write_text("mine")
    with pytest.raises(SystemExit, match="holds no model"):
        bundle_model.main([str(tiny_folder), "-o", str(target)])
    damaged = shutil.copytree(tiny_folder, tmp_path / "damaged")
    (damaged / "transformer" / "config.json").unlink()
    with pytest.raises(SystemExit, match=r"config\.json"):
        bundle_model.main([str(damaged), "-o", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match="steps"):
        bundle_model.main([str(tiny_folder), "-o", str(tmp_path / "new"), "--steps", "0"])
    assert not (tmp_path / "new").exists()
