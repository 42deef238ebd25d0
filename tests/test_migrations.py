"""The schema: created by migrations only, at each start, as in the models."""

import ipaddress
import os
import secrets
import sqlite3
import subprocess
import sys
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
from sqlalchemy import (
    URL,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    NullPool,
    String,
    Table,
    create_engine,
    event,
    exc,
    inspect,
    text,
)
from sqlmodel import Session, SQLModel

import db
import main
from hardening.parsing import parse_database
from hardening.settings import ROOT, settings
from models import User, now
from tests.conftest import Refusal, UserClient
from tests.support.environment import POSTGRES, administer, on_postgres, on_sqlite

ALEMBIC = Config(toml_file=ROOT / "pyproject.toml")


@pytest.mark.usefixtures("client")
def test_migrations_match_the_models() -> None:
    command.check(ALEMBIC)


@pytest.mark.usefixtures("client")
def test_email_is_unique_in_the_database() -> None:
    """In case the check before the insert misses the other account."""
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


def foreign_keys_without_owner(metadata: MetaData) -> Iterator[str]:
    """With such a key between two tables with a user_id, a row could belong to another user's row."""
    for table in metadata.tables.values():
        for key in table.foreign_key_constraints:
            columns = {element.parent.name: element.column.name for element in key.elements}
            both_have_owners = "user_id" in table.c and "user_id" in key.referred_table.c
            if both_have_owners and columns.get("user_id") != "user_id":
                here = ["user_id", *columns]
                there = [f"{key.referred_table.name}.{name}" for name in ("user_id", *columns.values())]
                yield f"{table.name}: write ForeignKeyConstraint({here}, {there}) in its __table_args__"


def test_foreign_keys_between_tables_of_users_carry_the_owner() -> None:
    assert list(foreign_keys_without_owner(SQLModel.metadata)) == []


def test_foreign_key_without_the_owner_is_reported_with_its_fix() -> None:
    metadata = MetaData()
    Table("tasks", metadata, Column("id", Integer), Column("user_id", String))
    Table("comments", metadata, Column("user_id", String), Column("task_id", ForeignKey("tasks.id")))
    remedy = (
        "ForeignKeyConstraint(['user_id', 'task_id'], ['tasks.user_id', 'tasks.id']) in its __table_args__"
    )
    assert list(foreign_keys_without_owner(metadata)) == [f"comments: write {remedy}"]


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
def test_migrations_go_down_and_up_and_leave_other_tables_alone(tables_of_better_auth: list[str]) -> None:
    command.check(ALEMBIC)
    command.downgrade(ALEMBIC, "base")
    tables = set(inspect(db.engine).get_table_names())
    assert set(tables_of_better_auth) < tables
    assert not {"tasks", "users"} & tables
    command.upgrade(ALEMBIC, "head")
    assert {"tasks", "users", *tables_of_better_auth} < set(inspect(db.engine).get_table_names())


