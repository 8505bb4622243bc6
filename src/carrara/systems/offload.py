"""Models larger than memory: transformers whose blocks come in one at a time, text encoders that leave once they read.

The blocks of an offloaded transformer stay where they are, in their files or on another device. While one computes, the
next comes in a thread, so two are held. What is computed is the same to the bit: a block that came in holds the very
values that loading it would have made. Not standard: files are opened anew for every block and closed behind it, so
that mapped pages do not pile up either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from carrara.core.shards import outline
from carrara.core.types import TextStates
from carrara.core.weights import Reader, fill, kept_type
from carrara.denoisers.dit import Block, DiT
from carrara.nn import lora
from carrara.text.encoder import TextEncoder, TextEncoderConfig

if TYPE_CHECKING:
    from carrara.systems.parts import Network

Bring = Callable[[int, torch.device], Mapping[str, Tensor]]
"""The tensors of block i by their names in it, each a copy on the device, in the type that it runs in."""

_PREFIX = "blocks."


class OffloadedBlocks(nn.Module):
    """The blocks of a transformer, of which those in use are held: a sequence that `DiT` goes through in order.

    Parameters of blocks that are elsewhere are none of this module's: they are not trained, counted, moved or written.
    """

    def __init__(self, make: Callable[[], Block], count: int, bring: Bring, device: torch.device) -> None:
        super().__init__()
        self._make, self._count, self._bring, self._device = make, count, bring, device
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="blocks")
        self._coming: dict[int, Future[Block]] = {}
        self._adapters: list[Mapping[str, lora.LowRank]] = []
        self.register_state_dict_pre_hook(_refuse)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(self._count))

    def __getitem__(self, index: int) -> Block:
        """Block `index`, of which nothing is kept here; the one behind it begins to come.

        Nothing comes behind the last: between two passes no block is held.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"block {index} of {self._count}")
        asked = self._coming.pop(index, None) or self._worker.submit(self._load, index)
        block = asked.result()
        following = index + 1
        self._coming = {at: coming for at, coming in self._coming.items() if at == following}
        if following < self._count and following not in self._coming:
            self._coming[following] = self._worker.submit(self._load, following)
        if self._device.type == "cuda":  # it was made on another stream than it is used on
            for parameter in block.parameters():
                parameter.record_stream(torch.cuda.current_stream(self._device))
        return block

    def attach(self, terms: Mapping[str, lora.LowRank]) -> None:
        """Put terms on the layers of these names ("0.mlp.rise") whenever their block comes in; they are held here."""
        self._coming = {}
        self._adapters.append(terms)

    def detach(self) -> None:
        """Forget all terms."""
        self._coming = {}
        self._adapters = []

    @torch.no_grad()
    def _load(self, index: int) -> Block:
        with torch.device("meta"):
            block = self._make()
        if self._device.type == "cuda":
            stream = torch.cuda.Stream(self._device)
            with torch.cuda.stream(stream):
                values = self._bring(index, self._device)
            stream.synchronize()
        else:
            values = self._bring(index, self._device)
        block.load_state_dict(values, assign=True)
        for terms in self._adapters:
            own = f"{index}."
            lora.attach(block, {name.removeprefix(own): term for name, term in terms.items() if name.startswith(own)})
        return block.eval().requires_grad_(False)


def _refuse(*_: Any) -> NoReturn:
    raise ValueError("the blocks of this model are offloaded, it is not whole here; copy its folder, or load it whole")


def offload(denoiser: DiT, device: torch.device | str) -> DiT:
    """The same network, which it changes: its blocks stay where they are, all else moves to `device`, where it runs.

    For a device with less memory than the one that holds the weights. Only without gradients.
    """
    blocks, device = list(denoiser.blocks), torch.device(device)

    def bring(index: int, device: torch.device) -> dict[str, Tensor]:
        return {name: value.to(device, copy=True) for name, value in blocks[index].state_dict().items()}

    denoiser.blocks = OffloadedBlocks(lambda: Block(denoiser.config), len(blocks), bring, device)  # type: ignore[assignment]
    return denoiser.to(device)


def load_offloaded(network: Network, dtype: torch.dtype | None, device: torch.device | str = "cpu") -> DiT:
    """A transformer of a model folder with its blocks left in their files; see `Network.load` for the rest.

    Raises ValueError, before anything is loaded, for what is missing or does not fit.
    """
    denoiser, table = network.empty()
    if not isinstance(denoiser, DiT):
        raise ValueError(f"a {type(denoiser).__name__} has no blocks that could be offloaded; offload a transformer")
    network.check()
    files = network.files()

    def ours(theirs: str) -> str:
        return table.to_ours(theirs) if table else theirs

    def in_blocks(theirs: str) -> bool:
        return (network.skip is not None and network.skip(theirs)) or ours(theirs).startswith(_PREFIX)

    places: list[list[tuple[Path, str, str]]] = [[] for _ in range(denoiser.config.layers)]
    for path in files:
        for theirs in outline(network.read(path)):
            if (name := ours(theirs)).startswith(_PREFIX):
                index, _, inside = name.removeprefix(_PREFIX).partition(".")
                places[int(index)].append((path, theirs, inside))

    def bring(index: int, device: torch.device) -> dict[str, Tensor]:
        return dict(_read_block(index, places[index], network.read, network.keep, dtype, device))

    denoiser.blocks = nn.ModuleList()  # type: ignore[assignment]
    fill(denoiser, files, network.read, table, dtype, network.keep, in_blocks)
    denoiser.eval().requires_grad_(False).to(device)
    blocks = OffloadedBlocks(lambda: Block(denoiser.config), len(places), bring, torch.device(device))
    denoiser.blocks = blocks  # type: ignore[assignment]
    return denoiser


def _read_block(
    index: int,
    places: list[tuple[Path, str, str]],
    read: Reader,
    keep: Callable[[str], bool] | None,
    dtype: torch.dtype | None,
    device: torch.device,
) -> Iterator[tuple[str, Tensor]]:
    for path in sorted({path for path, _, _ in places}):
        source = read(path)
        for place, theirs, inside in places:
            if place == path:
                value = source[theirs]
                kind = kept_type(value.dtype, dtype, keep is not None and keep(f"{_PREFIX}{index}.{inside}"))
                yield inside, value.to(device, kind, copy=True)


class StagedTextEncoder(nn.Module):
    """A text encoder that is loaded when a prompt is to be read, and freed by `release` when all of a clip's have been.

    load: makes it, as often as it is asked.
    """

    def __init__(self, load: Callable[[], TextEncoder], config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self._load = load
        self.loaded: TextEncoder | None = None

    def forward(self, ids: Tensor, mask: Tensor) -> TextStates:
        """As `TextEncoder.forward`."""
        if self.loaded is None:
            self.loaded = self._load().to(ids.device)
        return self.loaded(ids, mask)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """As `TextEncoder.save`."""
        (self.loaded or self._load()).save(folder, dtype)

    def count(self) -> int:
        """How many parameters it has while it is there."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in TextEncoder(self.config).parameters())

    def release(self) -> None:
        """Give its memory back until the next prompt."""
        self.loaded = None
