"""`carrara lora`: adapters merged into a model's weights, written for other programs, or explained. Free of torch until
it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from carrara.core.config import choose
from carrara.core.options import option, parse

USAGE = """usage: carrara lora COMMAND ...

  merge ADAPTER[:WEIGHT] ... -o MODEL   write a model that has adapters in its weights
  convert ADAPTER -o FOLDER             write an adapter as diffusers, PEFT or Wan's programs read it
  info ADAPTER                          what an adapter adapts, and what it says of itself

`carrara lora COMMAND --help` lists a command's options."""


@dataclass(frozen=True)
class Merge:
    """Write a model folder whose transformer has adapters in its weights: it needs no --lora, and is as fast."""

    adapters: Positional[Annotated[tuple[str, ...], option(metavar="ADAPTER[:WEIGHT] ...")]]
    """Folders or .safetensors files, each with how much it counts, by default 1."""
    output: Annotated[str, option(aliases=["-o"], metavar="FOLDER")]
    """Model folder to write."""
    model: Annotated[str, option(metavar="MODEL")] = "pond"
    """Bundled model or model folder to start from."""


@dataclass(frozen=True)
class Convert:
    """Write an adapter under the names that another program knows."""

    adapter: Positional[Annotated[str, option(metavar="ADAPTER")]]
    """Folder or .safetensors file."""
    output: Annotated[str, option(aliases=["-o"], metavar="FOLDER")]
    """Folder to write."""
    layout: Literal["diffusers", "peft", "wan"] = "diffusers"
    """For load_lora_weights, for PeftModel.from_pretrained, or with the names of Wan's own files."""


@dataclass(frozen=True)
class Info:
    """What an adapter adapts, and what it says of itself."""

    adapter: Positional[Annotated[str, option(metavar="ADAPTER")]]
    """Folder or .safetensors file."""


def lora(args: list[str]) -> int:
    """The command itself, with the arguments that follow its name."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    return choose("command", args[0], {"merge": merge, "convert": convert, "info": info})(args[1:])


def merge(args: list[str]) -> int:
    """`carrara lora merge`."""
    options = parse(Merge, args, "carrara lora merge")
    from carrara.systems.find import find_model
    from carrara.systems.lora import Asked
    from carrara.systems.lora_merge import merge_folder

    merge_folder(find_model(options.model), [Asked.parse(text) for text in options.adapters], Path(options.output))
    print(options.output)
    return 0


def convert(args: list[str]) -> int:
    """`carrara lora convert`."""
    options = parse(Convert, args, "carrara lora convert")
    folder = Path(options.output)
    if folder.exists():
        raise ValueError(f"{folder}: is there already; choose another folder")
    from carrara.core.files import check_folder
    from carrara.systems.lora import named_terms
    from carrara.systems.lora_export import write_adapter
    from carrara.systems.lora_files import read_adapter

    check_folder(folder)
    adapter = read_adapter(options.adapter)
    write_adapter(named_terms(adapter), folder, adapter.about, options.layout)
    print(folder)
    return 0


def info(args: list[str]) -> int:
    """`carrara lora info`."""
    options = parse(Info, args, "carrara lora info")
    from carrara.systems.lora import named_terms
    from carrara.systems.lora_files import read_adapter

    adapter = read_adapter(options.adapter)
    base = adapter.about.get("base", {})
    rows = {"adapter": adapter.where, "weights": f"sha256 {adapter.fingerprint}"}
    for part, terms in named_terms(adapter).items():
        ranks, scales = sorted({t.rank for t in terms.values()}), sorted({t.alpha / t.rank for t in terms.values()})
        count = sum(p.numel() for term in terms.values() for p in term.parameters())
        blocks = {name.split(".")[1] for name in terms if name.startswith("blocks.")}
        kinds = sorted({".".join(name.split(".")[2:]) if name.startswith("blocks.") else name for name in terms})
        rows[part] = (
            f"{len(terms)} layers in {len(blocks)} blocks, rank {_range(ranks)}, alpha / rank {_range(scales)}, "
            f"{count / 1e6:.2f} M parameters: {', '.join(kinds)}"
        )
    if base:
        rows["trained on"] = f"{base.get('name')}, sha256 {base.get('fingerprint')}"
    if adapter.words:
        rows["taught"] = ", ".join(adapter.words)
    for name, value in rows.items():
        print(f"{name:<13} {value}")
    return 0


def _range(values: list[int] | list[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
