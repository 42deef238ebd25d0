"""Starting and stopping a real server, as a user would."""

import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from dotenv import dotenv_values
from limits.storage import MemoryStorage
from sqlalchemy import exc

import auth
import db
import main
from routes import auth as accounts
from tests.conftest import SECRET
from tests.server import Server, copy_project, serving


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return copy_project(tmp_path)


def test_the_first_start_needs_nothing_and_keeps_its_secret(clone: Path) -> None:
    with serving(clone) as server:
        assert "Todo API is running" in server.get("/")
        code, output = server.end()
    env = clone / ".env"
    secret = dotenv_values(env)["BETTER_AUTH_SECRET"]
    assert secret is not None
    assert len(secret) >= 32
    assert secret not in output
    assert env.stat().st_mode & 0o777 == 0o600
    assert sum("Made .env" in line for line in output.splitlines()) == 1
    assert (clone / "todo.db").exists()
    assert code == 0
    assert "Application shutdown complete" in output

    made = env.read_text()
    with serving(clone) as server:
        _, output = server.end()
    assert env.read_text() == made
    assert "Made .env" not in output


@pytest.mark.parametrize("workers", [1, 8])
def test_workers_that_start_together_agree(clone: Path, workers: int) -> None:
    with serving(clone, "--workers", str(workers)) as server:
        lines = iter(server.process.stdout or [])
        seen: list[str] = []
        while sum("Application startup complete" in line for line in seen) < workers:
            seen.append(next(lines))
        server.end()
    assert sum("Made .env" in line for line in seen) == 1
    assert not [line for line in seen if "ERROR" in line]


REFUSALS = {
    "environment": ({"ENVIRONMENT": "prod"}, "ENVIRONMENT"),
    "no secret": ({"BETTER_AUTH_SECRET": ""}, "BETTER_AUTH_SECRET is not set"),
    "short secret": ({"BETTER_AUTH_SECRET": "x7Kq" * 7}, "shorter than 32 bytes"),
    "placeholder": ({"BETTER_AUTH_SECRET": "change-me-to-32-random-characters!"}, "placeholder"),
    "public key": (
        {"BETTER_AUTH_SECRET": "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7"},
        "placeholder or public",
    ),
    "one letter": ({"BETTER_AUTH_SECRET": "x" * 40}, "placeholder"),
    "no database": ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
    "no URL": ({"DATABASE_URL": "my database"}, "DATABASE_URL is not a database URL"),
    "in memory": ({"DATABASE_URL": "sqlite://"}, "DATABASE_URL names no file"),
    "no port": ({"DATABASE_URL": "postgresql://u:pa55@h:port/db"}, "DATABASE_URL is not a database URL"),
    "MySQL": ({"DATABASE_URL": "mysql://root@localhost/db"}, "only PostgreSQL and SQLite"),
    "no such folder": ({"DATABASE_URL": "sqlite:////no/such/folder/x.db"}, "unable to open database file"),
    "nobody listens": ({"DATABASE_URL": "postgresql://u:pa55@127.0.0.1:1/db"}, "database cannot be used"),
    "unknown option": ({"DATABASE_URL": "postgresql://u:pa55@127.0.0.1:1/db?schema=public"}, "schema"),
    "any origin": ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS"),
    "no limit": ({"AUTH_RATE_LIMIT": "a lot"}, "AUTH_RATE_LIMIT is not a limit"),
    "unknown storage": ({"RATE_LIMIT_STORAGE": "floppy://a"}, "RATE_LIMIT_STORAGE cannot be used: unknown"),
    "no origin": ({"CORS_ORIGINS": "https://a.example,b.example"}, "CORS_ORIGINS has 'b.example'"),
}

FOUND_WHEN_CONNECTING = {"no such folder", "nobody listens", "unknown option"}


