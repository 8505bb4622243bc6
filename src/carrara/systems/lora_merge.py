"""Adapters merged into a model folder: an ordinary model folder again, and its card says what it is.

Not standard: nothing is loaded but one file of the transformer's weights at a time, in the layout that the folder has,
and every other file is copied as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from carrara.core.files import check_folder
from carrara.denoisers.dit import DiT
from carrara.nn import lora
from carrara.nn.lora import LowRank
from carrara.systems.folder import recognise
from carrara.systems.lora import Asked, fit
from carrara.systems.lora_files import Adapter, read_adapter
from carrara.systems.parts import Network


def merge_folder(model: Path, asked: Sequence[Asked], output: Path) -> None:
    """Write a model folder whose transformer has adapters in its weights, in the types that they are stored in.

    Every other file is copied as it is; a README.md says what was merged, and the model's own becomes README.base.md.
    Added in float32, one file of weights in memory at a time. The folder appears when it is whole. Raises ValueError,
    before anything is written, for an adapter that does not fit, a folder that is there already, or no adapter.
    """
    if not asked:
        raise ValueError("no adapter to merge; name at least one")
    if output.exists():
        raise ValueError(f"{output}: is there already; choose another folder")
    check_folder(output)
    found = recognise(model)
    found.check()
    adapters = [read_adapter(one.path) for one in asked]
    terms: dict[str, dict[str, list[LowRank]]] = {}
    for one, adapter in zip(asked, adapters):
        for part, pairs in adapter.parts.items():
            if part not in found.networks:
                raise ValueError(f"{adapter.where}: adapts {part}, which {model} does not have")
            denoiser = found.networks[part].empty()[0]
            assert isinstance(denoiser, DiT)
            for name, term in fit(pairs, denoiser.config, adapter.where).items():
                term.strength = one.strength
                terms.setdefault(part, {}).setdefault(name, []).append(term)
    changed = {file for part in terms for file in found.networks[part].files()}
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for file in sorted(path for path in model.rglob("*") if path.is_file() and path not in changed):
            to = partial / file.relative_to(model)
            to = to.with_name("README.base.md") if file == model / "README.md" else to
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
        for part, own in terms.items():
            for file in found.networks[part].files():
                _merge_file(found.networks[part], file, own, partial / file.relative_to(model))
        (partial / "README.md").write_text(_card(model, found.fingerprint(), asked, adapters), encoding="utf-8")
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _merge_file(network: Network, file: Path, terms: Mapping[str, Sequence[LowRank]], to: Path) -> None:
    """One file of weights with the deltas of its layers added."""
    table, shard = network.empty()[1], network.read(file)
    merged: dict[str, Tensor] = {}
    for theirs in shard:
        layer, _, leaf = (table.to_ours(theirs) if table else theirs).rpartition(".")
        value = shard[theirs].clone()
        if layer in terms and leaf == "weight":
            value = lora.add_deltas(value, terms[layer])
        elif layer in terms and leaf == "bias":
            value = lora.add_biases(value, terms[layer])
        merged[theirs] = value
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file(merged, to, metadata={"format": "pt"})
    to.chmod(0o644)


def _card(model: Path, made_by: str, asked: Sequence[Asked], adapters: Sequence[Adapter]) -> str:
    """What the merged folder says of itself."""
    rows = [f"| {one.path} | {one.strength:g} | {read.fingerprint} |" for one, read in zip(asked, adapters)]
    words = sorted({word for read in adapters for word in read.words})
    taught = f"\nWords that were taught: {', '.join(words)}.\n" if words else ""
    return "\n".join(
        [
            f"# {model.name} with {'an adapter' if len(rows) == 1 else f'{len(rows)} adapters'} merged",
            "",
            f"`carrara lora merge` added the adapters below to the transformer of `{model.name}` (weights sha256 "
            f"{made_by}), in the types that its weights are stored in; all other parts are as they were. What that "
            "model's card says of quality and data (README.base.md, where there is one) is of the model without them.",
            "",
            "| adapter | weight | sha256 |",
            "|---|---|---|",
            *rows,
            taught,
        ]
    )
