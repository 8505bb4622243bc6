"""How much memory a clip will need, how much there is, and what would fit. Asked before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from carrara.core.types import VideoShape
from carrara.systems.latent import LatentVideo, chunk_frames
from carrara.systems.pixel_system import PixelSystem

_SHORT = 1024  # up to so many keys the attention's scores are held as a whole
_FLOAT = 4  # bytes; activations may be narrower, the estimate is on the safe side
_SHARE = 0.9  # of the free memory that may be planned with
_BASE = 192 << 20  # buffers of the libraries and of the threads


def available_memory() -> int:
    """Bytes that this process may still take: the machine's, or its container's where that is less."""
    limits = [value for value in (_machine(), _cgroup()) if value is not None]
    return min(limits) if limits else 1 << 62


def peak_memory(system: LatentVideo | PixelSystem, shape: VideoShape) -> int:
    """Bytes that one clip of this shape takes at its worst moment, beside the weights. An upper estimate."""
    if isinstance(system, PixelSystem):
        return system.peak_memory(shape)
    frames = shape.frames * shape.height * shape.width * 3
    return _BASE + frames + max(_denoising(system, shape), _decoding(system, shape))


def check_memory(system: LatentVideo, shape: VideoShape, available: int | None = None) -> None:
    """Refuse a clip that would not fit, and say what would."""
    available = available_memory() if available is None else available
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
    best = None
    while low <= high:
        middle = (low + high) // 2
        if peak_memory(system, make(middle)) <= budget:
            best, low = make(middle), middle + 1
        else:
            high = middle - 1
    return best


def _denoising(system: LatentVideo, shape: VideoShape) -> int:
    """One block of the transformer, its attention, and the sampler's copies of the latents."""
    config = system.denoiser.config
    latent = shape.latent(system.stride)
    frames, rows, columns = latent.tokens(system.patch)
    tokens, text = frames * rows * columns, system.defaults.max_prompt_tokens + 1
    positions = latent.frames * latent.height * latent.width
    activations = tokens * max(12 * config.dim, 4 * config.dim + 3 * config.ffn_dim)
    keys = max([count for count in (tokens, text) if count <= _SHORT], default=0)
    scores = 3 * config.heads * tokens * keys
    text_keys = 2 * 2 * config.layers * text * config.dim  # keys and values, of the prompt and of the negative one
    return _FLOAT * (activations + scores + text_keys + 12 * system.latent_channels * positions)


def _decoding(system: LatentVideo, shape: VideoShape) -> int:
    """The widest layer of the decoder over one chunk, and what every layer keeps of the past."""
    config = system.autoencoder.config
    latent = shape.latent(system.stride)
    dims, temporal = config.decoder_dims, config.temporal_upsample
    area = latent.height * latent.width
    frames = min(latent.frames, chunk_frames(latent.height, latent.width))
    widest, kept = 0, 4 * 2 * dims[0] * area + area * area
    for level, width in enumerate(dims[1:]):
        kept += (2 * (config.num_res_blocks + 1) + 1) * 2 * width * area
        widest = max(widest, width * frames * area)
        if level < len(temporal):
            frames, area = frames * (2 if temporal[level] else 1), area * 4
            widest = max(widest, width * frames * area)  # widened in space before the channels are halved
    return _FLOAT * (10 * widest + kept)


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