def test_failed_migration_changes_nothing(user: UserClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema changes are all or nothing, and the lock is released."""
    user.create("still here")

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
def test_write_ahead_logging_is_enabled_while_another_process_migrates(
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


@on_sqlite
def test_file_of_an_earlier_version_matches_the_models_after_migration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its constraints have no names."""
    monkeypatch.setattr(settings, "database_url", db.engine.url.set(database=f"{tmp_path}/old.db"))
    with monkeypatch.context() as earlier:
        earlier.setattr(SQLModel.metadata, "naming_convention", {})
        command.upgrade(ALEMBIC, "0002")
    command.upgrade(ALEMBIC, "head")
    command.check(ALEMBIC)


ERRORS = {
    "database": exc.OperationalError("connect", {}, Exception("no\nresponse")),
    "options": ValueError("no\nresponse"),
    "folder": FileNotFoundError("no\nresponse"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_start_is_refused_while_the_database_is_down(
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
    ("environment", "public", "warned"),
    [("production", True, True), ("production", False, False), ("development", True, False)],
)
def test_unencrypted_connection_beyond_private_networks_logs_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    environment: str,
    public: bool,
    warned: bool,
) -> None:
    monkeypatch.setattr(settings, "environment", environment)
    monkeypatch.setattr(ipaddress, "ip_address", lambda _address: SimpleNamespace(is_global=public))
    command.upgrade(ALEMBIC, "head")
    assert ("The connection to the database is not encrypted" in caplog.text) is warned


# Migrations that Alembic generates for a team's own tables, applied unedited

COMMENTS = """
from sqlalchemy import BigInteger, Column, ForeignKeyConstraint, Index, Integer, String, Table
from sqlmodel import SQLModel

id = BigInteger().with_variant(Integer, "sqlite")
Table(
    "comments",
    SQLModel.metadata,
    Column("id", id, primary_key=True),
    Column("user_id", String(255), nullable=False),
    Column("task_id", id, nullable=False),
    ForeignKeyConstraint(["user_id", "task_id"], ["tasks.user_id", "tasks.id"], ondelete="CASCADE"),
    sqlite_autoincrement=True,
)
"""
# To a table that has rows: a unique column, and a foreign key.
PROJECTS = """
Table(
    "projects",
    SQLModel.metadata,
    Column("id", id, primary_key=True),
    Column("user_id", String(255), nullable=False),
    Index("uq_projects_user_id_id", "user_id", "id", unique=True),
    sqlite_autoincrement=True,
)
tasks = SQLModel.metadata.tables["tasks"]
tasks.append_column(Column("slug", String(50), unique=True))
tasks.append_column(Column("project_id", id))
tasks.append_constraint(
    ForeignKeyConstraint(["user_id", "project_id"], ["projects.user_id", "projects.id"])
)
"""


class Copy:
    """A copy of the project, with a database of its own."""

    def __init__(self, folder: Path, url: URL) -> None:
        self.folder = folder
        self.url = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)
        self.engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        if not POSTGRES:
            event.listen(self.engine, "connect", lambda new, _: new.execute("PRAGMA foreign_keys = ON"))

    def alembic(self, *arguments: str) -> None:
        environment = os.environ | {"DATABASE_URL": self.url}
        call = [sys.executable, "-m", "alembic", *arguments]
        done = subprocess.run(
            call, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def migrate(self, more_models: str) -> None:
        """Let Alembic write the migration for these as well, and apply it as it is."""
        with (self.folder / "models_of_a_team.py").open("a", encoding="utf-8") as file:
            file.write(more_models)
        self.alembic("revision", "--autogenerate", "-m", "more")
        self.alembic("upgrade", "head")
        self.alembic("check")

    def sql(self, statement: str) -> Any:
        with self.engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return result.all() if result.returns_rows else None

    def add_task(self, **columns: object) -> int:
        common = {
            "user_id": "ann",
            "title": "x",
            "completed": False,
            "created_at": now(),
            "updated_at": now(),
        }
        values = common | columns
        names, placeholders = ", ".join(values), ", ".join(f":{name}" for name in values)
        insert = f"INSERT INTO tasks ({names}) VALUES ({placeholders}) RETURNING id"
        with self.engine.connect() as connection:
            return int(connection.execute(text(insert), values).scalar_one())


@pytest.fixture
def copy(clone: Path) -> Iterator[Copy]:
    name = f"todo_test_{secrets.token_hex(4)}" if POSTGRES else f"{clone}/todo.db"
    if POSTGRES:
        administer(f"CREATE DATABASE {name}")
    env = clone / "migrations" / "env.py"
    code = env.read_text(encoding="utf-8").replace("import models", "import models, models_of_a_team")
    env.write_text(code, encoding="utf-8")
    (clone / "models_of_a_team.py").touch()
    yield Copy(clone, db.engine.url.set(database=name))
    if POSTGRES:
        administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.slow
def test_generated_migrations_work_unedited_and_lose_no_rows_and_no_ids(copy: Copy) -> None:
    copy.alembic("upgrade", "head")
    assert [copy.add_task() for _ in range(3)] == [1, 2, 3]
    copy.sql("DELETE FROM tasks WHERE id = 3")
    copy.migrate(COMMENTS)
    copy.sql("INSERT INTO comments (user_id, task_id) VALUES ('ann', 1), ('ann', 2)")

    copy.migrate(PROJECTS)
    assert copy.sql("SELECT id FROM tasks ORDER BY id") == [(1,), (2,)]
    assert copy.sql("SELECT task_id FROM comments ORDER BY task_id") == [(1,), (2,)]
    newest = copy.add_task(slug="a")
    assert newest > 3
    for wrong in ({"slug": "a"}, {"project_id": 1}):
        with pytest.raises(exc.IntegrityError):
            copy.add_task(**wrong)
    copy.sql(f"DELETE FROM tasks WHERE id IN (1, {newest})")
    assert copy.sql("SELECT task_id FROM comments") == [(2,)]

    copy.alembic("downgrade", "-2")
    assert copy.sql("SELECT id FROM tasks") == [(2,)]
    assert copy.add_task() > newest
