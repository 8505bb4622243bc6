"""Samplers: pure functions of (denoise, x, grid) from noise to data.

`denoise(x, point)` estimates the data from x at a grid point; what stands behind it (network, text, guidance, known
parts) is not the sampler's business. All of them work for every grid, variance preserving or flow, since they read
only alpha and sigma; and all end with the last estimate itself, because a grid ends at sigma 0.

Randomness comes only from the passed generators, one per sample, on the CPU in float32: a seed gives the same noise
whatever the batch and the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from carrara.core.config import choose
from carrara.diffusion.grids import Denoise, Grid, GridPoint
from carrara.diffusion.multistep import dpmpp_2m, first_order_step, unipc

Generators = Sequence[Generator] | Generator


def sample_generators(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator per sample. Draw the starting noise from them, then pass the same ones to the sampler."""
    return [Generator("cpu").manual_seed(seed) for seed in seeds]


def draw_noise(shape: Sequence[int], generators: Generators) -> Tensor:
    """Standard normal float32 on the CPU: `(len(generators), *shape)`, each sample from its own generator."""
    each = [generators] if isinstance(generators, Generator) else generators
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in each])


def sample_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """The starting noise of samples with these seeds: `(len(seeds), *shape)`, float32 on the CPU."""
    return draw_noise(shape, sample_generators(seeds))


def ancestral(
    denoise: Denoise, x: Tensor, grid: Grid, generator: Generators | None = None, gamma: float = 0.0
) -> Tensor:
    """Draw each step from the posterior given the estimate (Ho et al. 2020, DDPM, algorithm 2).

    gamma in [0, 1] interpolates the variance, in its logarithm, from the posterior's, right for data that are one
    point (0), to the forward step's, right for standard normal data (1); 0 to 0.3 in Video Diffusion Models.
    """
    _check_gamma(gamma)
    for here, there in grid:
        x = _ancestral_step(x, denoise(x, here), here, there, generator, gamma)
    return x


def langevin(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    generator: Generators | None = None,
    gamma: float = 0.0,
    delta: float = 0.1,
) -> Tensor:
    """Ancestral steps, each followed by a step of Langevin dynamics at the level that it came to: a predictor and a
    corrector (Song et al. 2021, "Score-based generative modeling", section 4.2; with this step in Ho et al. 2022,
    "Video Diffusion Models"). The corrector leaves the distribution at its level as it is, to within delta^2 / 4 of
    its noise, and moves samples that have left it back. Two evaluations per step but the last.

    delta: the corrector's step relative to the variance of the noise, from 0 (none) to 1.
    """
    _check_gamma(gamma)
    if not 0 <= delta <= 1:
        raise ValueError(f"delta={delta}: expected 0 (no correction) to 1; 0.1 in Video Diffusion Models")
    for here, there in grid:
        x = _ancestral_step(x, denoise(x, here), here, there, generator, gamma)
        if there.sigma > 0:
            noise = _noise(x, denoise(x, there), there)
            x = x - 0.5 * delta * there.sigma * noise + math.sqrt(delta) * there.sigma * _noise_like(x, generator)
    return x


def ddim(denoise: Denoise, x: Tensor, grid: Grid, generator: Generators | None = None, eta: float = 0.0) -> Tensor:
    """Song et al. 2021, "DDIM", eq. 12: deterministic at eta 0, the ancestral sampler (gamma 0) at eta 1."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: expected 0 (deterministic) to 1 (ancestral)")
    for here, there in grid:
        denoised = denoise(x, here)
        fresh = eta * math.sqrt(_variances(here, there)[0])
        x = there.alpha * denoised + math.sqrt(there.sigma**2 - fresh**2) * _noise(x, denoised, here)
        if fresh > 0:
            x = x + fresh * _noise_like(x, generator)
    return x


def euler(denoise: Denoise, x: Tensor, grid: Grid, generator: Generators | None = None) -> Tensor:
    """Follow `dx = denoised d alpha + noise d sigma` in straight steps. Draws no noise.

    For flow this is Euler on the velocity, noise - denoised; in general it is Karras et al.'s (2022) Euler on
    `x / alpha` and DDIM at eta 0: the three are one formula.
    """
    for here, there in grid:
        x = first_order_step(x, denoise(x, here), here, there)
    return x


def heun(denoise: Denoise, x: Tensor, grid: Grid, generator: Generators | None = None) -> Tensor:
    """Euler, then again with the mean of the estimates at both ends: the trapezoid rule in alpha and sigma
    (as Karras et al. 2022, algorithm 1). Two evaluations per step but the last. Draws no noise.
    """
    for here, there in grid:
        denoised = denoise(x, here)
        ahead = first_order_step(x, denoised, here, there)
        if there.sigma > 0:
            then = denoise(ahead, there)
            data = 0.5 * (denoised + then)
            noise = 0.5 * (_noise(x, denoised, here) + _noise(ahead, then, there))
            ahead = x + (there.alpha - here.alpha) * data + (there.sigma - here.sigma) * noise
        x = ahead
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "langevin": langevin,
    "dpmpp_2m": dpmpp_2m,
    "unipc": unipc,
}
"""Each is called as `sampler(denoise, x, grid, generator)`; ancestral and langevin need the generators."""


def evaluations(name: str, steps: int) -> int:
    """How many times the sampler of that name calls `denoise` on a grid of so many steps."""
    choose("sampler", name, SAMPLERS)
    return 2 * steps - 1 if name in ("heun", "langevin") else steps


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma}: expected 0 (the posterior's variance) to 1 (the forward step's)")


def _ancestral_step(
    x: Tensor, denoised: Tensor, here: GridPoint, there: GridPoint, generator: Generators | None, gamma: float
) -> Tensor:
    lower, upper = _variances(here, there)
    back = here.alpha * there.sigma**2 / (here.sigma**2 * there.alpha)  # e^(l_t - l_s) alpha_s / alpha_t
    x = back * x + (there.alpha - back * here.alpha) * denoised
    if there.sigma > 0:
        x = x + math.sqrt(lower ** (1 - gamma) * upper**gamma) * _noise_like(x, generator)
    return x


def _noise(x: Tensor, denoised: Tensor, point: GridPoint) -> Tensor:
    """The noise in x, given the data in it."""
    return (x - point.alpha * denoised) / point.sigma


def _variances(here: GridPoint, there: GridPoint) -> tuple[float, float]:
    """The least and the greatest variance that a step may add: the posterior's and the forward step's.

    With `e = SNR(here) / SNR(there)`: `(1 - e) sigma_there^2` and `(1 - e) sigma_here^2` (VDM, section 2).
    """
    rest = 1 - (here.alpha * there.sigma / (here.sigma * there.alpha)) ** 2
    return rest * there.sigma**2, rest * here.sigma**2


def _noise_like(x: Tensor, generator: Generators | None) -> Tensor:
    if generator is None:
        raise ValueError("this sampler draws noise at every step: pass generator=sample_generators(seeds)")
    if isinstance(generator, Generator):
        return torch.randn(x.shape, generator=generator).to(x)
    if len(generator) != len(x):
        raise ValueError(f"{len(generator)} generators for a batch of {len(x)}; pass one per sample")
    return draw_noise(x.shape[1:], generator).to(x)
