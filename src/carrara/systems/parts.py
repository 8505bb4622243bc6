"""A model folder before anything of it is loaded: its networks, where their weights lie, and how they are filled.

Both layouts become this one value. Networks are built on the meta device and filled from mapped files, so that memory
holds each weight once; in the published precision (below) most are the mapped file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from carrara.autoencoders.video import VideoAutoencoder
from carrara.core.weights import (
    Names,
    NameTable,
    Reader,
    Shard,
    check,
    fill,
    fingerprint,
    kept_type,
    outline,
    sampled_fingerprint,
)
from carrara.denoisers.dit import DiT
from carrara.systems.image_tower import ImageTower
from carrara.systems.kinds import ModelKind, Parts
from carrara.systems.latent import Defaults, Sampling
from carrara.systems.offload import StagedTextEncoder, load_offloaded
from carrara.systems.refiner import Refiner
from carrara.text.tokenizer import Tokenizer

PUBLISHED_TYPES = {
    "transformer": torch.bfloat16,
    "transformer_2": torch.bfloat16,
    "text_encoder": torch.bfloat16,
    "vae": torch.float32,
    "image_encoder": torch.float32,
    "refiner": torch.float32,
}
"""What Wan's own code computes with, where the user does not say."""

INCOMPLETE = "is the download complete?"
_READ_WHOLE = 4 << 30  # bytes of weights up to which a fingerprint reads all of them


@dataclass(frozen=True)
class Stored:
    """How the weights of a network lie on disk: parameters, bytes, and parameters by type."""

    parameters: int
    bytes: int
    types: dict[torch.dtype, int]


@dataclass(frozen=True)
class Network:
    """One network of a folder.

    build: makes it (asked on the meta device); files: where its weights are, a ValueError where one is missing;
    read, table, keep, skip: as `core.weights.fill` has them.
    """

    build: Callable[[], nn.Module]
    files: Callable[[], Sequence[Path]]
    read: Reader = Shard
    table: Callable[[Any], NameTable] | None = None
    keep: Names | None = None
    skip: Names | None = None

    def empty(self) -> tuple[nn.Module, NameTable | None]:
        """The network without storage, and its names."""
        with torch.device("meta"):
            module = self.build()
        return module, None if self.table is None else self.table(module)

    def load(self, dtype: torch.dtype | None) -> nn.Module:
        """The network, filled, in evaluation mode without gradients. dtype None: as stored."""
        module, table = self.empty()
        fill(module, self.files(), self.read, table, dtype, self.keep, self.skip)
        return module.eval().requires_grad_(False)

    def check(self) -> Any:
        """The network without storage. Raises ValueError for the first file or tensor that is missing or does not fit;
        of the files only headers are read."""
        module, table = self.empty()
        check(module, self.files(), self.read, table, self.skip)
        return module

    def stored(self) -> Stored:
        """How its files hold it. Raises ValueError where one is missing or damaged."""
        types: dict[torch.dtype, int] = {}
        for value in self._tensors():
            types[value.dtype] = types.get(value.dtype, 0) + value.numel()
        return Stored(sum(types.values()), sum(n * kind.itemsize for kind, n in types.items()), types)

    def converted(self, dtype: torch.dtype | None) -> int:
        """Bytes that loading in this type takes beside the mapped files."""
        return sum(size for size, mapped in self._kept(dtype) if not mapped)

    def kept(self, dtype: torch.dtype | None) -> int:
        """Bytes of the loaded network, mapped or not."""
        return sum(size for size, _ in self._kept(dtype))

    def _kept(self, dtype: torch.dtype | None) -> list[tuple[int, bool]]:
        """Bytes of every tensor once loaded, and whether it is the mapped file. Islands count as matrices: they are
        few."""
        kinds = ((value, kept_type(value.dtype, dtype, False)) for value in self._tensors())
        return [(value.numel() * kind.itemsize, kind == value.dtype) for value, kind in kinds]

    def _tensors(self) -> list[torch.Tensor]:
        files = (outline(self.read(path)) for path in self.files())
        return [value for file in files for name, value in file.items() if self.skip is None or not self.skip(name)]


