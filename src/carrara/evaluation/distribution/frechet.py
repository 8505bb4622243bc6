"""Distances between two sets of feature vectors: Frechet between their Gaussians, and maximum mean discrepancy.

What is not standard: both come with a 95% interval, and the Frechet distance is extrapolated to infinitely many
samples. The plain estimate is biased upward, by an amount that falls as 1 / n and depends on the features: at hundreds
of clips it measures n as much as quality (Chong & Forsyth, arXiv 1911.07023). The discrepancy is unbiased at every n
and needs no Gaussian features; with few clips read it first. Both may come out slightly negative where two sets agree;
cutting that off would bias them again. Arrays are float64, `n d`: a row a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carrara.evaluation.statistics import Z95, Estimate

Floats = NDArray[np.float64]
Kernel = Callable[[Floats, Floats], Floats]

FOLDS = 10  # of the jackknife of the Frechet distance
T95 = 2.262157  # Student's quantile of a two-sided 95% interval with FOLDS - 1 degrees of freedom
SPLITS = 3  # the smallest sets that the extrapolation looks at have a third of the samples


@dataclass(frozen=True)
class Gaussian:
    """mean `d`; covariance `d d`, symmetric, no eigenvalue below 0."""

    mean: Floats
    covariance: Floats


def fit(samples: ArrayLike) -> Gaussian:
    """Mean and unbiased covariance of samples `n d`. Raises ValueError for fewer than 2 or for any not finite."""
    x = checked(samples)
    return Gaussian(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)), squared 2-Wasserstein of Gaussians (Dowson & Landau 1982).

    tr (A B)^(1/2) is the sum of the square roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric: two
    symmetric eigendecompositions, with no complex part to drop and stable where covariances are singular.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = root @ b.covariance @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """The plain estimate from two sets of samples, as FVD (arXiv 1812.01717) is usually computed: biased upward."""
    x, y = checked_pair(x, y)
    return frechet(fit(x), fit(y))


def least_samples(width: int) -> int:
    """How many samples of this width a set needs for `frechet_infinity`: its thirds then have full rank.

    What is left of the bias there is an eighth of the plain estimate's or less, downward (measured on Gaussians).
    """
    return SPLITS * width


def frechet_infinity(x: ArrayLike, y: ArrayLike, seed: int = 0, repeats: int = 2) -> float:
    """The Frechet distance at 1 / n = 0: a straight line through the distances of smaller and smaller subsets.

    After FID-infinity (Chong & Forsyth, arXiv 1911.07023), with both sets cut alike, so that the bias of the reference
    is removed too. Both are put into random order and cut into k = 1..3 parts; a point of the line is the mean over the
    parts (distinct samples, so no part is noise twice), over `repeats` orders. Raises ValueError where there are fewer
    than `least_samples`.
    """
    x, y = checked_pair(x, y)
    least = least_samples(x.shape[1])
    if min(len(x), len(y)) < least:
        raise ValueError(
            f"{len(x)} and {len(y)} samples of {x.shape[1]} features: the Frechet distance needs {least} in each set; "
            "use more clips, or the kernel distance"
        )
    rng = np.random.default_rng(seed)
    parts = np.arange(1, SPLITS + 1)
    found = np.zeros(SPLITS)
    for _ in range(repeats):
        p, q = x[rng.permutation(len(x))], y[rng.permutation(len(y))]
        for k in parts:
            pairs = zip(np.array_split(p, k), np.array_split(q, k))
            found[k - 1] += np.mean([frechet_distance(*pair) for pair in pairs]) / repeats
    return float(np.polyfit(parts, found, 1)[1])  # 1 / n is k / len: the intercept is at infinitely many


def frechet_estimate(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Estimate:
    """`frechet_infinity` with a 95% interval by a grouped jackknife: each tenth of both sets left out in turn.

    (A bootstrap would not do: samples drawn twice make sets smaller than they look, and the bias comes back.)
    Raises ValueError where nine tenths are fewer than `least_samples`.
    """
    x, y = checked_pair(x, y)
    return _jackknife(lambda x, y: frechet_infinity(x, y, seed), x, y, seed)


def frechet_distance_estimate(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Estimate:
    """`frechet_distance` with a 95% interval of the same jackknife: how far it would move with other clips, not how far
    it lies above the distance at infinitely many. Raises ValueError for fewer than 2 * FOLDS samples."""
    x, y = checked_pair(x, y)
    if min(len(x), len(y)) < 2 * FOLDS:
        raise ValueError(f"{len(x)} and {len(y)} samples: an interval needs {2 * FOLDS} in each set; use more clips")
    return _jackknife(frechet_distance, x, y, seed)


def _jackknife(distance: Callable[[Floats, Floats], float], x: Floats, y: Floats, seed: int) -> Estimate:
    rng = np.random.default_rng([seed, 1])
    fold_x, fold_y = (rng.permutation(len(z)) % FOLDS for z in (x, y))
    left = [distance(x[fold_x != fold], y[fold_y != fold]) for fold in range(FOLDS)]
    reach = T95 * math.sqrt((FOLDS - 1) * float(np.var(left)))
    value = distance(x, y)
    return Estimate(value, value - reach, value + reach, min(len(x), len(y)))


def polynomial(x: Floats, y: Floats) -> Floats:
    """(x . y / d + 1)^3, the kernel of KID (Binkowski et al., arXiv 1801.01401): sees moments up to the third."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2)), the kernel of CMMD (Jayasumana et al., arXiv 2401.09603): sees all differences."""
    if not sigma > 0:
        raise ValueError(f"sigma={sigma}: must be above 0")

    def kernel(x: Floats, y: Floats) -> Floats:
        squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
        return np.exp(np.clip(squares, 0, None) / (-2 * sigma**2))

    return kernel