@pytest.mark.parametrize(("variables", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_unsafe_settings_are_refused_in_one_line(clone: Path, variables: dict[str, str], reason: str) -> None:
    safe = {"ENVIRONMENT": "production", "BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": "sqlite:///todo.db"}
    server = Server(clone, **(safe | variables))
    output, _ = server.process.communicate(timeout=30)
    assert server.process.returncode == 3
    refusals = [line for line in output.splitlines() if "Not started" in line]
    assert len(refusals) == 1
    assert reason in refusals[0]
    assert "pa55" not in output
    assert "Traceback" not in output
    assert not (clone / ".env").exists()


def refusal(check: Callable[[], object], caplog: pytest.LogCaptureFixture) -> str:
    with pytest.raises(SystemExit) as end:
        check()
    assert end.value.code == 3
    return caplog.messages[-1]


@pytest.fixture(autouse=True)
def full_tracebacks() -> Iterator[None]:
    yield
    if hasattr(sys, "tracebacklimit"):
        del sys.tracebacklimit


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_handler_of_sigterm_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, handler: signal.Handlers
) -> None:
    given: list[object] = []
    monkeypatch.setattr(signal, "getsignal", lambda _: handler)
    monkeypatch.setattr(signal, "signal", lambda _, ours: given.append(ours))
    main.take_sigterm_for_a_success()
    assert len(given) == (handler is signal.SIG_DFL)
    for ours in given:
        with pytest.raises(SystemExit, match="0"):
            ours(signal.SIGTERM, None)  # type: ignore[operator]


def test_an_env_file_that_is_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=\n", encoding="utf-16")
    monkeypatch.setattr(db, "ROOT", tmp_path)
    assert ".env is not UTF-8 text" in refusal(db.read_env_file, caplog)


def test_a_database_from_the_future_is_refused_in_one_line(clone: Path) -> None:
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


READERS = {
    "ENVIRONMENT": db.environment,
    "BETTER_AUTH_SECRET": auth.shared_secret,
    "DATABASE_URL": db.database_url,
    "CORS_ORIGINS": main.cors_origins,
    "AUTH_RATE_LIMIT": accounts.rate_limit,
    "RATE_LIMIT_STORAGE": accounts.rate_limit,
}


@pytest.mark.parametrize("case", [case for case in REFUSALS if case not in FOUND_WHEN_CONNECTING])
def test_staging_is_as_strict_as_production(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    variables, reason = REFUSALS[case]
    ((name, value),) = variables.items()
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(db, "ENVIRONMENT", "staging")
    monkeypatch.setattr(auth, "ENVIRONMENT", "staging")
    assert reason in refusal(READERS[name], caplog)


def test_a_storage_of_limits_that_is_away_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MemoryStorage, "check", lambda _: False)
    assert "RATE_LIMIT_STORAGE cannot be reached" in refusal(accounts.rate_limit, caplog)


def test_a_safe_secret_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "ENVIRONMENT", "production")
    assert auth.shared_secret() == SECRET


def test_an_existing_env_file_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", "")
    monkeypatch.setattr(auth, "ROOT", tmp_path)
    shutil.copy(db.ROOT / ".env.example", tmp_path)
    (tmp_path / ".env").write_text("DATABASE_URL=\n")
    assert "no BETTER_AUTH_SECRET in .env" in refusal(auth.shared_secret, caplog)
    assert (tmp_path / ".env").read_text() == "DATABASE_URL=\n"


def test_a_new_env_file_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", "")
    monkeypatch.setattr(auth, "ROOT", tmp_path)
    shutil.copy(db.ROOT / ".env.example", tmp_path)
    secret = auth.shared_secret()
    assert len(bytes.fromhex(secret)) == 32
    assert auth.shared_secret() == secret


def test_a_database_out_of_reach_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable() -> None:
        raise exc.OperationalError("connect", {}, Exception("no\nanswer"))

    monkeypatch.setattr(main, "migrate", unreachable)
    with pytest.raises(SystemExit, match="3"):
        anyio.run(main.lifespan(main.app).__aenter__)
    assert caplog.messages[-1] == "Not started: the database cannot be used: no answer"


def test_a_folder_that_cannot_be_written_is_a_clear_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", "")
    monkeypatch.setattr(auth, "ROOT", tmp_path / "nowhere")
    assert "cannot be made" in refusal(auth.shared_secret, caplog)
