"""The distances in the report: what is shown, what is left out and why."""

import json

import numpy as np
import pytest

from carrara.evaluation.distribution.distances import FRECHET, KERNEL, distances, section, separates

RNG = np.random.default_rng(0)
REFERENCE = RNG.standard_normal((150, 6))


def found(count: int, control_shift: float = 2.0):
    """Distances of truth, a model, and controls that lie this far off."""
    shifts = {"truth": 0.0, "model": 0.5, "frozen": control_shift, "shuffled": control_shift}
    return {name: distances(RNG.standard_normal((count, 6)) + shift, REFERENCE) for name, shift in shifts.items()}


def test_both_distances_stand_beside_truth_and_controls():
    results = found(100)
    made = section(results, {"seed": 0})
    table = made.tables[0]
    assert table.columns == ("truth", "model", "frozen", "shuffled")
    assert [name for name, _ in table.rows] == ["pond-motion Frechet distance", "pond-motion kernel distance"]
    for _, (truth, model, frozen, shuffled) in table.rows:
        assert truth.value < model.value < min(frozen.value, shuffled.value)
        assert truth.count == 100
    assert made.plain()["data"]["about"] == {"seed": 0}
    assert json.loads(json.dumps(made.plain())) == made.plain()
    assert "left out" not in made.about
    assert "Not FVD" in made.about


def test_with_few_clips_only_the_kernel_distance_is_left():
    results = found(19)
    assert results["model"].frechet is None
    assert "19 clips: 21 are needed" in results["model"].reason
    made = section(results)
    assert [name for name, _ in made.tables[0].rows] == ["pond-motion kernel distance"]
    assert "The Frechet distance is left out: 19 clips" in made.about
    assert made.plain()["data"]["distances"]["model"][FRECHET] is None


def test_a_distance_whose_controls_do_not_separate_is_not_reported():
    results = found(60, control_shift=0.0)
    assert not separates(results, FRECHET)
    assert not separates(results, KERNEL)
    made = section(results)
    assert made.tables == ()
    assert "does not tell frozen and shuffled from truth" in made.about


def test_the_least_number_of_clips_suffices():
    assert distances(RNG.standard_normal((21, 6)), REFERENCE).frechet is not None


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="9 clips: a distribution needs at least 10"):
        distances(np.zeros((9, 6)), REFERENCE)
    results = found(12)
    del results["frozen"]
    with pytest.raises(ValueError, match="no distances of 'frozen'"):
        section(results)
