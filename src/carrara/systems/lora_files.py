"""Files of adapters: the pairs of thin matrices that a folder or file holds, whoever wrote it.

Read, from safetensors only:

    transformer.blocks.0.attn1.to_q.lora_A.weight           diffusers; alpha in the header, else the rank
    base_model.model.blocks.0.attn1.to_q.lora_A.weight      PEFT; alpha in adapter_config.json beside it
    diffusion_model.blocks.0.self_attn.q.lora_down.weight   as in Wan's own files (ComfyUI); alpha is a tensor
    lora_unet_blocks_0_self_attn_q.lora_down.weight         the same with underscores

A folder holds one such file, and for the second of two experts another in its `transformer_2/` (which diffusers loads
with `load_into_transformer_2=True`), or the pair `high_noise_model.safetensors` and `low_noise_model.safetensors`. The
first three are also written (`lora_export.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from carrara.core.config import read_json
from carrara.core.shards import Shard
from carrara.core.weights import fingerprint

FIRST, SECOND = "transformer", "transformer_2"
DIFFUSERS_FILE, PEFT_FILE, PEFT_CONFIG = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "adapter_config.json",
)
EXPERT_FILES = ("high_noise_model.safetensors", "low_noise_model.safetensors")
METADATA, OURS = "lora_adapter_metadata", "carrara"  # keys of a file's header: diffusers', and our own
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PREFIXES = {
    f"{FIRST}.": FIRST,
    f"{SECOND}.": SECOND,
    "base_model.model.": "",
    "diffusion_model.": "",
    "lora_unet_": "",
}
_ENDS = re.compile(
    r"(?P<layer>.+?)\.(?:(?:lora_A|lora_down|lora\.down)(?:\.default)?\.(?P<down>weight)"
    r"|(?:lora_B|lora_up|lora\.up)(?:\.default)?\.(?P<up>weight|bias)|(?P<alpha>alpha))"
)
_REFUSED = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "diff": "whole differences of weights beside",
}


@dataclass(frozen=True, eq=False)
class Pair:
    """One layer's matrices: down `r i`, up `o r`, bias `(o,)` or None; the layer gets alpha / r of their product."""

    down: Tensor
    up: Tensor
    alpha: float
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Adapter:
    """What was read. parts: "transformer", and of two experts "transformer_2" -> a layer's name, as the file has it ->
    its pair; about: what carrara wrote of it, else nothing; fingerprint: SHA-256 of its files."""

    where: str
    parts: Mapping[str, Mapping[str, Pair]]
    about: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def base(self) -> str:
        """The fingerprint of the model that it was trained on; empty where nobody said."""
        return str(self.about.get("base", {}).get("fingerprint", ""))

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it taught, which the model's tokenizer does not know whole."""
        return tuple(self.about.get("words", ()))


def read_adapter(path: str | Path) -> Adapter:
    """Read a folder or a file. Raises ValueError that names the file and what is wrong with it."""
    path = Path(path)
    files = adapter_files(path)
    parts: dict[str, dict[str, Pair]] = {}
    about: dict[str, Any] = {}
    used: list[Path] = []
    for default, file in files.items():
        header = _read_header(file)
        about = about or _json(header.get(OURS), file)
        config, beside = _settings(file, header)
        used += [file, *beside]
        for part, pairs in _read_pairs(file, default, config).items():
            if part in parts:
                raise ValueError(f"{file}: holds {part} as {files[part]} does; give one of them")
            parts[part] = pairs
    return Adapter(str(path), parts, about, fingerprint(used))


def adapter_files(path: Path) -> dict[str, Path]:
    """Which files hold an adapter, by the part of the model they are for. Raises ValueError where none can be told."""
    if path.suffix.lower() in _PICKLES:
        raise ValueError(f"{path}: a pickle, which could run any code; convert it to .safetensors")
    if path.is_file():
        return {FIRST: path}
    if not path.is_dir():
        raise ValueError(f"{path}: no such adapter; give its folder, or its .safetensors file")
    pair = [path / name for name in EXPERT_FILES]
    if all(file.is_file() for file in pair):
        return {FIRST: pair[0], SECOND: pair[1]}
    found = {FIRST: _only(path)}
    if (path / SECOND).is_dir():
        found[SECOND] = _only(path / SECOND)
    return found


def _only(folder: Path) -> Path:
    for name in (DIFFUSERS_FILE, PEFT_FILE):
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(f"{folder}: several files ({', '.join(file.name for file in files[:4])}); name the one to use")
    if pickles := [file.name for file in sorted(folder.iterdir()) if file.suffix.lower() in _PICKLES]:
        raise ValueError(f"{folder}: only {pickles[0]}, a pickle, which could run any code; convert it to .safetensors")
    raise ValueError(f"{folder}: no adapter here; expected {DIFFUSERS_FILE} or {PEFT_FILE}")


