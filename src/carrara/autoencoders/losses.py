"""What the autoencoder is trained on: absolute and squared error, error of edges, KL, and how places are weighted.

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

    l1: of the absolute error; squared: of the squared error, which learns small things beside a large background
    sooner (the median of a place that is seldom covered is the background, its mean is not); gradient: of the error
    of finite differences along time, rows and columns (sharp edges, no flicker);
    kl: of the KL divergence to the unit Gaussian, in nats per latent value; actor: of a pixel on an actor, relative to
    one beside; outlier, outlier_radius: of the latents' distance beyond that many standard deviations of their frame
    (Movie Gen, arXiv 2410.13720, section 3.1.1), 0 is off.
    """

    l1: float = 1.0
    squared: float = 0.0
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
    """Scalars: "loss" to minimise, and its terms "l1", "squared", "gradient", "kl" and "outlier", before their weights.

    Terms of weight 0 are left out, but for the KL divergence.
    actors: `b 1 t h w` or `b t h w`, 1 on actors, 0 beside and between for soft edges; None weighs all places alike.
    """
    if video.shape != reconstruction.shape:
        raise ValueError(f"reconstruction {tuple(reconstruction.shape)} and video {tuple(video.shape)} must be alike")
    weights = None if actors is None else place_weights(actors, config.actor)
    error = reconstruction - video
    kl = kl_divergence(posterior)
    terms, loss = {"kl": kl}, config.kl * kl
    if config.l1:
        terms["l1"] = _mean(error.abs(), weights)
        loss = loss + config.l1 * terms["l1"]
    if config.squared:
        terms["squared"] = _mean(error.square(), weights)
        loss = loss + config.squared * terms["squared"]
    if config.gradient:
        terms["gradient"] = _Differences.apply(error, weights)
        loss = loss + config.gradient * terms["gradient"]
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


def actor_boxes(actors: Tensor) -> Tensor:
    """Places inside the bounding box of any actor, frame by frame: `b t h w`, from actors' numbers (0: none)."""
    boxes = torch.zeros_like(actors, dtype=torch.bool)
    for number in range(1, int(actors.max()) + 1):
        seen = actors == number
        rows, columns = seen.any(3), seen.any(2)
        boxes |= _between(rows)[..., :, None] & _between(columns)[..., None, :]
    return boxes


def _between(marked: Tensor) -> Tensor:
    """From the first to the last mark along the last axis."""
    forward, backward = marked.cummax(-1).values, marked.flip(-1).cummax(-1).values.flip(-1)
    return forward & backward


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
