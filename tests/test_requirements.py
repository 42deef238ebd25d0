"""Each package that the code imports is listed, with the versions on which the code runs."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from hardening.settings import ROOT
from tests.test_layers import CORE, CORE_NAMES, HARDENING, imported_by

SERVICE, TESTS = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n# The tests\n")
DEV = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["dev"]
LINES = [line for line in (SERVICE + TESTS).splitlines() if line and not line.startswith("#")]


def names(requirements: str) -> set[str]:
    return set(re.findall(r"^[\w-]+", requirements, re.MULTILINE))


def not_listed(files: list[Path], listed: set[str]) -> list[str]:
    """Modules of no package that is listed. (Several packages may share a name, such as opentelemetry.)"""
    modules = {module for path in files for module in imported_by(path)}
    modules -= sys.stdlib_module_names | CORE_NAMES | {"hardening"}
    packages_of = packages_distributions()

    def is_listed(module: str) -> bool:
        packages = packages_of.get(module, [module])  # a tool of the group dev may not be installed
        return any(package.lower().replace("_", "-") in listed for package in packages)

    return sorted(module for module in modules if not is_listed(module))


def test_packages_that_the_app_imports_are_listed() -> None:
    migrations = list((ROOT / "migrations").rglob("*.py"))
    assert not_listed([*CORE, *HARDENING, *migrations], names(SERVICE)) == []


def test_packages_that_the_tests_import_are_listed() -> None:
    listed = names(SERVICE + TESTS) | names("\n".join(DEV))
    assert not_listed(list((ROOT / "tests").rglob("*.py")), listed) == []


@pytest.mark.parametrize("line", LINES, ids=lambda line: re.split("[>[]", line)[0])
def test_requirement_has_a_lowest_version_and_ends_before_the_next_breaking_one(line: str) -> None:
    assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+( +# \S.*)?", line)
