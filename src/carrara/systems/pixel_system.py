"""What the systems of pixels share: text, folders, and pixels as their own latents.

A folder holds `model_index.json` (the system's name), `carrara.json` (what it makes unasked, and its settings), and a
folder for each part: `config.json` and weights of a network, `text_encoder/` and `tokenizer/` as in every model folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from carrara.core.config import from_dict, read_json, to_dict, write_json
from carrara.core.types import Stride, TextStates, VideoShape, check_multiple
from carrara.core.weights import fingerprint, load_weights, save_weights
from carrara.denoisers.unet3d import UNet3D, UNetConfig
from carrara.systems.latent import Defaults, Sampling
from carrara.text.encoder import TextEncoder
from carrara.text.tokenizer import Tokenizer

WEIGHTS = "model"
Module = TypeVar("Module", bound=nn.Module)


class Pixels(nn.Module):
    """The autoencoder of a system of pixels: it changes nothing."""

    stride = Stride(1, 1)
    latent_channels = 3

    def encode(self, video: Tensor) -> Tensor:
        return video

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        yield latents


class Networks(nn.ModuleDict):
    """The networks of all stages as one module; its `config` is that of the first, which decides what can be asked."""

    @property
    def config(self) -> UNetConfig:
        first = next(iter(self.values()))
        assert isinstance(first, UNet3D)
        return first.config


class PixelSystem:
    """The parts that every system of pixels has. A system names itself and its settings, and samples.

    networks: the U-Nets of its stages, in the order in which a clip passes them, which together are its `denoiser`;
    others: further networks by name, each with a dataclass as its `config`; precision: what the U-Nets compute in when
    clips are drawn, "" for float32, which weights always are.
    """

    NAME: ClassVar[str]
    SETTINGS: ClassVar[type[Any]]
    KEEPS_BY: ClassVar[tuple[str, ...]] = ()
    """The ways to keep known pixels among which can be chosen; none where there is but the system's own."""
    READS_FRAMES: ClassVar[bool] = False
    """Whether frames that are given are read instead of the text."""

    def __init__(
        self,
        networks: Mapping[str, UNet3D],
        text_encoder: TextEncoder,
        tokenizer: Tokenizer,
        defaults: Defaults,
        settings: Any,
        fingerprint: str = "",
        others: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.networks, self.others = dict(networks), dict(others or {})
        self.first = next(iter(self.networks.values()))
        self.denoiser = Networks(self.networks)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.defaults, self.settings, self.fingerprint = defaults, settings, fingerprint
        self.autoencoder = Pixels()
        self.precision = ""
        self.check()
        self.check_sampling(defaults.sampling)

    def check(self) -> None:
        """Refuse networks that do not belong together (ValueError)."""

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse what U-Nets that learned the cosine schedule cannot do (ValueError)."""
        if sampling.grid != "cosine":
            raise ValueError(f"grid={sampling.grid}: this model has learned the cosine schedule; use grid=cosine")
        if sampling.reuse:
            raise ValueError(
                f"reuse={sampling.reuse:g}: skips blocks of a transformer, and this model has none; leave it out"
            )

    def check_keeps(self, frames: int, whole: bool) -> None:
        """Refuse known pixels in a pass of so many frames (ValueError). whole: they are whole frames."""
        raise ValueError("this model keeps nothing of what is given; give it text alone")

    @property
    def stride(self) -> Stride:
        return self.autoencoder.stride

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.latent_channels

    @property
    def patch(self) -> tuple[int, int, int]:
        """In how large steps sides can be chosen."""
        return 1, self.first.config.side_step, self.first.config.side_step

    def check_sides(self, shape: VideoShape) -> None:
        """Refuse sides that are no multiples of the step."""
        for name, side, step in zip(("height", "width"), (shape.height, shape.width), self.patch[1:]):
            check_multiple(name, side, step)

    def to(self, device: torch.device | str) -> Self:
        """Move every network there."""
        for network in (self.denoiser, self.text_encoder, *self.others.values()):
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.first.leave.weight.device

    def count_tokens(self, prompt: str) -> int:
        return self.tokenizer.lengths([prompt])[0]

    def known_words(self) -> list[str]:
        return self.tokenizer.known_words()

    def unknown_words(self, prompt: str) -> list[str]:
        return self.tokenizer.unknown_words(prompt)

    def read(self, prompts: Sequence[str]) -> TextStates:
        """Encode prompts; "" is the null caption."""
        ids, mask = self.tokenizer.encode(prompts)
        return self.text_encoder(ids.to(self.device), mask.to(self.device))

    def finish(self, video: Tensor, prompts: Sequence[str], first: int = 0) -> Tensor:
        """Clips as they are shown: as they are."""
        return video

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """Video `b 3 t h w` in [-1, 1]: the latents."""
        yield latents

    def decode_more(self, latents: Tensor, state: Any = None) -> Iterator[tuple[Tensor, Any]]:
        yield latents, state

    def peak_memory(self, shape: VideoShape) -> int:
        """Bytes that one clip of this shape takes at its worst moment, beside the weights. An upper estimate.

        The finest level of the widest network holds what the way up needs of it, and four copies while a layer works;
        guidance towards what is known keeps all of it for its gradient.
        """
        config = max((network.config for network in self.networks.values()), key=lambda config: config.dim)
        kept = sum(10 * config.blocks * width / 4**level for level, width in enumerate(config.multipliers))
        return int(4 * shape.frames * shape.height * shape.width * config.dim * (kept + 8)) + (192 << 20)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the model folder; `model_index.json` comes last, so that a half-written folder never loads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").unlink(missing_ok=True)
        for name, network in (self.networks | self.others).items():
            write_network(network, folder / name, dtype)
        self.text_encoder.save(folder / "text_encoder", dtype)
        self.tokenizer.save(folder / "tokenizer")
        write_json(folder / "carrara.json", {"defaults": to_dict(self.defaults), "settings": to_dict(self.settings)})
        parts = [*self.networks, *self.others, "text_encoder", "tokenizer"]
        write_json(folder / "model_index.json", {"_class_name": self.NAME, "parts": parts})


def write_network(network: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a network whose `config` is a dataclass: `config.json` and weights."""
    save_weights(network.state_dict(), folder / f"{WEIGHTS}.safetensors", dtype=dtype)
    write_json(folder / "config.json", to_dict(network.config))


def read_network(kind: type[Module], config: type[Any], folder: Path) -> Module:
    """What `write_network` wrote, in evaluation mode without gradients. Raises ValueError for what does not fit."""
    values = from_dict(config, read_json(folder / "config.json"), str(folder / "config.json"))
    with torch.device("meta"):
        network = kind(values)
    load_weights(network, folder, WEIGHTS, dtype=torch.float32)
    return network.eval().requires_grad_(False)


def read_parts(
    folder: Path,
    name: str,
    settings: type[Any],
    others: Mapping[str, tuple[type[nn.Module], type[Any]]] | None = None,
) -> dict[str, Any]:
    """The parts of a folder by the names of `PixelSystem`'s arguments.

    others: what is no U-Net, by name, as its class and that of its `config`. Raises ValueError that names the first
    thing that is missing, foreign or damaged.
    """
    folder, others = Path(folder), others or {}
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != name:
        raise ValueError(f"{folder}: a {index.get('_class_name') or 'nameless'} folder; {name} is expected here")
    parts = index.get("parts")
    if not isinstance(parts, list) or not {"text_encoder", "tokenizer", *others} < set(parts):
        wanted = ", ".join(("networks", *others, "text_encoder", "tokenizer"))
        raise ValueError(f"{folder}/model_index.json: parts={parts!r}: expected {wanted}")
    for part in parts:
        if Path(part).name != part or not (folder / part).is_dir():
            raise ValueError(f"{folder}: no {part}/ in it; is the copy complete?")
    own = read_json(folder / "carrara.json")
    where = f"{folder}/carrara.json"
    return {
        "networks": {
            part: read_network(UNet3D, UNetConfig, folder / part)
            for part in parts
            if part not in ("text_encoder", "tokenizer", *others)
        },
        "others": {part: read_network(*kind, folder / part) for part, kind in others.items()},
        "text_encoder": TextEncoder.load(folder / "text_encoder", torch.float32).requires_grad_(False),
        "tokenizer": Tokenizer.load(folder / "tokenizer"),
        "defaults": from_dict(Defaults, own.get("defaults", {}), where),
        "settings": from_dict(settings, own.get("settings", {}), where),
        "fingerprint": fingerprint(
            [*sorted(path for part in parts for path in (folder / part).iterdir()), folder / "carrara.json"]
        ),
    }
