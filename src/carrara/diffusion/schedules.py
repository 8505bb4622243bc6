"""Noise schedules: how much data and how much noise there is at time t.

A noised sample is `x = alpha(t) data + sigma(t) noise`, with t in [0, 1], 0 data and 1 noise. A schedule is alpha,
sigma, their derivatives, the log-SNR `log(alpha^2 / sigma^2)` and its inverse; prediction types, weights and samplers
follow from these by algebra. Every method maps a floating tensor of any shape to one of the same shape and dtype.

The log-SNR is limited to [-20, 20] (Ho et al. 2022, "Imagen Video"), where it would be infinite.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_SNR = 20.0


class Schedule(ABC):
    """Four functions of time and an inverse."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """How much of the data is left."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """How much noise there is."""

    @abstractmethod
    def alpha_derivative(self, t: Tensor) -> Tensor:
        """d alpha / d t."""

    @abstractmethod
    def sigma_derivative(self, t: Tensor) -> Tensor:
        """d sigma / d t."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), within [-20, 20]."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the schedule has this log-SNR; the inverse of `log_snr`."""


@dataclass(frozen=True)
class LinearVP(Schedule):
    """The variance-preserving schedule of DDPM (betas 1e-4 to 0.02 in 1000 steps) in continuous time.

    `beta(t)` rises linearly from 1000 * 1e-4 to 1000 * 0.02 and `alpha^2 = exp(-integral of beta)` (Song et al. 2021,
    "Score-Based Generative Modeling", eq. 32 and 33). DDPM's product of (1 - beta) differs by less than 0.001 in alpha.
    """

    beta_start: float = 0.1
    beta_end: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_start < self.beta_end:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}: expected 0 < beta_start < beta_end; "
                "DDPM's are 0.1 and 20 (its per-step betas times 1000)"
            )

    def _integral(self, t: Tensor) -> Tensor:
        return 0.5 * (self.beta_end - self.beta_start) * t**2 + self.beta_start * t

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_start + (self.beta_end - self.beta_start) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self.alpha(t)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        """d sigma / d t; infinite at t = 0, where sigma rises like a square root."""
        return 0.5 * self._beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(torch.expm1(self._integral(t))).clamp(-MAX_LOG_SNR, MAX_LOG_SNR)

    def time(self, log_snr: Tensor) -> Tensor:
        integral = torch.nn.functional.softplus(-log_snr, threshold=40)
        slope = self.beta_end - self.beta_start
        # The root of the quadratic without a difference of nearly equal numbers.
        return 2 * integral / (self.beta_start + torch.sqrt(self.beta_start**2 + 2 * slope * integral))


@dataclass(frozen=True)
class CosineVP(Schedule):
    """The cosine schedule of the Google video papers: `alpha = cos(angle)`, `sigma = sin(angle)`.

    The angle is linear in t and runs just inside (0, pi/2), so that the log-SNR runs exactly from 20 to -20
    (Ho et al. 2022, "Video Diffusion Models", section 2; Nichol and Dhariwal 2021).
    """

    @property
    def _first(self) -> float:
        return math.atan(math.exp(-0.5 * MAX_LOG_SNR))

    @property
    def _span(self) -> float:
        return math.atan(math.exp(0.5 * MAX_LOG_SNR)) - self._first

    def _angle(self, t: Tensor) -> Tensor:
        return self._first + self._span * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t))

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -self._span * torch.sin(self._angle(t))

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return self._span * torch.cos(self._angle(t))

    def log_snr(self, t: Tensor) -> Tensor:
        return (-2 * torch.log(torch.tan(self._angle(t)))).clamp(-MAX_LOG_SNR, MAX_LOG_SNR)

    def time(self, log_snr: Tensor) -> Tensor:
        return (torch.atan(torch.exp(-0.5 * log_snr)) - self._first) / self._span


@dataclass(frozen=True)
class Flow(Schedule):
    """The straight path of flow matching, `alpha = 1 - sigma`, with time shifted towards noise.

    `sigma = s t / (1 + (s - 1) t)`, so the log-SNR falls by 2 log s (Esser et al. 2024, "Scaling Rectified Flow
    Transformers", eq. 23). With shift 1, sigma is t.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        check_shift(self.shift)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -self.sigma_derivative(t)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return self.shift / (1 + (self.shift - 1) * t) ** 2

    def log_snr(self, t: Tensor) -> Tensor:
        return (2 * torch.log((1 - t) / (self.shift * t))).clamp(-MAX_LOG_SNR, MAX_LOG_SNR)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr - math.log(self.shift))


def check_shift(shift: float) -> None:
    """Refuse a shift that is not a positive, finite number."""
    if not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"shift={shift}: expected a positive number; 1 leaves time as it is, small videos want 1 to 5")
