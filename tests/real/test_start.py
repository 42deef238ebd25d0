"""A real server, started and stopped as a user would."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.environment import SECRET
from tests.support.server import VARIABLES, Server, serving

pytestmark = pytest.mark.slow


def test_first_start_needs_no_settings_and_the_next_keeps_them(clone: Path) -> None:
    with serving(clone) as server:
        assert "Todo API is running" in server.get("/")
        code, output = server.end()
    assert "Application shutdown complete" in output
    assert code in (0, -15)  # systemd and container runtimes count both as clean
    assert sum("Created .env" in line for line in output.splitlines()) == 1
    assert sum("Tokens: signed with BETTER_AUTH_SECRET" in line for line in output.splitlines()) == 1
    files = [clone / ".env", clone / "todo.db"]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    assert not list(clone.glob("todo.db-*"))  # all data is in one file, so a copy of it is a backup
    secret = files[0].read_text(encoding="utf-8").split("BETTER_AUTH_SECRET=")[1].split()[0]
    assert secret not in output

    before = files[0].read_text(encoding="utf-8")
    with serving(clone) as server:
        code, output = server.end()
    assert files[0].read_text(encoding="utf-8") == before
    assert "Created .env" not in output


def test_workers_that_start_together_use_one_secret(clone: Path) -> None:
    def read_until_all_have_started(server: Server) -> list[str]:
        lines = iter(server.process.stdout or [])
        seen: list[str] = []
        while sum("Application startup complete" in line for line in seen) < 4:
            seen.append(next(lines))
        return seen

    with ThreadPoolExecutor(1) as pool, serving(clone, "--workers", "4") as server:
        seen = pool.submit(read_until_all_have_started, server).result(timeout=60)
        server.end()
    assert sum("Created .env" in line for line in seen) == 1
    assert not [line for line in seen if "ERROR" in line]


def test_importing_the_app_creates_no_files(clone: Path) -> None:
    before = set(clone.iterdir())
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    subprocess.run([sys.executable, "-B", "-c", "import main"], cwd=clone, env=environment, check=True)
    assert set(clone.iterdir()) == before


REFUSALS = {
    "setting": ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS: '*' is not an origin"),
    "no such folder": ({"DATABASE_URL": "sqlite:////no/such/folder/x.db"}, "the database cannot be used"),
    "no server": ({"DATABASE_URL": "postgresql://u:pa55@127.0.0.1:1/d"}, "the database cannot be used"),
    "unknown option": ({"DATABASE_URL": "postgresql://u:pa55@127.0.0.1:1/d?schema=public"}, "schema"),
}


@pytest.mark.parametrize(("variables", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_refusal_is_one_line_and_an_exit_code(clone: Path, variables: dict[str, str], reason: str) -> None:
    safe = {"ENVIRONMENT": "production", "BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": "sqlite:///todo.db"}
    server = Server(clone, **(safe | variables))
    output, _ = server.process.communicate(timeout=30)
    assert server.process.returncode == 3
    (line,) = [line for line in output.splitlines() if "Not started" in line]
    assert reason in line
    assert "pa55" not in output
    assert "Traceback" not in output
    assert not (clone / ".env").exists()


def test_database_of_a_later_version_is_refused(clone: Path) -> None:
    with serving(clone) as server:
        server.end()
    with sqlite3.connect(clone / "todo.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    server = Server(clone)
    output, _ = server.process.communicate(timeout=30)
    assert server.process.returncode == 3
    assert "database cannot be used: Can't locate revision identified by '9999'" in output
    assert "Traceback" not in output
