"""The import table of docs/architecture.md, enforced on the syntax trees, and two promises about imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "carrara"


def allowed_imports() -> dict[str, set[str]]:
    """The table 'Who may import whom' as {folder: folders}, read from the document itself."""
    section = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Who may import whom")[1]
    table: dict[str, set[str]] = {}
    for row in re.findall(r"^\| (?!folder|-)(.+?) \| (.+?) \|$", section, re.MULTILINE):
        names = {name.strip(" `_") for name in row[0].split(",")}
        granted = set(re.findall(r"[a-z]+", row[1].split("(")[0])) - {"nothing"}
        for name in names:
            table[name] = granted | {name, "core"}
    return table


def imported_folders(path: Path) -> set[str]:
    """Which of the package's folders a file imports, at any depth of its code, type-checking imports excepted."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import on line {node.lineno}; write the full name"
            names = [
                f"{node.module}.{alias.name}" if node.module == "carrara" else node.module or "" for alias in node.names
            ]
        found |= {name.split(".")[1] for name in names if name.startswith("carrara.")}
    return found & {child.name for child in PACKAGE.iterdir() if child.is_dir()}


def test_the_table_names_every_folder_of_code():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(allowed_imports()), "a folder without a row in docs/architecture.md"


def test_imports_follow_the_table():
    table = allowed_imports()
    offences = []
    for path in sorted(PACKAGE.rglob("*.py")):
        folder = path.relative_to(PACKAGE).parts[0]
        if folder in {"cli", "__init__.py", "__main__.py"}:
            continue
        offences += [f"{path.relative_to(ROOT)} imports {name}" for name in imported_folders(path) - table[folder]]
    assert not offences, "\n".join(offences)


def test_no_star_imports_and_no_unsafe_loading():
    offences = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                offences.append(f"{path}:{node.lineno} star import")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in {"eval", "exec", "pickle.load", "pickle.loads"}:
                    offences.append(f"{path}:{node.lineno} {called}")
                if called == "torch.load" and "weights_only=True" not in ast.unparse(node):
                    offences.append(f"{path}:{node.lineno} torch.load without weights_only=True")
    assert not offences, "\n".join(offences)


def test_files_hold_one_idea():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text("utf-8").splitlines())) > 400}
    assert not long, f"files over 400 lines: {long}"


def test_importing_the_package_is_light():
    code = "import sys, carrara, carrara.cli; print(sorted({'torch', 'transformers', 'av', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "importing carrara must not wait for heavy packages"
