"""Distances against closed forms of Gaussians; intervals that hold what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carrara.evaluation.distribution.frechet import (
    Gaussian,
    fit,
    frechet,
    frechet_distance,
    frechet_estimate,
    frechet_infinity,
    gaussian_kernel,
    mmd,
    mmd_estimate,
    polynomial,
)


def random_gaussian(rng: np.random.Generator, width: int) -> Gaussian:
    a = rng.standard_normal((width, width)) / width**0.5
    return Gaussian(rng.standard_normal(width), a @ a.T)


def draw(g: Gaussian, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multivariate_normal(g.mean, g.covariance, count)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 12))
def test_frechet_is_the_closed_form_where_covariances_commute(seed, width):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    a, b = rng.uniform(0, 2, (2, width))
    shift = rng.standard_normal(width)
    p, q = Gaussian(np.zeros(width), (turn * a) @ turn.T), Gaussian(shift, (turn * b) @ turn.T)
    wanted = shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet(p, q) == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 8))
def test_frechet_is_symmetric_zero_on_itself_and_blind_to_rotations(seed, width):
    rng = np.random.default_rng(seed)
    p, q = random_gaussian(rng, width), random_gaussian(rng, width)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (p, q)]
    assert frechet(p, q) == pytest.approx(frechet(q, p), rel=1e-6, abs=1e-8)
    assert frechet(*turned) == pytest.approx(frechet(p, q), rel=1e-6, abs=1e-8)
    assert frechet(p, p) == pytest.approx(0, abs=1e-6)


def test_frechet_agrees_with_the_matrix_square_root_of_a_product_that_is_not_symmetric():
    from scipy.linalg import sqrtm

    p, q = (random_gaussian(np.random.default_rng(seed), 6) for seed in (1, 2))
    cross = np.trace(sqrtm(p.covariance @ q.covariance)).real
    wanted = ((p.mean - q.mean) ** 2).sum() + np.trace(p.covariance + q.covariance) - 2 * cross
    assert frechet(p, q) == pytest.approx(wanted, rel=1e-8)


def test_singular_covariances_are_no_problem():
    flat = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert frechet(Gaussian(np.zeros(3), flat), Gaussian(np.zeros(3), 4 * flat)) == pytest.approx(14.0)


def test_extrapolation_removes_most_of_the_bias():
    rng = np.random.default_rng(0)
    p = Gaussian(np.zeros(8), np.diag(0.8 ** np.arange(8)))
    q = Gaussian(np.r_[0.5, np.zeros(7)], 1.5 * p.covariance)
    for other, truth in ((p, 0.0), (q, frechet(p, q))):
        pairs = [(draw(p, 96, rng), draw(other, 96, rng)) for _ in range(20)]
        plain = np.mean([frechet_distance(*pair) for pair in pairs]) - truth
        better = np.mean([frechet_infinity(*pair) for pair in pairs]) - truth
        assert plain > 0.1
        assert abs(better) < plain / 4


def test_frechet_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    p = Gaussian(np.zeros(3), np.eye(3))
    q = Gaussian(np.array([0.6, 0, 0]), np.diag([1.0, 2.0, 1.0]))
    truth = frechet(p, q)
    found = [frechet_estimate(draw(p, 100, rng), draw(q, 100, rng)) for _ in range(30)]
    assert sum(each.low <= truth <= each.high for each in found) >= 25  # 95% less four deviations of this count
    null = [frechet_estimate(draw(p, 100, rng), draw(p, 100, rng)) for _ in range(20)]
    assert sum(each.low <= 0 <= each.high for each in null) >= 16


def rbf_closed_form(p: Gaussian, q: Gaussian, sigma: float) -> float:
    """E exp(-|x - y|^2 / 2 sigma^2) of independent Gaussians."""
    total = p.covariance + q.covariance + sigma**2 * np.eye(len(p.mean))
    shift = p.mean - q.mean
    scale = sigma ** len(shift) / np.sqrt(np.linalg.det(total))
    return float(scale * np.exp(-0.5 * shift @ np.linalg.solve(total, shift)))


def cubic_closed_form(p: tuple[float, float], q: tuple[float, float]) -> float:
    """E (x y + 1)^3 of independent normals (mean, deviation)."""
    first, second = ([m, m**2 + s**2, m**3 + 3 * m * s**2] for m, s in (p, q))
    return first[2] * second[2] + 3 * first[1] * second[1] + 3 * first[0] * second[0] + 1


def test_mmd_is_unbiased_and_its_intervals_hold_the_closed_form():
    rng = np.random.default_rng(2)
    p, q = Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.array([0.5, 0.0]), np.diag([1.5, 0.5]))
    kernel = gaussian_kernel(1.3)
    for other in (q, p):
        truth = sum(s * rbf_closed_form(*pair, 1.3) for s, pair in ((1, (p, p)), (1, (other, other)), (-2, (p, other))))
        found = [mmd_estimate(draw(p, 60, rng), draw(other, 45, rng), kernel) for _ in range(200)]
        values = [each.value for each in found]
        assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / 200**0.5)
        assert np.mean([each.low <= truth <= each.high for each in found]) > 0.9


def test_the_cubic_kernel_against_its_moments():
    rng = np.random.default_rng(3)
    p, q = (0.0, 1.0), (0.4, 0.8)
    truth = cubic_closed_form(p, p) + cubic_closed_form(q, q) - 2 * cubic_closed_form(p, q)
    values = [mmd(rng.normal(*p, (80, 1)), rng.normal(*q, (80, 1)), polynomial) for _ in range(400)]
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / 400**0.5)


def test_the_jackknife_of_mmd_is_the_one_by_hand():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
    without_x = [mmd(np.delete(x, i, 0), y) for i in range(7)]
    without_y = [mmd(x, np.delete(y, i, 0)) for i in range(5)]
    reach = 1.959964 * np.sqrt(6 * np.var(without_x) + 4 * np.var(without_y))
    found = mmd_estimate(x, y)
    assert found.high - found.value == pytest.approx(reach)


def test_results_are_functions_of_the_seed():
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((60, 4)), rng.standard_normal((70, 4)) + 0.2
    assert frechet_estimate(x, y, 3) == frechet_estimate(x, y, 3)
    assert frechet_estimate(x, y, 3) != frechet_estimate(x, y, 4)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.zeros((20, 4)), np.zeros((20, 3)), "4 and 3 features"),
        (np.zeros((1, 4)), np.zeros((20, 4)), "1 samples"),
        (np.zeros((20, 4, 1)), np.zeros((20, 4)), r"shape \(20, 4, 1\)"),
        (np.full((20, 4), np.nan), np.zeros((20, 4)), "not finite"),
        (np.zeros((11, 4)), np.zeros((20, 4)), "needs 12"),
    ],
)
def test_what_cannot_be_measured_is_refused(x, y, said):
    with pytest.raises(ValueError, match=said):
        frechet_infinity(x, y)


def test_too_few_for_an_interval_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        mmd_estimate(np.zeros((2, 4)), np.zeros((9, 4)))
    with pytest.raises(ValueError, match="sigma"):
        gaussian_kernel(0.0)
    assert fit([[0.0], [2.0]]).covariance == pytest.approx(np.array([[2.0]]))
