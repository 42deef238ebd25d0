"""The database: how it is reached, what its schema is, and what happens when it is away."""

import select
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

import db
from models import now
from routes import tasks
from tests.conftest import NAME, POSTGRES, Caller, administer, check_error, counted, wire
from tests.wire import Wire

on_postgres = pytest.mark.skipif(not POSTGRES, reason="needs a server: set TEST_DATABASE_URL")
on_sqlite = pytest.mark.skipif(bool(POSTGRES), reason="is about SQLite: unset TEST_DATABASE_URL")

URLS = {
    "": "sqlite:///todo.db",
    "sqlite:///other.db": "sqlite:///other.db",
    "sqlite+aiosqlite:///other.db": "sqlite:///other.db",
    "postgres://u:p@h/d": "postgresql+psycopg2://u:p@h/d",
    "postgresql://u:p@h/d": "postgresql+psycopg2://u:p@h/d",
    "postgresql+asyncpg://u:p@h:6543/d": "postgresql+psycopg2://u:p@h:6543/d",
    "postgresql+psycopg2://u:p%40ss@h/d": "postgresql+psycopg2://u:p%40ss@h/d",
}
NEON = "postgresql://me:npg_x@ep-a-1-pooler.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=require"


@pytest.mark.parametrize(("pasted", "used"), URLS.items())
def test_urls_are_understood_as_people_have_them(
    monkeypatch: pytest.MonkeyPatch, pasted: str, used: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", pasted)
    assert db.database_url().set(query={}).render_as_string(hide_password=False) == used


def test_what_the_url_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", NEON + "&connect_timeout=3")
    query = db.database_url().query
    assert (query["sslmode"], query["channel_binding"]) == ("require", "require")
    assert query["connect_timeout"] == "3"
    assert query["client_encoding"] == "utf8"


ALEMBIC = Config(toml_file=db.ROOT / "pyproject.toml")


@pytest.mark.usefixtures("client")
def test_the_migrations_make_what_the_models_say() -> None:
    command.check(ALEMBIC)


@pytest.mark.usefixtures("client")
def test_tables_of_others_are_left_alone() -> None:
    with db.engine.connect() as connection:
        for name in ("user", "session", "account", "verification", "jwks"):
            connection.execute(text(f'CREATE TABLE "{name}" (id INTEGER PRIMARY KEY)'))
    command.check(ALEMBIC)
    command.upgrade(ALEMBIC, "head")
    with db.engine.connect() as connection:
        for name in ("user", "session", "account", "verification", "jwks"):
            connection.execute(text(f'DROP TABLE "{name}"'))


def test_the_migrations_go_down_and_up_again(user: Caller) -> None:
    command.downgrade(ALEMBIC, "base")
    assert "tasks" not in inspect(db.engine).get_table_names()
    command.upgrade(ALEMBIC, "head")
    user.make()


def test_a_migration_that_fails_changes_nothing(user: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema changes are all or nothing, and the lock is let go."""
    user.make("still here")

    def half(context: MigrationContext, **_: object) -> None:
        context.connection.execute(text("CREATE TABLE half (id INTEGER)"))  # type: ignore[union-attr]
        raise RuntimeError("halfway")

    with monkeypatch.context() as patch:
        patch.setattr(MigrationContext, "run_migrations", half)
        with pytest.raises(RuntimeError, match="halfway"):
            command.upgrade(ALEMBIC, "head")
    assert "half" not in inspect(db.engine).get_table_names()
    db.migrate()
    assert user.titles() == ["still here"]


def test_many_callers_at_once_lose_and_double_nothing(user: Caller) -> None:
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(user.make, [str(number) for number in range(100)]))
    assert len({task["id"] for task in made}) == 100
    assert sorted(user.titles(), key=int) == [str(number) for number in range(100)]


@pytest.mark.parametrize("times", [40, 41])
def test_toggles_at_once_all_count(user: Caller, times: int) -> None:
    task = user.make()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: user("PATCH", f"/{task['id']}/complete"), range(times)))
    assert {answer.status_code for answer in answers} == {200}
    assert user("GET", f"/{task['id']}").json()["completed"] is (times % 2 == 1)


def test_updates_of_different_fields_at_once_keep_both(user: Caller) -> None:
    changes: list[dict[str, Any]] = [{"title": "new"}, {"description": "new"}, {"completed": True}]
    for _ in range(10):
        task = user.make("old", description="old")
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda change: user("PATCH", f"/{task['id']}", json=change), changes))  # noqa: B023
        final = user("GET", f"/{task['id']}").json()
        assert (final["title"], final["description"], final["completed"]) == ("new", "new", True)


def test_deletes_at_once_delete_once(user: Caller) -> None:
    task = user.make()
    with ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(lambda _: user("DELETE", f"/{task['id']}").status_code, range(10)))
    assert sorted(codes) == [204] + [404] * 9


@pytest.mark.parametrize("filtered", [False, True])
def test_a_page_is_a_walk_along_an_index(user: Caller, filtered: bool) -> None:
    """However many tasks there are: nothing is sorted, and no more is read than shown."""
    task = {
        "user_id": user.user_id,
        "title": "x",
        "completed": False,
        "created_at": now(),
        "updated_at": now(),
    }
    values = {"owner": user.user_id, "only_completed": False, "skip": 0, "limit": 101}
    query = tasks.list_statement("-created_at", filtered, False).params(**values).compile(db.engine)
    order = query.positiontup
    with db.engine.connect() as connection:
        connection.execute(tasks.tasks.insert(), [task, *[task | {"completed": True}] * 9] * 300)
        connection.exec_driver_sql("ANALYZE")
        explain = "EXPLAIN" if POSTGRES else "EXPLAIN QUERY PLAN"
        parameters = tuple(query.params[name] for name in order) if order else query.params
        plan = str(connection.exec_driver_sql(f"{explain} {query}", parameters).all())
    assert ("ix_tasks_user_completed_created" if filtered else "ix_tasks_user_created") in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan


def test_errors_of_the_database_do_not_tell_the_data(
    user: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = text("SELECT :owner || :task_id FROM nowhere")
    monkeypatch.setattr(tasks, "GET", broken)
    assert user("GET", "/1").status_code in {
        500,
        503,
    }  # SQLite tells a missing table from a missing file by words
    assert "nowhere" in caplog.text
    assert user.user_id not in caplog.text


@on_sqlite
def test_sqlite_writes_ahead_and_waits_for_its_turn(user: Caller) -> None:
    user.make()
    with db.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30000
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@on_postgres
def test_connections_closed_while_idle_are_replaced_unseen(user: Caller) -> None:
    for _ in range(3):
        assert user("GET").status_code == 200
        administer(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{NAME}'")
        until(closed_by_server)
        user.make()


def closed_by_server() -> bool:
    """Whether the word of the server has reached the pool's connections."""
    idle = [record.dbapi_connection for record in db.engine.pool._pool.queue]  # type: ignore[attr-defined]  # noqa: SLF001
    readable, _, _ = select.select(idle, [], [], 0)
    return len(readable) == len(idle) > 0


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, "it did not happen within 10 seconds"
        time.sleep(0.01)


@pytest.fixture
def the_wire() -> Iterator[Wire]:
    assert wire is not None
    yield wire
    wire.flowing.set()
    db.unanswered_until = 0.0


@on_postgres
def test_while_the_database_is_away_answers_are_503_and_then_all_is_well(
    user: Caller, the_wire: Wire
) -> None:
    task = user.make()
    the_wire.cut()
    try:
        for answer in (user("GET"), user("POST", json={"title": "lost"}), user.client.get("/health")):
            check_error(answer, 503, "service_unavailable")
            assert int(answer.headers["retry-after"]) > 0
    finally:
        the_wire.mend()
    assert user("GET").json() == [task]
    assert user.client.get("/health").status_code == 200


@on_postgres
def test_a_database_that_is_frozen_is_not_waited_for(
    user: Caller, the_wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = user.make()
    monkeypatch.setattr(db, "PATIENCE", 0.1)
    the_wire.flowing.clear()
    check_error(user("GET"), 503, "service_unavailable")
    with counted() as cost:  # those who come next are told without asking
        check_error(user("GET"), 503, "service_unavailable")
        check_error(user.client.get("/health"), 503, "service_unavailable")
    assert cost() == 0
    db.unanswered_until = 0.0
    check_error(user("GET"), 503, "service_unavailable")  # not even a new connection
    the_wire.flowing.set()
    monkeypatch.undo()
    db.unanswered_until = 0.0
    assert user("GET").json() == [task]


@on_postgres
def test_a_statement_that_waits_for_a_lock_is_given_up_by_the_server_and_bothers_nobody(
    user: Caller, stranger: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = user.make()
    monkeypatch.setattr(db, "PATIENCE", 0.5)
    with db.engine.connect() as other:
        other.exec_driver_sql("BEGIN")
        other.exec_driver_sql(f"SELECT 1 FROM tasks WHERE id = {task['id']} FOR UPDATE")
        check_error(user("PATCH", f"/{task['id']}/complete"), 503, "service_unavailable")
        assert stranger("GET").status_code == 200
        assert user.client.get("/health").status_code == 200
        other.exec_driver_sql("ROLLBACK")
    assert user("GET", f"/{task['id']}").json() == task


@on_postgres
def test_a_read_only_database_is_a_503(user: Caller) -> None:
    task = user.make()
    administer(f"ALTER DATABASE {NAME} SET default_transaction_read_only = on")
    db.engine.dispose()
    try:
        check_error(user("POST", json={"title": "x"}), 503, "service_unavailable")
        assert user("GET").json() == [task]
    finally:
        administer(f"ALTER DATABASE {NAME} RESET default_transaction_read_only")
        db.engine.dispose()


@on_postgres
@pytest.mark.usefixtures("client")
def test_a_fresh_connection_is_not_taken_for_one_that_was_closed_while_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a server that hangs up on newcomers would be a 500: the pool gives up after two of them."""
    db.engine.dispose()
    monkeypatch.setattr(db.Selector, "select", lambda *_: [True])
    db.engine.connect().close()
