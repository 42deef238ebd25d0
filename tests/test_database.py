"""Connections and statements: their time limits, and responses while the database is down."""

import os
import select as system
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, exc, text
from sqlmodel import Session, col, select

import db
from db import transaction
from hardening import database
from models import Task
from tests.conftest import Clock, UserClient, check_error, check_unavailable, served, until
from tests.support.counting import counted, sent_statements
from tests.support.environment import NAME, administer, on_postgres, on_sqlite, url
from tests.support.wire import Wire

# Statements that take long enough to be cancelled, but would end if nobody cancelled them.
SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT sum(i) FROM n",
    "postgresql": "SELECT pg_sleep(20)",
}


def run(sql: str) -> None:
    with Session(db.engine) as session:
        session.execute(text(sql))


@pytest.mark.parametrize("column", ["title", "id"])
def test_database_errors_do_not_leak_data(
    user: UserClient, caplog: pytest.LogCaptureFixture, column: str
) -> None:
    """PostgreSQL quotes the statement up to the error: here the title, or the user's id."""
    task = user.create()
    with db.engine.connect() as connection:
        connection.execute(text(f"ALTER TABLE tasks RENAME COLUMN {column} TO elsewhere"))
        try:
            response = served(user)("PUT", f"/{task['id']}", json={"title": "s3cret"})
        finally:
            connection.execute(text(f"ALTER TABLE tasks RENAME COLUMN elsewhere TO {column}"))
    check_error(response, 500, "internal_error")
    assert column in caplog.text
    assert "s3cret" not in caplog.text
    assert user.user_id not in caplog.text


@pytest.mark.usefixtures("client")
def test_errors_of_statements_hide_their_parameters() -> None:
    with db.engine.connect() as connection, pytest.raises(exc.DBAPIError) as error:
        connection.execute(text("SELECT :word FROM nowhere"), {"word": "s3cret"})
    added = str(error.value).partition("[SQL: ")[2]  # what the driver said stands before it
    assert "nowhere" in added
    assert "s3cret" not in added


@pytest.mark.usefixtures("client")
@pytest.mark.slow
def test_database_cancels_a_slow_statement_before_the_watchdog_closes_its_connection() -> None:
    """Otherwise it might still take effect, and reconnecting would block all requests for a second."""
    cancelled = pytest.raises(exc.OperationalError, match=r"due to statement timeout|interrupted")
    with ThreadPoolExecutor(1) as pool, cancelled:
        pool.submit(run, SLOW[db.engine.dialect.name].format(10**8)).result(timeout=60)
    run("SELECT 1")


# SQLite


@on_sqlite
@pytest.mark.usefixtures("client")
def test_sqlite_writes_ahead_and_waits_four_seconds_for_a_lock() -> None:
    with db.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 4000


@on_sqlite
@pytest.mark.skipif(os.name == "nt", reason="on Windows, a file's mode says nothing about its readers")
@pytest.mark.usefixtures("client")
def test_sqlite_file_can_be_read_by_its_owner_only() -> None:
    file = Path(str(url.database))
    assert file.stat().st_mode & 0o777 == 0o600


@on_sqlite
@pytest.mark.usefixtures("client")
def test_sqlite_cancels_a_slow_statement(uptime: Clock) -> None:
    """SQLite checks the time again and again; here four seconds pass at once."""

    def late(*_arguments: object) -> None:
        uptime.forward(4.1)

    event.listen(db.engine, "before_cursor_execute", late)
    try:
        with pytest.raises(exc.OperationalError, match="interrupted"):
            run(SLOW["sqlite"].format(10**6))
    finally:
        event.remove(db.engine, "before_cursor_execute", late)
    run("SELECT 1")


