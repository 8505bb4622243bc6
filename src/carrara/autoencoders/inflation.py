"""From an autoencoder of images to one of clips in which every frame begins with channels of its own.

Layers that halve time are hard to train into a model of images: begun as means (or copies), they blur what moves, and
the gradient that would tell frames apart passes through encoder and decoder at once. So the image model is placed K
times side by side, K the number of frames in a latent one: all widths are K times as large. Where K frames become one,
their channels stand next to each other; where they are still K, every channel stands there K times. A clip in which
nothing moves is then reconstructed exactly as its frames are by the image model, and a moving one nearly so, from the
first step; what frames share is left to training.

Not standard. Inflation in the literature repeats kernels along time (Carreira & Zisserman 2017, arXiv:1705.07750) or
sets them to the present frame (as `video_blocks.initialise` does); both start from blur or from copies here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from torch import Generator, nn

from carrara.autoencoders.causal import RMSNorm
from carrara.autoencoders.video import VideoAutoencoder
from carrara.autoencoders.video_blocks import Down, FrameAttention, Level, Middle, ResidualBlock, Up
from carrara.autoencoders.video_config import VideoAutoencoderConfig


@dataclass(frozen=True)
class Layout:
    """How the channels of a layer are told apart, outermost first: `copies` of `groups` (frames) of the image model's
    channels. groups * copies = K inside the networks."""

    groups: int
    copies: int


def image_config(config: VideoAutoencoderConfig) -> VideoAutoencoderConfig:
    """The image model whose copies make an autoencoder of this configuration.

    Raises ValueError where there is none: shortcuts around levels mix channels, and widths must divide.
    """
    k = config.stride.time
    if config.residual:
        raise ValueError("residual=True: shortcuts around levels mix the frames' channels; use residual=False")
    sizes = {name: getattr(config, name) for name in ("base_dim", "decoder_base_dim", "latent_channels")}
    for name, value in sizes.items():
        if value is not None and value % k:
            raise ValueError(f"{name}={value}: must be a multiple of the {k} frames in a latent frame")
    small = {name: value and value // k for name, value in sizes.items()}
    return replace(config, **small, latents_mean=(), latents_std=())


@torch.no_grad()
def inflate(image: VideoAutoencoder, video: VideoAutoencoder, generator: Generator) -> None:
    """Fill `video` with copies of `image`, an autoencoder of `image_config(video.config)`, in place.

    What reads several copies of a channel weighs them by random shares that add up to 1, so that training can tell the
    copies apart. Raises ValueError for an image model of another configuration.
    """
    wanted = image_config(video.config)
    if replace(image.config, latents_mean=(), latents_std=()) != wanted:
        raise ValueError(f"the image model is {image.config}; expected {wanted}")
    k = video.config.stride.time
    spread = _Spread(generator)
    apart, alike, single = Layout(k, 1), Layout(1, k), Layout(1, 1)

    layout = alike
    spread.convolution(image.encoder.conv_in, video.encoder.conv_in, single, layout)
    for small, large in _levels(image.encoder.levels, video.encoder.levels):
        spread.blocks(small, large, layout)
        if isinstance(small.step, Down) and isinstance(large.step, Down):
            spread.convolution(small.step.space, large.step.space, layout, layout)
            if large.step.time is not None:
                layout = Layout(2 * layout.groups, layout.copies // 2)
                _part(large.step.time, layout)
    spread.middle(image.encoder.middle, video.encoder.middle, layout)
    spread.norm(image.encoder.norm_out, video.encoder.norm_out, layout)

    # Moments are means, then log variances, each of all frames.
    spread.convolution(image.encoder.conv_out, video.encoder.conv_out, apart, apart, parts_out=2)
    spread.convolution(image.to_moments, video.to_moments, apart, apart, parts_out=2, parts_in=2)
    spread.convolution(image.from_latents, video.from_latents, apart, apart)

    spread.convolution(image.decoder.conv_in, video.decoder.conv_in, apart, apart)
    layout = apart
    spread.middle(image.decoder.middle, video.decoder.middle, layout)
    for small, large in _levels(image.decoder.levels, video.decoder.levels):
        spread.blocks(small, large, layout)
        if isinstance(small.step, Up) and isinstance(large.step, Up):
            if large.step.time is not None:
                _join(large.step.time, layout)
                layout = Layout(layout.groups // 2, 2 * layout.copies)
            spread.convolution(small.step.space, large.step.space, layout, layout)
    spread.norm(image.decoder.norm_out, video.decoder.norm_out, layout)
    spread.convolution(image.decoder.conv_out, video.decoder.conv_out, layout, single)


class _Spread:
    """Writes an image model's layers into the copies of a video model's."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def convolution(
        self,
        small: nn.Conv2d | nn.Conv3d,
        large: nn.Conv2d | nn.Conv3d,
        source: Layout,
        target: Layout,
        parts_out: int = 1,
        parts_in: int = 1,
    ) -> None:
        """Every frame's channels read that frame's only; copies of what is read count by random shares.

        parts: how often the whole layout is repeated on a side (means and log variances).
        """
        kernel = rearrange(small.weight, "(p o) (q i) ... -> p q o i ...", p=parts_out, q=parts_in)
        wide = torch.einsum("pqoi...,gh->pgoqhi...", kernel, torch.eye(target.groups))  # both sides have as many groups
        wide = repeat(wide, "p g o q h i ... -> p d g o q e h i ...", d=target.copies, e=source.copies)
        if source.copies > 1:
            shares = torch.randn(*wide.shape[:8], generator=self.generator) / (2 * source.copies)
            shares = shares - shares.mean(5, keepdim=True) + 1 / source.copies
            wide = wide * shares.reshape(*shares.shape, *[1] * (wide.ndim - 8))
        large.weight.copy_(wide.flatten(4, 7).flatten(0, 3))
        if small.bias is not None and large.bias is not None:
            large.bias.copy_(repeat(small.bias, "(p o) -> (p k o)", p=parts_out, k=target.groups * target.copies))

    def norm(self, small: RMSNorm, large: RMSNorm, layout: Layout) -> None:
        large.gamma.copy_(small.gamma.repeat(layout.groups * layout.copies, *[1] * (small.gamma.ndim - 1)))

    def block(self, small: ResidualBlock, large: ResidualBlock, layout: Layout) -> None:
        self.norm(small.norm1, large.norm1, layout)
        self.norm(small.norm2, large.norm2, layout)
        self.convolution(small.conv1, large.conv1, layout, layout)
        self.convolution(small.conv2, large.conv2, layout, layout)
        if small.shortcut is not None and large.shortcut is not None:
            self.convolution(small.shortcut, large.shortcut, layout, layout)

    def blocks(self, small: Level, large: Level, layout: Layout) -> None:
        for block, wide in zip(small.blocks, large.blocks):
            assert isinstance(block, ResidualBlock)
            assert isinstance(wide, ResidualBlock)
            self.block(block, wide, layout)

    def middle(self, small: Middle, large: Middle, layout: Layout) -> None:
        self.block(small.first, large.first, layout)
        self.block(small.last, large.last, layout)
        self.attention(small.attention, large.attention, layout)

    def attention(self, small: FrameAttention, large: FrameAttention, layout: Layout) -> None:
        """One head sees all frames: its scores are their mean."""
        self.norm(small.norm, large.norm, layout)
        self.convolution(small.to_qkv, large.to_qkv, layout, layout, parts_out=3)
        self.convolution(small.proj, large.proj, layout, layout)
        queries = len(large.to_qkv.weight) // 3
        for values in (large.to_qkv.weight, large.to_qkv.bias):
            assert values is not None
            values[:queries] /= math.sqrt(layout.groups * layout.copies)


