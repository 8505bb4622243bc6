"""What decides the contents of a prepared folder: rate, buckets, thresholds, limits. How many processes work does not.

Not standard: sizes are given without frame counts; a bucket is any frame count with any size, and every size is a
bucket of pictures too. A piece has 1 + 4k frames, as causal autoencoders take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from carrara.core.types import VideoShape, check_multiple

LARGEST_PIECE = 1 << 28  # pixels of all frames together: what one process holds at a time, 400 MB


@dataclass(frozen=True)
class Settings:
    """Settings of a preparation. Raises ValueError for what cannot be."""

    fps: float = 16.0
    """Frames per second of the pieces."""
    frames: tuple[int, ...] = (17,)
    """Frames of the pieces; of a shot the longest that fits is cut first."""
    sizes: tuple[tuple[int, int], ...] = ((256, 256), (320, 192), (192, 320))
    """Width and height of the buckets."""
    multiple: int = 16
    """What the sides must be multiples of: the autoencoder's stride times the transformer's patch."""
    chroma: int = 420
    """How colour is stored: 420 (a quarter of it, as in nearly all sources) or 444 (all)."""
    most_upscaled: float = 1.25
    """How many times larger a source may be shown than it is."""
    most_cropped: float = 0.5
    """Share of the picture that may be cut away to fit a bucket."""
    least_rate: float = 0.5
    """Share of a piece's frames that must differ in time; below, its source is too slow for the wanted rate."""
    cut_sensitivity: float = 1.0
    """Above 1 more cuts are found, below 1 fewer."""
    black: float = 0.06
    """Brightness up to which a frame is black; 0 keeps black."""
    frozen: float = 0.012
    """Change of brightness anywhere in the picture, up to which a piece stands still; 0 keeps stills."""
    duplicate: float = 0.07
    """Difference of brightness anywhere in the picture, up to which two pieces are one; 0 keeps duplicates."""
    images: bool = True
    """Prepare pictures too."""
    caption_column: str = ""
    """Column of metadata files that holds the captions; "caption" or "text" if not given."""
    licence: str = ""
    """Licence of what has none of its own in a metadata file."""
    captioner: str = ""
    """Command that captions what has no caption; {clip} and {sheet} stand for files, one line is read."""
    caption_model: str = ""
    """Folder of a transformers model that does."""
    caption_prompt: str = "Describe this video in one sentence."
    """What a model that takes instructions is asked."""
    shard_bytes: int = 256 << 20
    """Size at which a shard is full."""
    most_pixels: int = 8192 * 4608
    """Pixels of a frame that are still decoded."""
    seconds: float = 7200.0
    """Time for one file."""
    stall: float = 300.0
    """Time without any progress, after which a file is given up."""

    def __post_init__(self) -> None:
        if not (isfinite(self.fps) and 0 < self.fps <= 240):
            raise ValueError(f"fps={self.fps:g}: must be a number above 0, at most 240")
        if not self.frames or not self.sizes:
            raise ValueError("no buckets: give at least one number of frames and one size")
        for count in self.frames:
            if count < 5:
                raise ValueError(f"frames={count}: a clip has at least 5 frames; pictures come from picture files")
            if more := (count - 1) % 4:
                near = f"{count - more} or {count - more + 4}"
                raise ValueError(f"frames={count}: a piece has 4k+1, as causal autoencoders take them; nearest {near}")
        if self.multiple < 2 or self.multiple % 2:
            raise ValueError(f"multiple={self.multiple}: must be even and at least 2; 16 suits most models")
        for width, height in self.sizes:
            check_multiple("width", width, self.multiple)
            check_multiple("height", height, self.multiple)
            if width * height * max(self.frames) > LARGEST_PIECE:
                most = LARGEST_PIECE // (width * height)
                raise ValueError(f"{max(self.frames)} frames of {width}x{height} are too many to hold; at most {most}")
        for name, values in (("frames", self.frames), ("sizes", self.sizes)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: name each only once")
        if self.chroma not in (420, 444):
            raise ValueError(f"chroma={self.chroma}: must be 420 or 444")
        if self.captioner and self.caption_model:
            raise ValueError("captioner and caption_model: give one of them")
        for name, low, high in (
            ("most_upscaled", 1, 100),
            ("most_cropped", 0, 1),
            ("least_rate", 0, 1),
            ("cut_sensitivity", 0.01, 100),
            ("black", 0, 1),
            ("frozen", 0, 1),
            ("duplicate", 0, 1),
            ("shard_bytes", 1 << 10, 1 << 40),
            ("most_pixels", 1, 1 << 31),
            ("seconds", 0.1, 1e9),
            ("stall", 0.1, 1e9),
        ):
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"{name}={value:g}: must be from {low:g} to {high:g}")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frame counts, the longest first."""
        return tuple(sorted(self.frames, reverse=True))

    def buckets(self) -> list[VideoShape]:
        """Every shape that a piece can have, pictures first."""
        counts = (1, *sorted(self.frames)) if self.images else tuple(sorted(self.frames))
        return [VideoShape(count, height, width) for count in counts for width, height in self.sizes]
