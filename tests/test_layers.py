"""The two layers: the core imports from hardening/, and never the other way around."""

import ast
from pathlib import Path

import pytest

from hardening.settings import ROOT

HARDENING = sorted((ROOT / "hardening").glob("*.py"))
CORE = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "routes").glob("*.py"))]
CORE_NAMES = {path.stem for path in ROOT.glob("*.py")} | {"routes", "migrations", "tests"}


def imported_by(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "say where it is from"
            names.add(str(node.module))
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", HARDENING, ids=lambda path: path.name)
def test_hardening_imports_nothing_from_the_core(path: Path) -> None:
    assert not imported_by(path) & CORE_NAMES


@pytest.mark.parametrize("path", [*CORE, *HARDENING], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_each_file_begins_with_a_docstring(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text or ast.get_docstring(ast.parse(text))
