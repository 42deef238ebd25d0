"""TypeScript frontends: a client generated from /openapi.json, and the files of docs/better-auth.md."""

import json
import re
from pathlib import Path

import pytest

import main
from hardening.settings import ROOT
from tests.support.node import install, run
from tests.support.server import copy_project, serving

pytestmark = pytest.mark.slow


def test_generated_typescript_client_works(tmp_path: Path) -> None:
    frontend = install("typescript", tmp_path)
    clone = tmp_path / "clone"
    clone.mkdir()
    with serving(copy_project(clone)) as server:
        (frontend / "openapi.json").write_text(server.get("/openapi.json"), encoding="utf-8")
        run(frontend, "npx", "openapi-typescript", "openapi.json", "-o", "api.ts")
        run(frontend, "npx", "tsc")
        run(frontend, "node", "built/round.js", server.url)


def test_code_in_better_auth_md_compiles(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "better-auth.md").read_text(encoding="utf-8")
    files = re.findall(r"```tsx?\n(// (\S+)\n.*?)```", guide, re.DOTALL)
    assert len(files) == guide.count("```ts")

    frontend = install("nextjs", tmp_path)
    (frontend / "lib").mkdir()
    (frontend / "openapi.json").write_text(json.dumps(main.app.openapi()), encoding="utf-8")
    run(frontend, "npx", "openapi-typescript", "openapi.json", "-o", "lib/api.ts")
    for text, name in files:
        file = frontend / name
        if file.exists():  # the guide has another version of it
            run(frontend, "npx", "tsc")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    run(frontend, "npx", "tsc")
