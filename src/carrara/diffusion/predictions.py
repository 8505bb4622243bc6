"""What a network predicts, and how each kind converts to and from *denoised*, the estimate of the data.

With `x = alpha data + sigma noise` the kinds are

    noise   noise                       Ho et al. 2020, DDPM
    data    data
    v       alpha noise - sigma data    Salimans and Ho 2022, "Progressive Distillation", appendix D
    flow    noise - data                Lipman et al. 2023, Liu et al. 2023; the sign of Wan

The conversions hold for every alpha and sigma, not only for alpha^2 + sigma^2 = 1 or alpha + sigma = 1.

Levels (alpha, sigma, t) may be numbers or tensors of shape `()`, `(b,)` per sample, `(b, f)` per latent frame,
`(b, f, h, w)` per position or per token (its sides divide those of x), or of as many axes as x, which broadcast.
"""

from __future__ import annotations

from typing import Literal, get_args

from einops import rearrange, repeat
from torch import Tensor

from carrara.core.config import nearest

Kind = Literal["noise", "data", "v", "flow"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Level = float | Tensor


def expand_levels(level: Level, x: Tensor) -> Level:
    """Give a level the axes of x: `(b,)` for any x, `(b, f)` or `(b, f, h, w)` for x of `b c f h w`.

    Numbers pass through. Raises ValueError for a shape that does not fit x.
    """
    if not isinstance(level, Tensor) or level.ndim in (0, x.ndim):
        return level
    if level.ndim == 1 and len(level) == len(x):
        return level.reshape(-1, *[1] * (x.ndim - 1))
    if x.ndim == 5 and len(level) == len(x):
        if level.ndim == 2 and level.shape[1] == x.shape[2]:
            return rearrange(level, "b f -> b 1 f 1 1")
        steps = [side // max(1, part) for side, part in zip(x.shape[2:], level.shape[1:])]
        if level.ndim == 4 and all(
            part * step == side for part, step, side in zip(level.shape[1:], steps, x.shape[2:])
        ):
            return repeat(level, "b f h w -> b 1 (f pf) (h ph) (w pw)", pf=steps[0], ph=steps[1], pw=steps[2])
    raise ValueError(
        f"levels of shape {tuple(level.shape)} do not fit latents of shape {tuple(x.shape)}; "
        "expected (), (b,), (b, f) or (b, f, h, w) with sides that divide those of the latents"
    )


def add_noise(data: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """The noised sample `alpha data + sigma noise` (DDPM, eq. 4)."""
    return expand_levels(alpha, data) * data + expand_levels(sigma, data) * noise


def target(kind: Kind, data: Tensor, noise: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """What a network of this kind should answer for `add_noise(data, noise, alpha, sigma)`."""
    alpha, sigma = expand_levels(alpha, data), expand_levels(sigma, data)
    if kind == "noise":
        return noise
    if kind == "data":
        return data
    if kind == "v":
        return alpha * noise - sigma * data
    if kind == "flow":
        return noise - data
    raise _unknown(kind)


def to_denoised(kind: Kind, prediction: Tensor, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """The estimate of the data that a prediction at x implies. The kind noise says nothing where alpha is 0."""
    alpha, sigma = expand_levels(alpha, x), expand_levels(sigma, x)
    if kind == "noise":
        return (x - sigma * prediction) / alpha
    if kind == "data":
        return prediction
    if kind == "v":
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)
    if kind == "flow":
        return (x - sigma * prediction) / (alpha + sigma)
    raise _unknown(kind)


def from_denoised(kind: Kind, denoised: Tensor, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """The prediction of this kind that implies this estimate of the data; the inverse of `to_denoised`.

    Where sigma is 0 only the kind data is defined.
    """
    alpha, sigma = expand_levels(alpha, x), expand_levels(sigma, x)
    if kind == "noise":
        return (x - alpha * denoised) / sigma
    if kind == "data":
        return denoised
    if kind == "v":
        return (alpha * x - (alpha**2 + sigma**2) * denoised) / sigma
    if kind == "flow":
        return (x - (alpha + sigma) * denoised) / sigma
    raise _unknown(kind)


def _unknown(kind: str) -> ValueError:
    return ValueError(f"unknown prediction {kind!r}; {nearest(kind, KINDS)}")
