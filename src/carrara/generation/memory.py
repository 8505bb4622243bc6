"""How much memory a clip will need, how much there is, and what would fit. Asked before the first step.

Not standard: beside the tensors that are alive at the worst moment, the estimate counts what the C library holds back
of those that are freed (measured: `benchmarks/memory.py`), and tells weights that are allocated from weights that are
pages of a mapped file, which the system takes back where memory is short.
"""

from __future__ import annotations

import ctypes
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from carrara.core.types import LatentShape, VideoShape
from carrara.systems.denoising import TOGETHER
from carrara.systems.latent import LatentVideo, chunk_frames
from carrara.systems.offload import OffloadedBlocks, StagedTextEncoder
from carrara.systems.pixel_system import PixelSystem

_FLOAT = 4  # bytes
_PIECE = 1 << 19  # scores that attention makes at a time, as `nn/attention.py` has it
_CACHED = 4 << 20  # bytes that a norm works on at a time, as `autoencoders/causal.py` has it
_SHARE = 0.9  # of the free memory that may be planned with
_BASE = 54 << 20  # pages of the libraries' code that computing and encoding touch first
_HELD_BACK = 1.25  # what the C library holds of the system's memory, over what is alive in it: 1.1 to 1.6, by chance
_ENCODER = 90  # bytes a pixel: the frames that H.264 looks ahead at


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a clip takes, by what takes them. Stages come one after the other, so the largest counts.

    allocated, mapped: weights in memory of their own, and weights that are pages of mapped files; base: of libraries;
    text, denoising, decoding, refining: of each stage, with what only it holds; frames: what is collected of the clip
    itself.
    """

    allocated: int
    mapped: int
    base: int
    text: int
    denoising: int
    decoding: int
    refining: int
    frames: int

    @property
    def beside_weights(self) -> int:
        return self.base + self.frames + max(self.text, self.denoising, self.decoding, self.refining)

    @property
    def peak(self) -> int:
        """Above the interpreter with its modules: what the system says a process holds at most, if memory is ample."""
        return self.allocated + self.mapped + self.beside_weights


def give_back() -> None:
    """What was freed goes back to the system, where the C library can (glibc): stages then do not add up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that this process may still take: of a GPU what is free there, else the machine's, or its container's where
    that is less."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [value for value in (_machine(), _cgroup()) if value is not None]
    return min(limits) if limits else 1 << 62


def plan_memory(system: LatentVideo, shape: VideoShape) -> MemoryPlan:
    """What one clip of this shape will take with the system as it is loaded. Nothing is computed."""
    return _plan(system, shape, held_weights(system.networks()))


def peak_memory(system: LatentVideo | PixelSystem, shape: VideoShape) -> int:
    """Bytes that one clip of this shape takes at its worst moment, beside the weights."""
    if isinstance(system, PixelSystem):
        return system.peak_memory(shape)
    return _plan(system, shape, (0, 0)).beside_weights


def _plan(system: LatentVideo, shape: VideoShape, weights: tuple[int, int]) -> MemoryPlan:
    frames = shape.frames * shape.height * shape.width * 3
    stages = (_reading(system), _denoising(system, shape), _decoding(system, shape), _refining(system, shape))
    return MemoryPlan(*weights, _BASE, *stages, frames)


def held_weights(networks: Iterable[nn.Module]) -> tuple[int, int]:
    """Bytes of weights that are allocated, and of those that are a mapped file's (on Linux; elsewhere none count)."""
    tensors = [value for network in networks for value in (*network.parameters(), *network.buffers())]
    files = _mapped_files()
    starts = [start for start, _ in files]

    def is_mapped(value: Tensor) -> bool:
        at = bisect_right(starts, value.data_ptr()) - 1
        return at >= 0 and value.data_ptr() < files[at][1]

    mapped = sum(value.nbytes for value in tensors if value.device.type == "cpu" and is_mapped(value))
    return sum(value.nbytes for value in tensors if value.device.type != "meta") - mapped, mapped