@on_sqlite
def test_sqlite_locked_by_another_program_is_a_503_for_writers_only(
    user: UserClient, another_user: UserClient
) -> None:
    task = user.create()
    with db.engine.connect() as connection:
        # On all connections that requests will use; four seconds are too long for this test.
        event.listen(db.engine, "before_cursor_execute", impatient)
        try:
            with closing(sqlite3.connect(str(url.database), isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                check_unavailable(user("DELETE", f"/{task['id']}"))
                assert user("GET").json() == [task]
        finally:
            event.remove(db.engine, "before_cursor_execute", impatient)
            connection.close()
            db.engine.dispose()
    assert user("DELETE", f"/{task['id']}").status_code == 204


def impatient(_connection: object, cursor: Any, *_rest: object) -> None:
    cursor.execute("PRAGMA busy_timeout = 100")


# PostgreSQL


@on_postgres
def test_four_second_limit_is_sent_with_the_statement(user: UserClient) -> None:
    with counted() as cost, sent_statements() as sent:
        user("GET")
    ((sql, _),) = sent
    assert sql.startswith("SET LOCAL statement_timeout = 4000; SELECT ")
    assert cost() == 1


IN_PARTS: dict[str, dict[str, Any]] = {
    "yield_per": {"yield_per": 2},
    "stream_results": {"stream_results": True, "max_row_buffer": 2},
}


@pytest.mark.parametrize("options", IN_PARTS.values(), ids=IN_PARTS)
@pytest.mark.parametrize("begin", [transaction, nullcontext], ids=["transaction", "autocommit"])
def test_rows_can_be_read_in_parts(user: UserClient, begin: Any, options: dict[str, Any]) -> None:
    for number in range(5):
        user.create(str(number))
    mine = select(Task).where(Task.user_id == user.user_id).order_by(col(Task.id))
    with Session(db.engine) as session, begin(session):
        rows = session.exec(mine, execution_options=options)
        assert [task.title for task in rows] == ["0", "1", "2", "3", "4"]


@on_postgres
def test_parts_are_fetched_one_by_one_in_a_transaction_only(client: TestClient) -> None:
    """Otherwise, all rows arrive before the first is read."""
    numbers = text("SELECT generate_series(1, 6)")
    for begin, cost in ((transaction, 5), (nullcontext, 1)):
        with Session(db.engine) as session, begin(session):
            session.execute(text("SELECT 1"))  # BEGIN and the like are over
            with counted() as trips:
                rows = session.execute(numbers, execution_options={"yield_per": 2}).scalars()
                assert [next(rows) for _ in range(5)] == [1, 2, 3, 4, 5]
            assert trips() == cost  # the time limit, DECLARE, and three times two rows


@on_postgres
def test_each_part_has_the_time_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT", 0.3)
    slow = text("SELECT n, pg_sleep(n / 10) FROM generate_series(1, 200) AS n")
    with Session(db.engine) as session, transaction(session):
        rows = session.execute(slow, execution_options={"yield_per": 1})
        with pytest.raises(exc.OperationalError, match="due to statement timeout"):
            rows.all()


@on_postgres
def test_connections_closed_while_idle_are_replaced_unseen(user: UserClient) -> None:
    for _ in range(3):
        assert user("GET").status_code == 200
        administer(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{NAME}'")
        until(closed_by_server)
        user.create()


def closed_by_server() -> bool:
    """Whether the close has arrived at all connections of the pool."""
    idle = [record.dbapi_connection for record in db.engine.pool._pool.queue]  # type: ignore[attr-defined]  # noqa: SLF001  (of a QueuePool)
    readable, _, _ = system.select(idle, [], [], 0)
    return len(readable) == len(idle) > 0


@on_postgres
def test_more_than_1024_open_files_are_no_problem(user: UserClient) -> None:
    """select(2) cannot handle more; a server with many clients has more."""
    resource = pytest.importorskip("resource", reason="sets a limit that Windows does not have")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    db.engine.dispose()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    files = [os.dup(0) for _ in range(1100)]
    try:
        for _ in range(2):
            assert user("GET").status_code == 200
    finally:
        for file in files:
            os.close(file)
        db.engine.dispose()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@on_postgres
def test_database_that_is_down_is_a_503_until_it_is_back(
    user: UserClient, client: TestClient, fresh_health: None, uptime: Clock, the_wire: Wire
) -> None:
    task = user.create()
    the_wire.cut()
    try:
        for response in (user("GET"), user("POST", json={"title": "lost"}), client.get("/health")):
            check_unavailable(response)
    finally:
        the_wire.mend()
    assert user("GET").json() == [task]
    uptime.forward(1.1)
    assert client.get("/health").status_code == 200


@on_postgres
def test_statement_waiting_for_a_lock_is_cancelled_without_changes(
    user: UserClient, another_user: UserClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = user.create()
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT", 0.3)
    with db.engine.connect() as other:
        other.exec_driver_sql("BEGIN")
        other.exec_driver_sql(f"SELECT 1 FROM tasks WHERE id = {task['id']} FOR UPDATE")
        check_unavailable(user("PATCH", f"/{task['id']}/complete"))
        assert another_user("GET").status_code == 200
        other.exec_driver_sql("ROLLBACK")
    assert user("GET", f"/{task['id']}").json() == task


@on_postgres
def test_read_only_database_is_a_503_for_writers_only(user: UserClient) -> None:
    task = user.create()
    administer(f"ALTER DATABASE {NAME} SET default_transaction_read_only = on")
    db.engine.dispose()
    try:
        check_unavailable(user("POST", json={"title": "x"}))
        assert user("GET").json() == [task]
    finally:
        administer(f"ALTER DATABASE {NAME} RESET default_transaction_read_only")
        db.engine.dispose()
