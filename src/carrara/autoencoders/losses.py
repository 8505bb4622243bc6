"""What the autoencoder is trained on: absolute error, error of edges, KL, and how both are weighted by place.

All inputs are clips `b c t h w` in [-1, 1]. The weights average 1 over the batch, so raising one kind of place lowers
the others and the scale of the loss stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from carrara.autoencoders.video import Posterior


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the terms of `autoencoder_loss`.

    gradient: of the error of finite differences along time, rows and columns (sharp edges, no flicker);
    kl: of the KL divergence to the unit Gaussian, in nats per latent value; actor: of a pixel on an actor, relative to
    one beside; outlier, outlier_radius: of the latents' distance beyond that many standard deviations of their frame
    (Movie Gen, arXiv 2410.13720, section 3.1.1), 0 is off.
    """

    gradient: float = 1.0
    kl: float = 1e-6
    actor: float = 5.0
    outlier: float = 0.0
    outlier_radius: float = 3.0


def autoencoder_loss(
    video: Tensor,
    reconstruction: Tensor,
    posterior: Posterior,
    actors: Tensor | None = None,
    config: AutoencoderLossConfig = AutoencoderLossConfig(),
) -> dict[str, Tensor]:
    """Scalars: "loss" to minimise, and its terms "l1", "gradient", "kl" and "outlier", each before its weight.

    actors: `b 1 t h w` or `b t h w`, 1 on actors, 0 beside and between for soft edges; None weighs all places alike.
    """
    if video.shape != reconstruction.shape:
        raise ValueError(f"reconstruction {tuple(reconstruction.shape)} and video {tuple(video.shape)} must be alike")
    weights = None if actors is None else place_weights(actors, config.actor)
    error = reconstruction - video
    l1 = _mean(error.abs(), weights)
    gradient = _Differences.apply(error, weights)
    kl = kl_divergence(posterior)
    terms = {"l1": l1, "gradient": gradient, "kl": kl}
    loss = l1 + config.gradient * gradient + config.kl * kl
    if config.outlier:
        terms["outlier"] = outlier_penalty(posterior.mean, config.outlier_radius)
        loss = loss + config.outlier * terms["outlier"]
    return {"loss": loss, **terms}


def place_weights(actors: Tensor, actor: float) -> Tensor:
    """`b 1 t h w` weights, `actor` times as large on actors as beside, that average 1."""
    mask = actors.float() if actors.ndim == 5 else actors.float().unsqueeze(1)
    weights = 1 + (actor - 1) * mask
    return weights / weights.mean()


def kl_divergence(posterior: Posterior) -> Tensor:
    """KL(posterior || N(0, 1)) in nats per latent value (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (posterior.mean.square() + posterior.logvar.exp() - 1 - posterior.logvar).mean()


def outlier_penalty(latents: Tensor, radius: float = 3.0) -> Tensor:
    """Mean excess of each latent vector's distance from its frame's mean over `radius` standard deviations.

    Keeps an encoder from storing a clip's whole style in a few hot spots (Movie Gen, arXiv 2410.13720, equation 1).
    """
    offset = latents - latents.mean(dim=(3, 4), keepdim=True)
    spread = offset.square().mean(dim=(3, 4), keepdim=True).sum(1).add(1e-12).sqrt()  # b f 1 1
    return (offset.square().sum(1).add(1e-12).sqrt() - radius * spread).clamp_min(0).mean()


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB per clip, `(b,)`, of clips in [-1, 1]; with a mask, over the places it marks.

    Identical clips give infinity, a clip with nothing marked gives NaN.
    """
    error = (a.float() - b.float()).square().mean(1, keepdim=True)
    if mask is None:
        mean = error.mean(dim=(1, 2, 3, 4))
    else:
        weights = mask.float() if mask.ndim == 5 else mask.float().unsqueeze(1)
        mean = (error * weights).sum(dim=(1, 2, 3, 4)) / weights.sum(dim=(1, 2, 3, 4))
    return 10 * (math.log10(4) - torch.log10(mean))  # the peak is 2: from -1 to 1


def _mean(error: Tensor, weights: Tensor | None) -> Tensor:
    # Channels are summed first: the weights have one, so their product is a third of the size.
    return error.mean() if weights is None else (error.mean(1, keepdim=True) * weights).mean()


class _Differences(torch.autograd.Function):
    """Weighted mean absolute finite difference, averaged over the axes that have any; a pair of places weighs what its
    heavier place does.

    The gradient is made along with the value: the generic one goes through memory more than twice as often.
    """

    @staticmethod
    def forward(ctx: Any, error: Tensor, weights: Tensor | None) -> Tensor:
        axes = [axis for axis in (2, 3, 4) if error.shape[axis] > 1]
        slope, total = torch.zeros_like(error), error.new_zeros(())
        for axis in axes:
            n = error.shape[axis] - 1
            pairs = error.diff(dim=axis)
            signs = pairs.sign()
            if weights is not None:
                heavier = torch.maximum(weights.narrow(axis, 0, n), weights.narrow(axis, 1, n))
                signs *= heavier / heavier.mean()
            share = 1 / (len(axes) * pairs.numel())
            total += torch.dot(pairs.flatten(), signs.flatten()) * share
            slope.narrow(axis, 1, n).add_(signs, alpha=share)
            slope.narrow(axis, 0, n).sub_(signs, alpha=share)
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * outer, None
