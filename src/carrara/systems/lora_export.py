"""Adapters as files that others read too: diffusers, PEFT, and programs that know the names of Wan's own files.

What is read, and the layouts by example, is in `lora_files.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from carrara.core.config import choose, write_json
from carrara.core.files import replace_file
from carrara.denoisers.dit_weights import DIFFUSERS, WAN
from carrara.nn.lora import LowRank
from carrara.systems.lora_files import DIFFUSERS_FILE, FIRST, METADATA, OURS, PEFT_CONFIG, PEFT_FILE

LAYOUTS = ("diffusers", "peft", "wan")


def write_adapter(
    parts: Mapping[str, Mapping[str, LowRank]], folder: Path, about: Mapping[str, Any], layout: str = "diffusers"
) -> None:
    """Write terms, by part and by our names, as a folder that others read too. about: JSON values for the header.

    layout: "diffusers" for `load_lora_weights`, "peft" for `PeftModel.from_pretrained` on a diffusers transformer,
    "wan" for programs that know the names of Wan's own files.
    """
    write: Callable[..., None] = choose("layout", layout, dict(zip(LAYOUTS, (_as_diffusers, _as_peft, _as_wan))))
    for part, terms in parts.items():
        place = folder if part == FIRST else folder / part
        place.mkdir(parents=True, exist_ok=True)
        write(terms, place, json.dumps(dict(about), ensure_ascii=False))


def _as_diffusers(terms: Mapping[str, LowRank], folder: Path, about: str) -> None:
    """One file; its keys begin with "transformer." for either expert."""
    named = {DIFFUSERS.to_theirs(name): term for name, term in terms.items()}
    config = {f"{FIRST}.{key}": value for key, value in _config(named).items()}
    tensors = {f"{FIRST}.{key}": value for key, value in _tensors(named, "lora_A", "lora_B").items()}
    _save(tensors, folder / DIFFUSERS_FILE, {METADATA: json.dumps(config), OURS: about})


def _as_peft(terms: Mapping[str, LowRank], folder: Path, about: str) -> None:
    named = {DIFFUSERS.to_theirs(name): term for name, term in terms.items()}
    tensors = {f"base_model.model.{key}": value for key, value in _tensors(named, "lora_A", "lora_B").items()}
    write_json(folder / PEFT_CONFIG, {"peft_type": "LORA", "bias": "none", "inference_mode": True, **_config(named)})
    _save(tensors, folder / PEFT_FILE, {OURS: about})


def _as_wan(terms: Mapping[str, LowRank], folder: Path, about: str) -> None:
    named = {WAN.to_theirs(name): term for name, term in terms.items()}
    if biased := [name for name, term in named.items() if term.bias is not None]:
        raise ValueError(f"{biased[0]!r} has a bias, for which this layout has no name; write diffusers' or peft's")
    tensors = _tensors(named, "lora_down", "lora_up")
    tensors |= {f"{name}.alpha": torch.tensor(term.alpha) for name, term in named.items()}
    _save({f"diffusion_model.{key}": value for key, value in tensors.items()}, folder / DIFFUSERS_FILE, {OURS: about})


def _tensors(terms: Mapping[str, LowRank], down: str, up: str) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for name, term in terms.items():
        made[f"{name}.{down}.weight"], made[f"{name}.{up}.weight"] = term.down, term.up
        if term.bias is not None:
            made[f"{name}.{up}.bias"] = term.bias
    return made


def _config(terms: Mapping[str, LowRank]) -> dict[str, Any]:
    """What PEFT must be told: the first term's rank and alpha, and those that differ by the layer's whole name."""
    first = next(iter(terms.values()))

    def plain(alpha: float) -> int | float:
        return int(alpha) if alpha.is_integer() else alpha

    return {
        "r": first.rank,
        "lora_alpha": plain(first.alpha),
        "target_modules": sorted(terms),
        "rank_pattern": {f"^{name}": term.rank for name, term in terms.items() if term.rank != first.rank},
        "alpha_pattern": {f"^{name}": plain(term.alpha) for name, term in terms.items() if term.alpha != first.alpha},
        "lora_bias": any(term.bias is not None for term in terms.values()),
    }


def _save(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    replace_file(path, lambda place: place.write_bytes(_sorted(save(whole, metadata={"format": "pt", **header}))))


def _sorted(file: bytes) -> bytes:
    """A safetensors file with the keys of its header's metadata in order: the library writes them in any, and the same
    adapter is to be the same bytes."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    return len(text).to_bytes(8, "little") + text + file[8 + size :]
