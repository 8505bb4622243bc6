"""A causal video autoencoder: clips of 1 + 4k frames to latents and back, whole or in chunks.

The Wan family by configuration: 2.1 (stride 4 x 8 x 8) and 2.2 (folded pixels, shortcuts around levels, stride
4 x 16 x 16). Not standard here: the statistics that normalise the latents belong to the configuration and are applied
inside; the state of a streamed clip is a value that goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Generator, Tensor, nn

from carrara.autoencoders.causal import CausalConv, State, Stream
from carrara.autoencoders.video_blocks import VideoDecoder, VideoEncoder, initialise
from carrara.autoencoders.video_config import VideoAutoencoderConfig
from carrara.core.types import Stride, VideoShape, check_multiple


@dataclass(frozen=True)
class Posterior:
    """The Gaussian that a clip encodes to: raw mean and log variance, each `b c f h w` in float32."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: Generator | None = None) -> Tensor:
        """One draw of the raw latents."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of the raw latents, one of each per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def latent_statistics(means: Iterable[Tensor]) -> LatentStatistics:
    """Statistics per channel over batches of raw latents `b c f h w`, summed in float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in means:
        values = rearrange(batch.detach().double().cpu(), "b c f h w -> c (b f h w)")
        count += values.shape[1]
        total, squares = total + values.sum(1), squares + values.square().sum(1)
    if not count:
        raise ValueError("no latents to measure: give at least one clip")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
    return LatentStatistics(tuple(mean.tolist()), tuple(std.tolist()))


