"""Every command and every piece of Python in the documents runs; links lead somewhere; the README tells the truth."""

import re
import shlex
from pathlib import Path

import pytest

from carrara.cli import run
from carrara.cli.training import training_run
from carrara.core.config import read_json
from carrara.evaluation.scoreboard import markdown
from carrara.evaluation.sources import TRUTH
from carrara.recipes.scoreboard import RECORDED
from carrara.recipes.systems import SYSTEMS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOURS = ("train pond ", "train pond-decoder ", "train pond-distill ", "train clips")  # only their settings are checked


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "bash")).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("carrara ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        arguments = shlex.split(command)[1:]
        if f"{' '.join(arguments)} ".startswith(HOURS) and "--help" not in arguments:
            training_run(arguments[1:])
        elif "runs/" not in command:  # a model that a training of hours would have left
            assert run(arguments) == 0, f"{page.name}: {command}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_two_commands_of_a_page_write_the_same_clip(page):
    """A file that exists is refused, so the second command would fail for whoever follows the page."""
    written: list[str] = []
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^(?:\$ )?(carrara (?:generate|data pond) .*)$", block, re.MULTILINE):
            words = shlex.split(line, comments=True)[1:]
            to = next((words[n + 1] for n, word in enumerate(words) if word in ("-o", "--output")), "out/")
            if words[0] == "data":
                written.append(words[2])
            elif "--from" in words or Path(to).suffix:
                written.append(to)
            else:
                written += [f"{to}{prompt}" for prompt in words[1:] if " " in prompt]
    twice = {name for name in written if written.count(name) > 1}
    assert not twice, f"{page.name}: {twice}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})
    assert list(tmp_path.iterdir()), "the example is about a file"


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "src").rglob("*.md")], ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page):
    assert not re.search(r"@@|TODO|FIXME|TBD", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_target_of_the_makefile_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`|\$ )make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_tracked_files_are_small_enough():
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    models = sum(path.stat().st_size for path in files if "models" in path.parts)
    assert models < 44e6
    assert sum(path.stat().st_size for path in files) < 55e6


def test_the_recorded_table_of_systems_is_whole_and_the_one_that_is_shown():
    board = read_json(RECORDED)
    assert markdown(board) in (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    rows = {row["name"]: row for row in board["rows"]}
    assert set(rows) == {*SYSTEMS, TRUTH}
    for name in SYSTEMS:
        assert rows[name]["flops"] == pytest.approx(board["flops"], rel=0.01)