def _part(time: nn.Conv3d, after: Layout) -> None:
    """Two frames become one: of every two copies of a channel one keeps the older frame's and one the newer one's.

    after: the layout of what comes out. A clip's first frame passes by, all copies alike: as if it had stood still.
    """
    channels = len(time.weight)
    slots = rearrange(torch.arange(channels), "(d t n) -> t (d n)", d=after.copies, t=2)
    time.weight.zero_()
    for tap, rows in zip((1, 2), slots):  # tap 0 is the frame before both
        time.weight[rows, rows, tap] = 1
    _no_bias(time)


def _join(time: nn.Conv3d, before: Layout) -> None:
    """One frame becomes two, each with copies of its own channels. before: the layout of what goes in."""
    channels = time.weight.shape[1]
    places = rearrange(torch.arange(channels), "(d t n) -> t d n", d=before.copies, t=2)
    source = torch.cat([repeat(own, "d n -> (d s n)", s=2) for own in places])  # r, then the channels of frame r
    time.weight.zero_()
    time.weight[torch.arange(2 * channels), source, -1] = 1
    _no_bias(time)


def _no_bias(layer: nn.Conv3d) -> None:
    if layer.bias is not None:
        layer.bias.zero_()


def _levels(small: nn.ModuleList, large: nn.ModuleList) -> Iterator[tuple[Level, Level]]:
    for a, b in zip(small, large):
        assert isinstance(a, Level)
        assert isinstance(b, Level)
        yield a, b