def chunk_frames(height: int, width: int) -> int:
    """How many latent frames of this size go through at a time: one where they are large, more where it is faster."""
    return max(1, 512 // (height * width))


class VideoAutoencoder(nn.Module):
    """Video `b 3 t h w` in [-1, 1] to normalised latents `b c f h w` and back.

    Frames are 1 + stride.time * k and sides multiples of stride.space; other sizes raise ValueError with the nearest.
    `checkpointing` recomputes activations in the backward pass instead of storing them.
    """

    def __init__(self, config: VideoAutoencoderConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        pixels, z = 3 * config.patch**2, config.latent_channels
        blocks, residual = config.num_res_blocks, config.residual
        down, up = config.temporal_downsample, config.temporal_upsample
        self.encoder = VideoEncoder(pixels, config.encoder_dims, 2 * z, blocks, down, residual)
        self.to_moments = CausalConv(2 * z, 2 * z, (1, 1, 1))
        self.from_latents = CausalConv(z, z, (1, 1, 1))
        self.decoder = VideoDecoder(z, config.decoder_dims, pixels, blocks, up, residual)
        self.checkpointing = checkpointing

    def initialise(self, generator: Generator) -> VideoAutoencoder:
        """Start values for training from scratch; the posterior begins narrow and the picture near grey."""
        initialise(self, generator)
        z = self.latent_channels
        with torch.no_grad():
            for one_to_one in (self.to_moments, self.from_latents):
                one_to_one.weight.copy_(torch.eye(len(one_to_one.weight))[..., None, None, None])
            out = self.encoder.conv_out
            out.weight[z:].mul_(0.1)
            nn.init.constant_(out.get_parameter("bias")[z:], -4)
            self.decoder.conv_out.weight.mul_(0.3)
        return self

    @torch.inference_mode(False)  # whose tensors could not be trained afterwards
    def pack(self) -> None:
        """Lay the filters out as kernels read them, who would else move them at every chunk; as new parameters.

        For bfloat16: in float32 it pays little, and takes weights out of the files that they are mapped from.
        """
        for part in self.modules():
            if isinstance(part, CausalConv):
                laid = part.weight.detach().clone(memory_format=torch.channels_last_3d)
                part.weight = nn.Parameter(laid, part.weight.requires_grad)

    @property
    def checkpointing(self) -> bool:
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = on

    @property
    def stride(self) -> Stride:
        return self.config.stride

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    def posterior(self, video: Tensor) -> Posterior:
        """The raw posterior of whole clips `b 3 t h w`."""
        _check_axes("video", video, 3)
        VideoShape(*video.shape[2:]).latent(self.stride)
        return self._moments(video, Stream())

    def encode(self, video: Tensor) -> Tensor:
        """The posterior's mean, normalised: `b 3 t h w` in [-1, 1] to `b c f h w`.

        Where nothing is to be learned it goes in chunks, which take less memory and reuse it; an image has no other
        chunks to remember anything for, and its kernels no past to multiply by.
        """
        if torch.is_grad_enabled() or video.shape[2:3] == (1,):
            return self.normalise(self.posterior(video).mean)
        _check_axes("video", video, 3)
        latent = VideoShape(*video.shape[2:]).latent(self.stride)
        more = self.stride.time * max(1, chunk_frames(latent.height, latent.width) // 2)  # frames of a later chunk
        return self.encode_pieces(video.shape[2], more, lambda start, stop: video[:, :, start:stop])

    @torch.no_grad()
    def encode_pieces(self, frames: int, more: int, piece: Callable[[int, int], Tensor]) -> Tensor:
        """As `encode`, of a clip that need not be in memory as a whole: `piece(start, stop)` gives these of its frames.

        Pieces `b 3 t h w` are first 1 + `more` frames, then `more`, a multiple of the stride, and last what is left.
        """
        state, parts, start = None, [], 0
        while start < frames:
            stop = min(frames, start + more + (start == 0))
            part, state = self.encode_chunk(piece(start, stop), state, spend=True)
            parts.append(part)
            start = stop
        return torch.cat(parts, dim=2)

    def encode_chunk(self, chunk: Tensor, state: State | None = None, *, spend: bool = False) -> tuple[Tensor, State]:
        """The next frames of a clip: first 1 + 4k with state None, then 4k with the state that came back.

        spend: the state is not used again, and may be written over by the next one.
        """
        _check_axes("chunk", chunk, 3)
        if state is None:
            VideoShape(*chunk.shape[2:]).latent(self.stride)
        else:
            check_multiple("frames of a later chunk", chunk.shape[2], self.stride.time)
        stream = Stream(state, keep=True, spend=spend)
        latents = self.normalise(self._moments(chunk, stream).mean)
        return latents, stream.state()

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """Normalised latents `b c f h w` to video `b 3 t h w`; without clamp, as a loss should see it."""
        video = self._pixels(latents, Stream())
        return video.clamp(-1, 1) if clamp else video

    def decode_chunk(self, latents: Tensor, state: State | None = None, *, spend: bool = False) -> tuple[Tensor, State]:
        """The next latent frames of a clip, any number of them, to their frames; state None at the clip's start.

        spend: as in `encode_chunk`.
        """
        stream = Stream(state, keep=True, spend=spend)
        return self._pixels(latents, stream).clamp_(-1, 1), stream.state()

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """The clip in chunks of `chunk_frames` latent frames. Memory does not grow with the clip's length."""
        return (video for video, _ in self.decode_more(latents))

    def decode_more(self, latents: Tensor, state: State | None = None) -> Iterator[tuple[Tensor, State]]:
        """The next latents of a clip in such chunks, each with the state from which decoding goes on behind it.

        state: None at the clip's beginning. However the latents are cut, the frames are those of the whole clip. A
        state is used up where decoding goes on from it: the next one is written over it.
        """
        for part in latents.split(chunk_frames(*latents.shape[3:]), dim=2):
            with torch.no_grad():
                video, state = self.decode_chunk(part, state, spend=True)
            yield video, state

    def reconstruct(self, video: Tensor, generator: Generator | None = None) -> tuple[Tensor, Posterior]:
        """A training pass: the unclamped reconstruction from one draw of the posterior, and the posterior."""
        posterior = self.posterior(video)
        return self.decode(self.normalise(posterior.sample(generator)), clamp=False), posterior

    def normalise(self, raw: Tensor) -> Tensor:
        mean, std = self._statistics(raw)
        return (raw - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return latents * std + mean

    def normalise_by(self, statistics: LatentStatistics) -> None:
        """From now on latents are normalised by these statistics, which `config` then holds for writing."""
        self.config = replace(self.config, latents_mean=statistics.mean, latents_std=statistics.std)

    @torch.no_grad()
    def measure(self, videos: Iterable[Tensor]) -> LatentStatistics:
        """Statistics of the raw latents over batches of clips, each `b 3 t h w`."""
        return latent_statistics(self.posterior(video).mean for video in videos)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # Made where they are used: always float32, whatever the module is cast to or loaded as.
        pair = torch.tensor(
            [self.config.latents_mean, self.config.latents_std], dtype=torch.float32, device=like.device
        )
        mean, std = pair.reshape(2, 1, -1, 1, 1, 1)
        return mean, std

    def _moments(self, video: Tensor, stream: Stream) -> Posterior:
        p = self.config.patch
        x = rearrange(video, "b c t (h p) (w q) -> b (c q p) t h w", p=p, q=p)
        moments = self.to_moments(self.encoder(self._enter(x), stream), stream)
        mean, logvar = _full(moments).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def _pixels(self, latents: Tensor, stream: Stream) -> Tensor:
        _check_axes("latents", latents, self.latent_channels)
        p = self.config.patch
        x = self.from_latents(self._enter(self.denormalise(latents)), stream)
        return _full(rearrange(self.decoder(x, stream), "b (c q p) t h w -> b c t (h p) (w q)", p=p, q=p))

    def _enter(self, x: Tensor) -> Tensor:
        return x.to(self.to_moments.weight.dtype, memory_format=torch.channels_last_3d)


def _check_axes(name: str, value: Tensor, channels: int) -> None:
    if value.ndim != 5 or value.shape[1] != channels:
        raise ValueError(f"{name} of shape {tuple(value.shape)}: expected (batch, {channels}, frames, height, width)")


def _full(x: Tensor) -> Tensor:
    """At least float32: what leaves the networks is not rounded further."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