def mmd(x: ArrayLike, y: ArrayLike, kernel: Kernel = polynomial) -> float:
    """The squared maximum mean discrepancy, unbiased (Gretton et al. 2012, equation 3)."""
    return mmd_estimate(x, y, kernel).value


def mmd_estimate(x: ArrayLike, y: ArrayLike, kernel: Kernel = polynomial) -> Estimate:
    """The squared maximum mean discrepancy, with a 95% interval by the jackknife of both sets: every sample left out
    in turn, which the kernel matrices give at once. Raises ValueError for sets of fewer than 3."""
    x, y = checked_pair(x, y)
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise ValueError(f"{n} and {m} samples: an interval needs at least 3 in each set; use more clips")
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    own_x, own_y = xx.sum(1) - xx.diagonal(), yy.sum(1) - yy.diagonal()  # each sample with the others of its set
    within_x, within_y, across = own_x.sum(), own_y.sum(), xy.sum()
    value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)
    without_x = (within_x - 2 * own_x) / ((n - 1) * (n - 2)) - 2 * (across - xy.sum(1)) / ((n - 1) * m)
    without_y = (within_y - 2 * own_y) / ((m - 1) * (m - 2)) - 2 * (across - xy.sum(0)) / (n * (m - 1))
    reach = Z95 * math.sqrt((n - 1) * float(np.var(without_x)) + (m - 1) * float(np.var(without_y)))
    return Estimate(float(value), float(value) - reach, float(value) + reach, min(n, m))


def checked(samples: ArrayLike) -> Floats:
    """Samples `n d` as float64. Raises ValueError where nothing can be estimated from them."""
    x = np.asarray(samples, np.float64)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"features of shape {x.shape}: expected (samples, features)")
    if len(x) < 2:
        raise ValueError(f"{len(x)} samples: a distribution needs at least 2; use more clips")
    if not np.isfinite(x).all():
        raise ValueError("features that are not finite: look at the clips and at the network's weights")
    return x


def checked_pair(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Two sets of samples of one width. Raises ValueError."""
    a, b = checked(x), checked(y)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} features: both sets must come from one network")
    return a, b
