"""The OpenAPI document as a TypeScript frontend uses it: for types, and for a client that keeps to them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import db
from tests.server import copy_project, serving

INSTALL = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline"]
INSTALL += ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="needs Node.js and npm"
)


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"


@pytest.fixture
def frontend(tmp_path: Path) -> Path:
    folder = tmp_path / "frontend"
    shutil.copytree(db.ROOT / "tests" / "typescript", folder, ignore=shutil.ignore_patterns("node_modules"))
    try:
        run(folder, *INSTALL)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs npm's registry, or its cache: {str(error).splitlines()[:2]}")
    return folder


def test_a_typescript_client_makes_its_round(frontend: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    with serving(copy_project(clone)) as server:
        (frontend / "openapi.json").write_text(server.get("/openapi.json"))
        run(frontend, "npx", "openapi-typescript", "openapi.json", "-o", "api.ts")
        run(frontend, "npx", "tsc")
        run(frontend, "node", "built/round.js", server.url)