@dataclass(frozen=True)
class ModelFolder:
    """A recognised model folder, of which nothing has been loaded.

    layout: "diffusers" or "original"; networks: by diffusers' names of the parts, those that this kind needs;
    tokenizer: its folder; foreign: not written by Carrara.
    """

    folder: Path
    layout: str
    kind: ModelKind
    networks: Mapping[str, Network]
    tokenizer: Path
    defaults: Defaults
    foreign: bool = True

    def dtype(self, part: str, dtype: torch.dtype | None) -> torch.dtype:
        """The type that a network is loaded in where `dtype` is asked for; None is the published precision."""
        if part == "refiner":
            return torch.float32  # its norms want it; it computes in other precisions by autocast
        if dtype is not None:
            return dtype
        return PUBLISHED_TYPES[part] if self.foreign else torch.float32

    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        """One network, filled."""
        return self.networks[part].load(self.dtype(part, dtype))

    def check(self) -> None:
        """Refuse the folder, before anything is loaded, for the first thing that is missing or does not fit."""
        empty = {part: network.check() for part, network in self.networks.items()}
        if not self.tokenizer.is_dir():
            raise ValueError(f"{self.folder}: no {self.tokenizer.relative_to(self.folder)}/ in it; {INCOMPLETE}")
        Tokenizer.load(self.tokenizer)
        made, taken = empty["transformer"].config.out_channels, empty["vae"].config.latent_channels
        if made != taken:
            raise ValueError(
                f"{self.folder}: the transformer makes {made} channels and the autoencoder takes {taken}; these parts "
                "do not belong together"
            )
        if "refiner" in empty:
            sides = empty["vae"].stride.space * empty["transformer"].config.patch[1]
            try:
                empty["refiner"].check_fits(empty["text_encoder"].config.d_model, sides)
            except ValueError as error:
                raise ValueError(f"{self.folder}: {error}") from None

    def converted(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of memory that loading takes beside the mapped files."""
        return sum(network.converted(self.dtype(part, dtype)) for part, network in self.networks.items())

    def files(self) -> list[Path]:
        """Every file whose bytes decide what the model makes, in a fixed order."""
        weights = [path for network in self.networks.values() for path in network.files()]
        return [*weights, *sorted(self.tokenizer.glob("*.json"))]

    def fingerprint(self) -> str:
        """Of all of them; of many gigabytes a sample is taken of each file, for reading all would take minutes."""
        return _fingerprint(self.files())

    def fingerprint_of(self, part: str) -> str:
        """Of one network's files, in the same way."""
        return _fingerprint(self.networks[part].files())

    def load_offloaded(self, part: str, dtype: torch.dtype | None = None, device: str = "cpu") -> DiT:
        """A transformer whose blocks stay in their files, see `systems/offload.py`."""
        return load_offloaded(self.networks[part], self.dtype(part, dtype), device)

    def load_staged(self, dtype: torch.dtype | None = None) -> StagedTextEncoder:
        """The text encoder, which is loaded when a prompt is to be read."""
        outline: Any = self.networks["text_encoder"].empty()[0]
        return StagedTextEncoder(lambda: self.load("text_encoder", dtype), outline.config)

    def parts(
        self, dtype: torch.dtype | None = None, staged: bool = False, offload: bool = False, device: str = "cpu"
    ) -> Parts:
        """Load everything. Raises ValueError, before the first network is filled, for what is missing or foreign.

        staged: the text encoder only while prompts are read; offload: of a transformer the blocks in use only, which
        compute on `device`; all else is on the CPU yet.
        """
        self.check()
        load = partial(self.load_offloaded, device=device) if offload else self.load
        autoencoder: VideoAutoencoder = self.load("vae", dtype)
        denoiser: DiT = load("transformer", dtype)
        low: DiT | None = load("transformer_2", dtype) if "transformer_2" in self.networks else None
        text_encoder = self.load_staged(dtype) if staged else self.load("text_encoder", dtype)
        tower: ImageTower | None = self.load("image_encoder", dtype) if "image_encoder" in self.networks else None
        refiner: Refiner | None = self.load("refiner", dtype) if "refiner" in self.networks else None
        return Parts(
            self.kind,
            autoencoder,
            denoiser,
            low,
            text_encoder,
            Tokenizer.load(self.tokenizer),
            tower,
            self.defaults,
            self.fingerprint(),
            refiner,
        )


def _fingerprint(files: Sequence[Path]) -> str:
    whole = sum(path.stat().st_size for path in files) <= _READ_WHOLE
    return (fingerprint if whole else sampled_fingerprint)(files)


def defaults_of(kind: ModelKind, shift: float, sampler: str, grid: str) -> Defaults:
    """What a foreign model makes unasked: what its kind was released with, on the grid that its folder asks for."""
    sampling = Sampling(kind.steps, kind.guidance, sampler, shift, grid, low_guidance=kind.low_guidance)
    knows = ("levels",) if kind.expand_timesteps else ()
    return Defaults(kind.frames, kind.height, kind.width, kind.fps, sampling, kind.negative, knows=knows)
