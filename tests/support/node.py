"""For tests with Node.js: a folder of tests/real/, with its npm packages installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hardening.settings import ROOT

INSTALL = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline"]
INSTALL += ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"


def install(name: str, parent: Path) -> Path:
    """Copy a folder of tests/real/ and install its packages. If that fails, skip the test, but not in CI."""
    folder = parent / name
    shutil.copytree(ROOT / "tests" / "real" / name, folder, ignore=shutil.ignore_patterns("node_modules"))
    try:
        run(folder, *INSTALL)
        run(folder, "node", "--version")
    except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs Node.js, and npm with its registry or a cache: {str(error).splitlines()[:2]}")
    return folder
