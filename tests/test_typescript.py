"""The OpenAPI document as a TypeScript frontend uses it: for types, and for a client that keeps to them."""

from pathlib import Path

import pytest

from tests.node import install, run
from tests.server import copy_project, serving

pytestmark = pytest.mark.slow


def test_generated_typescript_client_works(tmp_path: Path) -> None:
    frontend = install("typescript", tmp_path)
    clone = tmp_path / "clone"
    clone.mkdir()
    with serving(copy_project(clone)) as server:
        (frontend / "openapi.json").write_text(server.get("/openapi.json"))
        run(frontend, "npx", "openapi-typescript", "openapi.json", "-o", "api.ts")
        run(frontend, "npx", "tsc")
        run(frontend, "node", "built/round.js", server.url)