def _mapped_files() -> list[tuple[int, int]]:
    """The addresses at which files are mapped, in order."""
    try:
        lines = [line.split() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    ranges = (line[0].split("-") for line in lines if line[4] != "0")
    return sorted((int(start, 16), int(stop, 16)) for start, stop in ranges)


def check_memory(system: LatentVideo, shape: VideoShape, available: int | None = None) -> None:
    """Refuse a clip that would not fit, and say what would."""
    available = available_memory(system.device) if available is None else available
    need = peak_memory(system, shape)
    if need > available * _SHARE:
        fitting = largest_that_fits(system, shape, available)
        options = " or ".join(f"{fit.frames} frames of {fit.width}x{fit.height}" for fit in fitting)
        raise ValueError(
            f"{shape.frames} frames of {shape.width}x{shape.height} need about {_size(need)} of memory, "
            f"{_size(available)} are free; {f'what fits: {options}' if options else 'not even a small clip would fit'}"
        )


def largest_that_fits(system: LatentVideo, shape: VideoShape, available: int) -> list[VideoShape]:
    """The longest clip of this size and the largest picture of this length that fit, where there are such."""
    budget, stride, patch = available * _SHARE, system.stride, system.patch
    rows, columns = shape.height // (stride.space * patch[1]), shape.width // (stride.space * patch[2])
    steps = (shape.frames - 1) // (stride.time * patch[0])

    def shorter(k: int) -> VideoShape:
        return VideoShape(1 + k * stride.time * patch[0], shape.height, shape.width)

    def smaller(k: int) -> VideoShape:  # the same proportions, as nearly as whole patches allow
        sides = (max(1, round(side * k / max(rows, columns))) for side in (rows, columns))
        height, width = (side * stride.space * step for side, step in zip(sides, patch[1:]))
        return VideoShape(shape.frames, height, width)

    found = (
        _largest(shorter, 0, steps - 1, system, budget),
        _largest(smaller, 1, max(rows, columns) - 1, system, budget),
    )
    return [fit for fit in found if fit is not None]


def _largest(
    make: Callable[[int], VideoShape], low: int, high: int, system: LatentVideo, budget: float
) -> VideoShape | None:
    best, most = None, high
    while low <= high:
        middle = (low + high) // 2
        if peak_memory(system, make(middle)) <= budget:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    # A larger clip may need a little less, where its convolutions run in a leaner kernel.
    while best is not None and best < most and peak_memory(system, make(best + 1)) <= budget:
        best += 1
    return None if best is None else make(best)


def _reading(system: LatentVideo) -> int:
    """The weights of a text encoder that is there only while it reads, and a layer over the longest prompt."""
    encoder = system.text_encoder
    config, tokens = encoder.config, system.defaults.max_prompt_tokens
    layer = _FLOAT * tokens * (8 * config.d_model + 3 * config.d_ff + 3 * config.num_heads * tokens)
    if not isinstance(encoder, StagedTextEncoder):
        return layer
    return layer + encoder.count() * _compute_bytes(system)


def _denoising(system: LatentVideo, shape: VideoShape) -> int:
    """One block of the transformer at its worst: with the tokens as they were embedded, as the block was given them
    and as they are, the two widest tensors of the feed-forward; or with queries, keys and values before and after their
    norm. Pieces of scores; what all blocks read of the prompts; the sampler's copies of the latents."""
    config, size = system.denoiser.config, _compute_bytes(system)
    latent = shape.latent(system.stride)
    frames, rows, columns = latent.tokens(system.patch)
    tokens, text = frames * rows * columns, system.defaults.max_prompt_tokens + 1
    together = tokens <= TOGETHER
    tokens *= 2 if together else 1
    feeding = (3 * _FLOAT + 2 * size) * config.dim + 2 * size * config.ffn_dim
    attending = (4 * _FLOAT + 6 * size) * config.dim
    scores = 3 * min(config.heads * tokens * max(tokens, text), _PIECE)
    text_keys = (4 if together else 2) * 2 * config.layers * text * config.dim * size
    copies = 12 * system.latent_channels * latent.frames * latent.height * latent.width
    alive = tokens * max(feeding, attending) + _FLOAT * (scores + copies)
    return int(_HELD_BACK * alive) + text_keys + _offloaded(system)


def _offloaded(system: LatentVideo) -> int:
    """Of offloaded blocks: the one that computes, the next, and the pages that it comes from, at most float32."""
    blocks = system.denoiser.blocks
    if not isinstance(blocks, OffloadedBlocks):
        return 0
    config = system.denoiser.config
    parameters = (8 * config.dim + 2 * config.ffn_dim) * config.dim
    return parameters * (2 * _compute_bytes(system) + _FLOAT)


def _compute_bytes(system: LatentVideo) -> int:
    return system.denoiser.head.weight.dtype.itemsize


def _decoding(system: LatentVideo, shape: VideoShape) -> int:
    """The decoder over its first chunk or a later one, what its layers keep of the past, and the frames it makes."""
    latent = shape.latent(system.stride)
    most = chunk_frames(latent.height, latent.width)
    alive = _chunk(system, latent, min(latent.frames, most), True)
    if latent.frames > most:
        alive = max(alive, _chunk(system, latent, min(latent.frames - most, most), False))
    kept = _vae_bytes(system) * _kept(system, latent.height * latent.width)
    return int(_HELD_BACK * (alive + kept)) + _ENCODER * shape.height * shape.width


def _refining(system: LatentVideo, shape: VideoShape) -> int:
    """A refiner over all frames at once: at its finest level what goes up, what came down and what a convolution reads
    and writes; copies of the clip on its way in and out; pieces of scores."""
    if system.refiner is None:
        return 0
    config = system.refiner.config
    places = shape.frames * shape.height * shape.width / config.fold**2
    alive = places * 8 * (config.unet.dim + config.unet.channels) + 3 * _PIECE
    return int(_HELD_BACK * _FLOAT * alive)


def _vae_bytes(system: LatentVideo) -> int:
    return next(system.autoencoder.parameters()).dtype.itemsize


def _kept(system: LatentVideo, area: int) -> int:
    """Values that all layers with a memory leave for the next chunk: two frames each of what they read."""
    config = system.autoencoder.config
    values = (config.latent_channels + 4 * config.decoder_dims[0]) * area
    for level, (enter, width) in enumerate(_levels(system)):
        values += (enter + (2 * config.num_res_blocks + 1) * width) * area
        if level < len(config.temporal_upsample):
            values += width * area if config.temporal_upsample[level] else 0
            area *= 4
    return 2 * (values + config.decoder_dims[-1] * area)


def _chunk(system: LatentVideo, latent: LatentShape, frames: int, first: bool) -> int:
    """Bytes at the worst moment of so many latent frames, beside what is kept.

    Within the decoder that is where a convolution's input is put together: what the block was given is alive, what is
    normed, the same with two frames of the past before it (zeros of their own in a first chunk), and a piece on which
    the norm works. The last chunk's frames are then still with whoever writes them. Or it is behind the decoder,
    where frames become bytes.
    """
    config, size = system.autoencoder.config, _vae_bytes(system)
    area, worst, past = latent.height * latent.width, 0, 4 if first else 2
    for level, (enter, width) in enumerate(_levels(system)):
        last = level == len(config.temporal_upsample)
        around = enter * frames if config.residual and not last else 0  # for the shortcut
        entering = max(enter * (2 * frames + past), enter * frames + width * (2 * frames + past))
        inside = width * (3 * frames + past)
        frame = size * max(enter, width) * area
        piece = frame * min(frames, max(1, _CACHED // frame))
        worst = max(worst, size * area * (around + max(entering, inside)) + piece)
        if not last:
            if config.temporal_upsample[level]:
                frames = 2 * frames - 1 if first else 2 * frames
            area *= 4
    made = _FLOAT * 3 * frames * area * config.patch**2
    return max(worst + (0 if first else made), 13 * made // 4)


def _levels(system: LatentVideo) -> list[tuple[int, int]]:
    """Channels that enter each level of the decoder, and those of its blocks."""
    config = system.autoencoder.config
    pairs = enumerate(zip(config.decoder_dims, config.decoder_dims[1:]))
    return [(narrow if config.residual or level == 0 else narrow // 2, width) for level, (narrow, width) in pairs]


def _machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:  # no /proc: half of what is installed
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return None


def _cgroup() -> int | None:
    """What a container's limit leaves (version 2, then 1). Cached files count as used there: they are given back."""
    root = Path("/sys/fs/cgroup")
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most = (root / limit).read_text(encoding="ascii").strip()
            if most == "max" or int(most) >= 1 << 60:
                continue
            lines = (line.split() for line in (root / stat).read_text(encoding="ascii").splitlines())
            returned = next((int(line[1]) for line in lines if line[0] == cached), 0)
            return max(0, int(most) - int((root / used).read_text(encoding="ascii")) + returned)
        except (OSError, ValueError):
            continue
    return None


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
