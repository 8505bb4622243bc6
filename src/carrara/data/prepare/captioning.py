"""Captions for clips that have none, by whatever the user names: a command, or a transformers model in a folder.

The manifest says of each caption who wrote it. A caption that is given is never replaced; a clip
that the captioner fails on stays without one, and that is told.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from carrara.core.pictures import arrange
from carrara.data.prepare.captions import clean
from carrara.data.prepare.plan import Clip
from carrara.data.prepare.settings import Settings
from carrara.data.prepare.sheets import frames_of

_FRAMES = 9  # of a contact sheet
_SHEET = 256  # pixels: height of a frame in it, at most
_PATIENCE = 600.0  # seconds for one caption
_LONGEST = 2000  # characters that are kept of an answer
_FIRST = 8  # if so many clips and no caption came, something is wrong with the captioner

Captioner = Callable[[Path], str]
"""From the file of a clip to a line of text. Raises ValueError where it has none to say."""


def check_captioner(settings: Settings) -> None:
    """Raises ValueError for a command that is not there or names no file, and a folder that is no model."""
    if settings.captioner:
        try:
            words = shlex.split(settings.captioner)
        except ValueError as error:
            raise ValueError(f"captioner {settings.captioner!r}: cannot be read as a command ({error})") from None
        if not words or shutil.which(words[0]) is None:
            raise ValueError(f"captioner {settings.captioner!r}: no such command; give its path")
        if not any("{clip}" in word or "{sheet}" in word for word in words):
            raise ValueError(f"captioner {settings.captioner!r}: name the file with {{clip}} or {{sheet}}")
    if settings.caption_model and not (Path(settings.caption_model) / "config.json").is_file():
        raise ValueError(
            f"caption_model {settings.caption_model!r}: not a folder with a transformers model (config.json)"
        )


def name_of(settings: Settings) -> str | None:
    """What the manifest calls the captioner."""
    if settings.caption_model:
        return f"model {Path(settings.caption_model).name}"
    return f"command {settings.captioner}" if settings.captioner else None


def write_captions(
    clips: Sequence[Clip], settings: Settings, journal: Path, workers: int, tell: Callable[[str], None]
) -> dict[str, str]:
    """Captions by key for clips without one. What the journal has is not asked again.

    Raises ValueError where the first clips all fail: the captioner is wrong, not the clips.
    """
    if name_of(settings) is None:
        return {}
    said = _read(journal)
    waiting = [clip for clip in clips if clip.item.caption is None and clip.key not in said]
    if not waiting:
        return {key: text for key, text in said.items() if text}
    failures: list[str] = []
    ask = model_captioner(settings) if settings.caption_model else command_captioner(settings.captioner)
    with journal.open("a", encoding="utf-8") as file:
        for clip, answer in _ask(ask, waiting, 1 if settings.caption_model else workers):
            said[clip.key] = "" if isinstance(answer, ValueError) else answer
            if isinstance(answer, ValueError):
                failures.append(f"{clip.item.source}: {answer}")
                if len(failures) == min(len(waiting), _FIRST) == len(said):
                    raise ValueError(f"the captioner fails: {failures[0]}; mend it and run the same command again")
            else:
                file.write(json.dumps([clip.key, answer]) + "\n")
                file.flush()
    if failures:
        tell(f"{len(failures)} clips stay without a caption, for the captioner failed; the first: {failures[0]}")
    return {key: text for key, text in said.items() if text}


def command_captioner(command: str) -> Captioner:
    """A captioner that runs a command, without a shell."""

    def ask(path: Path) -> str:
        with tempfile.TemporaryDirectory() as folder:
            names = {"{clip}": str(path.absolute())}
            if "{sheet}" in command:
                from PIL import Image

                names["{sheet}"] = f"{folder}/sheet.png"
                Image.fromarray(contact_sheet(path)).save(names["{sheet}"])
            words = []
            for word in shlex.split(command):
                for name, file in names.items():
                    word = word.replace(name, file)
                words.append(word)
            try:
                done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                raise ValueError(f"no answer within {_PATIENCE:g} s") from None
            except OSError as error:
                raise ValueError(f"cannot be run ({error.strerror})") from None
        if done.returncode:
            tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise ValueError(f"exit code {done.returncode}{': ' + tail[0] if tail else ''}")
        return _line(done.stdout.decode("utf-8", "replace"))

    return ask


def model_captioner(settings: Settings) -> Captioner:
    """A captioner of transformers' image-to-text models: BLIP and GIT alike, and chat models that see pictures."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(settings.caption_model, local_files_only=True)
        model: Any = AutoModelForImageTextToText.from_pretrained(settings.caption_model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"caption_model {settings.caption_model!r}: cannot be loaded ({said})") from None
    model.eval().to(device := "cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def ask(path: Path) -> str:
        image = Image.fromarray(contact_sheet(path))
        if getattr(processor, "chat_template", None):
            turn = [{"type": "image", "image": image}, {"type": "text", "text": settings.caption_prompt}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": turn}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(device)
            given = inputs["input_ids"].shape[1]
        else:
            inputs, given = processor(images=image, return_tensors="pt").to(device), 0
        tokens = model.generate(**inputs, max_new_tokens=96, do_sample=False)
        return _line(processor.batch_decode(tokens[:, given:], skip_special_tokens=True)[0])

    return ask


def contact_sheet(path: Path) -> Any:
    """Moments of a clip in reading order as one picture, uint8 `H W 3`."""
    from PIL import Image

    frames = frames_of(path, _FRAMES)
    high, wide = frames[0].shape[:2]
    if high > _SHEET:
        size = (max(1, round(wide * _SHEET / high)), _SHEET)
        frames = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]
    return arrange(np.stack(frames))


def _ask(ask: Captioner, clips: Sequence[Clip], workers: int) -> Iterator[tuple[Clip, str | ValueError]]:
    """Answers in the order of the clips."""

    def one(clip: Clip) -> str | ValueError:
        try:
            return ask(clip.file)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(max(1, workers)) as threads:
        try:
            yield from zip(clips, threads.map(one, clips))
        finally:
            threads.shutdown(cancel_futures=True)


def _line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    said = clean(lines[0]) if lines else None
    if said is None:
        raise ValueError("an empty answer")
    return said[:_LONGEST]


def _read(journal: Path) -> dict[str, str]:
    """What was answered before; a line that was cut off does not count."""
    said: dict[str, str] = {}
    if journal.is_file():
        whole, _, _ = journal.read_text(encoding="utf-8").rpartition("\n")
        said = dict(json.loads(line) for line in whole.splitlines())
        journal.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    return said