def _read_header(file: Path) -> dict[str, str]:
    Shard(file)  # says what is wrong with a damaged one
    with safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}


def _json(text: str | None, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"{file}: its header is damaged ({error})") from None
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class _Settings:
    """What a configuration says of alphas. alpha None: nothing, and then it is the rank."""

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    def alpha_of(self, layer: str, rank: int) -> float:
        """As PEFT looks it up: the first pattern that ends the layer's name, else the common alpha."""
        alpha = self.alpha
        for pattern, value in self.patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                alpha = float(value)
                break
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.by_root else alpha


def _settings(file: Path, header: Mapping[str, str]) -> tuple[_Settings, list[Path]]:
    """What is said of alphas in the header or in adapter_config.json beside the file, and the files that were read."""
    config, beside = file.parent / PEFT_CONFIG, []
    if file.name == PEFT_FILE and config.is_file():
        values, beside = read_json(config), [config]
    else:
        values = {}
        for key, value in _json(header.get(METADATA), file).items():
            values[key.removeprefix(f"{FIRST}.").removeprefix(f"{SECOND}.")] = value
    where = beside[0] if beside else file
    if str(values.get("peft_type", "LORA")) != "LORA":
        raise ValueError(f"{where}: a {values['peft_type']} adapter; only LoRA is read")
    for key in ("use_dora", "modules_to_save", "fan_in_fan_out", "layer_replication", "target_parameters"):
        if values.get(key):
            raise ValueError(f"{where}: {key}={values[key]!r}: such adapters are not read; only plain LoRA is")
    alpha, patterns = values.get("lora_alpha"), values.get("alpha_pattern") or {}
    try:
        for pattern in patterns:
            re.compile(pattern)
        return _Settings(None if alpha is None else float(alpha), patterns, bool(values.get("use_rslora"))), beside
    except (re.error, TypeError, ValueError) as error:
        raise ValueError(f"{where}: lora_alpha={alpha!r}, alpha_pattern={patterns!r}: not readable ({error})") from None


def _read_pairs(file: Path, default: str, settings: _Settings) -> dict[str, dict[str, Pair]]:
    """Part -> layer -> pair. Raises ValueError for tensors of another kind, half a pair, values that are no numbers."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    shard = Shard(file)
    for name in shard:
        part, bare = _part_of(name, default, file)
        match = _ENDS.fullmatch(bare)
        if match is None:
            kind = next((kind for mark, kind in _REFUSED.items() if mark in bare.rpartition(".")[2]), "")
            remedy = (
                f"{kind} LoRA is not read here" if kind else "expected names that end in .lora_A.weight and the like"
            )
            raise ValueError(f"{file}: tensor {name!r}; {remedy}")
        role = "down" if match["down"] else "alpha" if match["alpha"] else {"weight": "up", "bias": "bias"}[match["up"]]
        value = shard[name].clone()
        if not value.isfinite().all():
            raise ValueError(f"{file}: tensor {name!r} holds values that are not finite; the file is damaged")
        found.setdefault((part, match["layer"]), {})[role] = value
    if not found:
        raise ValueError(f"{file}: holds no tensors, so it is no adapter")
    parts: dict[str, dict[str, Pair]] = {}
    for (part, layer), roles in found.items():
        parts.setdefault(part, {})[layer] = _pair(file, layer, roles, settings)
    return parts


def _part_of(name: str, default: str, file: Path) -> tuple[str, str]:
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            if part == FIRST and default == SECOND:
                part = SECOND  # diffusers names either expert so, and is told which one by its caller
            return part or default, name.removeprefix(prefix)
    if name.startswith("text_encoder"):
        raise ValueError(f"{file}: tensor {name!r} is for a text encoder; only transformers are adapted here")
    return default, name


def _pair(file: Path, layer: str, roles: Mapping[str, Tensor], settings: _Settings) -> Pair:
    for role in ("down", "up"):
        if role not in roles:
            raise ValueError(f"{file}: layer {layer!r} has no {role} matrix; the file is not whole")
        if roles[role].ndim != 2:
            shape = tuple(roles[role].shape)
            raise ValueError(
                f"{file}: layer {layer!r} has a {role} matrix of shape {shape}; only linear layers are read"
            )
    down, up = roles["down"], roles["up"]
    if not len(down) or len(down) != up.shape[1]:
        raise ValueError(f"{file}: layer {layer!r} has ranks {len(down)} and {up.shape[1]}; expected one, at least 1")
    alpha = float(roles["alpha"]) if "alpha" in roles else settings.alpha_of(layer, len(down))
    return Pair(down, up, alpha, roles.get("bias"))
