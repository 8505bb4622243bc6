"""Captions come from whom the user names, are told apart from given ones, and are never invented."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.data.prepare.filming import shot, write

from carrara.data.prepare.run import prepare
from carrara.data.prepare.settings import Settings

PYTHON = sys.executable


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for seed in range(3):
        write(tmp_path / f"in/{seed}.mp4", shot(seed, 5))
    (tmp_path / "in/1.txt").write_text("given by a person")
    return tmp_path


def captions(folder: Path, tell=lambda line: None, **settings: object) -> list[tuple[str | None, str | None]]:
    made = Settings(frames=(5,), sizes=((64, 48),), **settings)  # type: ignore[arg-type]
    prepare(folder / "in", folder / "out", made, tell=tell, workers=0)
    rows = [json.loads(line) for line in (folder / "out/manifest.jsonl").read_text().splitlines()]
    return [(row["caption"], row["caption_by"]) for row in rows]


def script(folder: Path, text: str) -> str:
    (folder / "say.py").write_text(text)
    return f"{PYTHON} {folder / 'say.py'}"


def test_without_a_captioner_there_is_none(clips):
    assert captions(clips) == [(None, None), ("given by a person", "given"), (None, None)]


def test_a_command_reads_the_clip_and_a_sheet_of_it(clips):
    command = script(
        clips,
        "import sys, av; from PIL import Image\n"
        "frames = list(av.open(sys.argv[1]).decode(video=0)); sheet = Image.open(sys.argv[2])\n"
        "print(f'{len(frames)} frames,  sheet {sheet.width}x{sheet.height}; $HOME')\nprint('not this')",
    )
    said, given, _ = captions(clips, captioner=f"{command} {{clip}} {{sheet}}")
    assert said[0] is not None
    assert said[0].startswith("5 frames, sheet ")
    assert said[0].endswith("; $HOME")  # no shell
    assert said[1] == f"command {command} {{clip}} {{sheet}}"
    assert given == ("given by a person", "given")
    assert not list(clips.rglob("sheet.png"))


def test_a_failure_leaves_its_clip_without_and_is_told(clips):
    command = script(
        clips, "import sys; sys.exit('no') if '000000002' in sys.argv[1] or '/2' in sys.argv[1] else print('x')"
    )
    told: list[str] = []
    found = captions(clips, told.append, captioner=f"{command} {{clip}}")
    assert [text for text, _ in found] == ["x", "given by a person", None]
    assert found[2] == (None, None)
    assert told == ["1 clips stay without a caption, for the captioner failed; the first: 2.mp4: exit code 1: no"]


def test_a_captioner_that_always_fails_ends_the_run_which_goes_on_with_a_mended_one(clips):
    command = script(clips, "import sys; sys.exit(3)")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the captioner fails: 0\.mp4: exit code 3; mend it and run"):
            captions(clips, captioner=f"{command} {{clip}}")
    script(clips, "print('mended')")
    assert [text for text, _ in captions(clips, captioner=f"{command} {{clip}}")] == [
        "mended",
        "given by a person",
        "mended",
    ]


def test_what_was_said_is_not_asked_again(clips, monkeypatch):
    """A captioner that counts, interrupted behind its answers."""
    from carrara.data.prepare import run

    command = (
        script(clips, "import sys; open(sys.argv[2], 'a').write('x'); print('said')") + f" {{clip}} {clips / 'count'}"
    )
    whole = run.draw_pictures
    monkeypatch.setattr(run, "draw_pictures", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        captions(clips, captioner=command)
    monkeypatch.setattr(run, "draw_pictures", whole)
    assert [text for text, _ in captions(clips, captioner=command)] == ["said", "given by a person", "said"]
    assert (clips / "count").read_text() == "xx"


def test_a_transformers_model_by_its_folder(clips):
    """A real model with drawn weights: what it says is gibberish, and marked as its own."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{n}" for n in range(58))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3}
    text = {**sizes, "vocab_size": 64, "encoder_hidden_size": 16, "projection_dim": 16, **ids}
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    model.save_pretrained(clips / "captioner")
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), fast).save_pretrained(clips / "captioner")
    found = captions(clips, caption_model=str(clips / "captioner"))
    assert found[1] == ("given by a person", "given")
    assert found[0][1] == "model captioner"
    assert found[0][0]
    assert set(found[0][0].split()) <= set(words)


def test_a_folder_that_is_no_model_is_an_error_before_the_run(clips):
    (clips / "broken").mkdir()
    (clips / "broken/config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        captions(clips, caption_model=str(clips / "broken"))
