"""Sampling with something known: three ways to make a denoiser respect it, and where an edit begins.

    hold      the known part is there at level 0, and the network is told so (`fields.hold`). Exact for a network that
              learned levels per position; this is how the models trained here work.
    replace   the known part is noised to the level of the rest at every step (Song et al. 2021, "Score-Based
              Generative Modeling", appendix I.2). For a network that knows one level only. The rest is drawn as if the
              known part had been drawn with it, which it was not: the two need not fit.
    guide     replace, and the estimate of the rest is moved down the gradient of the error with which the network
              reconstructs the known part (Ho et al. 2022, "Video Diffusion Models", eq. 7).

Why guide helps: with z = alpha x + sigma noise, E[x | z, known] = E[x | z] + sigma^2 / alpha grad_z log p(known | z).
If p(known | z) is a Gaussian around the network's own reconstruction with variance sigma^2 / (w alpha^2), the second
term is -(w alpha / 2) grad_z |known - reconstruction|^2. For Gaussian data and the right w this is exact, and a test.

All act on the estimate of the data, so every sampler works with them. Latents are of any shape; masks are bool, True
where known, of the shapes that `predictions.expand_levels` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.diffusion.fields import hold
from carrara.diffusion.grids import Denoise, Grid, GridPoint
from carrara.diffusion.predictions import expand_levels

Weight = float | Callable[[GridPoint], float]
GUIDE_WEIGHT = 2.0  # VDM found weights above 1 better than 1


@dataclass(frozen=True, eq=False)
class Start:
    """Data to begin from instead of pure noise: `latents` like x, noised to `level` in (0, 1]; at 1 nothing is left."""

    latents: Tensor
    level: float

    def __post_init__(self) -> None:
        if not 0 < self.level <= 1:
            raise ValueError(f"level={self.level}: expected more than 0, which changes nothing, and at most 1")


def cut(grid: Grid, level: float) -> Grid:
    """The part of a grid below a noise level, which begins at the level itself.

    The point nearest to the level is moved onto it and the later ones stay, so no step becomes much shorter than it
    was (a multistep solver extrapolates over the ratio of its steps). Of n steps about `level * n` remain on an even
    grid. A level at or above the grid's first is the whole grid. For flow grids, whose time is their sigma.
    """
    if not 0 < level <= 1:
        raise ValueError(f"level={level}: expected more than 0 and at most 1")
    sigmas = grid.sigmas[:-1]
    if level >= float(sigmas[0]):
        return grid
    first = int((sigmas - level).abs().argmin())
    cut_sigmas, alphas, told = grid.sigmas[first:].clone(), grid.alphas[first:].clone(), grid.told[first:].clone()
    told[0] += level - cut_sigmas[0]
    cut_sigmas[0], alphas[0] = level, 1 - level
    return Grid(alphas, cut_sigmas, told.clamp(0, 1))


def replace_known(denoise: Denoise, known: Tensor, mask: Tensor, noise: Tensor) -> Denoise:
    """The network sees the known part at x's level, with the noise x started from; the estimate there is that part.

    A sampler that is told so keeps `alpha known + sigma noise` there by itself, and ends on `known` to the bit.
    """
    where = _where(mask, known)

    def replaced(x: Tensor, point: GridPoint) -> Tensor:
        return torch.where(where, known, denoise(_noised(x, known, noise, where, point), point))

    return replaced


def guide_known(denoise: Denoise, known: Tensor, mask: Tensor, noise: Tensor, weight: Weight = GUIDE_WEIGHT) -> Denoise:
    """Reconstruction guidance: `replace_known`, the rest moved by -(weight alpha / 2) grad |known - estimate|^2.

    The gradient goes through the network, so an evaluation costs about three times as much, and `denoise` must not run
    in inference mode. weight: a number, or a function of the grid point.
    """
    where = _where(mask, known)

    def guided(x: Tensor, point: GridPoint) -> Tensor:
        scale = weight(point) if callable(weight) else weight
        with torch.enable_grad():
            seen = _noised(x, known, noise, where, point).detach().requires_grad_()
            estimate = denoise(seen, point)
            error = torch.where(where, known - estimate, 0).square().sum()
            (gradient,) = torch.autograd.grad(error, seen)
        moved = estimate.detach() - 0.5 * scale * point.alpha * gradient
        return torch.where(where, known, moved)

    return guided


KNOWN_BY = ("hold", "replace", "guide")
"""The names of the ways, the first being the one for models trained here."""


def keep_known(
    by: str,
    denoise: Denoise,
    known: Tensor,
    mask: Tensor,
    noise: Tensor,
    whole: Tensor | None = None,
    weight: Weight = GUIDE_WEIGHT,
) -> Denoise:
    """The way of that name. Under `hold` the denoiser must tell its network `held_levels(whole, point.told)`.

    whole: the part of the mask whose tokens are known altogether, the whole mask if None. A token has one level, so
    what is known of other tokens has theirs: there it is replaced. weight: of `guide_known`.
    """
    if by == "hold":
        if whole is None or torch.equal(whole, mask):
            return hold(denoise, known, mask)
        return hold(replace_known(denoise, known, mask & ~whole, noise), known, whole)
    if by == "replace":
        return replace_known(denoise, known, mask, noise)
    if by == "guide":
        return guide_known(denoise, known, mask, noise, weight)
    raise ValueError(f"unknown way {by!r} to keep what is known; known: {', '.join(KNOWN_BY)}")


def _noised(x: Tensor, known: Tensor, noise: Tensor, where: Tensor, point: GridPoint) -> Tensor:
    return torch.where(where, point.alpha * known + point.sigma * noise, x)


def _where(mask: Tensor, known: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of type {mask.dtype}: expected bool, True where the latents are known")
    where = expand_levels(mask, known)
    assert isinstance(where, Tensor)
    return where
