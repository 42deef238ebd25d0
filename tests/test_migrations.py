"""The schema: made by migrations alone, as the models say, at every start."""

import ipaddress
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import exc, inspect, text
from sqlmodel import Session

import db
import main
from hardening.parsing import parse_database
from hardening.settings import ROOT, settings
from models import User, now
from tests.conftest import Caller, Refusal
from tests.support.environment import on_postgres, on_sqlite

ALEMBIC = Config(toml_file=ROOT / "pyproject.toml")


@pytest.mark.usefixtures("client")
def test_migrations_make_what_the_models_say() -> None:
    command.check(ALEMBIC)


@pytest.mark.usefixtures("client")
def test_address_is_unique_in_the_database_too() -> None:
    """Should the look before the insert miss the other one."""
    columns: dict[str, Any] = {
        "email": f"{uuid.uuid4().hex}@example.com",
        "password_hash": "x",
        "created_at": now(),
    }
    with Session(db.engine) as session:
        session.add(User(id=uuid.uuid4().hex, **columns))
        session.commit()
        session.add(User(id=uuid.uuid4().hex, **columns))
        with pytest.raises(exc.IntegrityError):
            session.commit()


@pytest.fixture
def tables_of_better_auth() -> Iterator[list[str]]:
    names = ["user", "session", "account", "verification", "jwks"]
    with db.engine.connect() as connection:
        for name in names:
            connection.execute(text(f'CREATE TABLE "{name}" (id INTEGER PRIMARY KEY)'))
    yield names
    with db.engine.connect() as connection:
        for name in names:
            connection.execute(text(f'DROP TABLE "{name}"'))


@pytest.mark.usefixtures("client")
def test_tables_of_others_are_left_alone(tables_of_better_auth: list[str]) -> None:
    command.check(ALEMBIC)
    command.downgrade(ALEMBIC, "base")
    command.upgrade(ALEMBIC, "head")
    assert set(tables_of_better_auth) < set(inspect(db.engine).get_table_names())


def test_migrations_go_down_and_up_again(user: Caller) -> None:
    command.downgrade(ALEMBIC, "base")
    assert not {"tasks", "users"} & set(inspect(db.engine).get_table_names())
    command.upgrade(ALEMBIC, "head")
    user.make()


def test_migration_that_fails_changes_nothing(user: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema changes are all or nothing, and the lock is let go."""
    user.make("still here")

    def half(context: MigrationContext, **_options: object) -> None:
        context.connection.execute(text("CREATE TABLE half (id INTEGER)"))  # type: ignore[union-attr]  # it has one
        raise RuntimeError("halfway")

    with monkeypatch.context() as patch:
        patch.setattr(MigrationContext, "run_migrations", half)
        with pytest.raises(RuntimeError, match="halfway"):
            command.upgrade(ALEMBIC, "head")
    assert "half" not in inspect(db.engine).get_table_names()
    command.upgrade(ALEMBIC, "head")
    assert user.titles() == ["still here"]


@on_sqlite
def test_write_ahead_logging_is_switched_on_though_another_process_migrates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SQLite says "database is locked" at once, however long it may wait."""
    file = tmp_path / "new.db"
    monkeypatch.setattr(settings, "database_url", parse_database(f"sqlite:///{file}"))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(time, "sleep", lambda _seconds: other.execute("COMMIT"))
        command.upgrade(ALEMBIC, "head")
        assert not other.in_transaction
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


ERRORS = {
    "database": exc.OperationalError("connect", {}, Exception("no\nresponse")),
    "options": ValueError("no\nresponse"),
    "folder": FileNotFoundError("no\nresponse"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_database_out_of_reach_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal, error: Exception
) -> None:
    def unreachable(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(command, "upgrade", unreachable)
    line = refusal(anyio.run, main.lifespan(main.app).__aenter__)
    assert line == "Not started: the database cannot be used: no response"


@on_postgres
@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("environment", "far_away", "warned"),
    [("production", True, True), ("production", False, False), ("development", True, False)],
)
def test_unencrypted_connection_beyond_private_networks_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    environment: str,
    far_away: bool,
    warned: bool,
) -> None:
    monkeypatch.setattr(settings, "environment", environment)
    monkeypatch.setattr(ipaddress, "ip_address", lambda _address: SimpleNamespace(is_global=far_away))
    command.upgrade(ALEMBIC, "head")
    assert ("The connection to the database is not encrypted" in caplog.text) is warned
