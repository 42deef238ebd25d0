"""Connections and statements: what is kept in time, and what users see when the database is away."""

import os
import select
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event, exc, text
from sqlmodel import Session

import db
from hardening import database
from tests.conftest import Caller, Clock, check_error, check_unavailable, served, until
from tests.support.counting import counted, sent_statements
from tests.support.environment import NAME, administer, on_postgres, on_sqlite, url, wire
from tests.support.wire import Wire

# Statements that take long enough to be given up, and yet have an end, should nobody give them up.
SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT sum(i) FROM n",
    "postgresql": "SELECT pg_sleep(20)",
}


def run(sql: str) -> None:
    with Session(db.engine) as session:
        session.execute(text(sql))


@pytest.mark.parametrize("column", ["title", "id"])
def test_errors_of_the_database_do_not_tell_the_data(
    user: Caller, caplog: pytest.LogCaptureFixture, column: str
) -> None:
    """PostgreSQL adds what stands before the mistake: here the title, or the user's id."""
    task = user.make()
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
def test_slow_statement_is_given_up_by_the_database_before_we_give_up_on_that() -> None:
    """Else it might still be carried out, and for a second nobody would be served."""
    given_up = pytest.raises(exc.OperationalError, match=r"due to statement timeout|interrupted")
    with ThreadPoolExecutor(1) as pool, given_up:
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
def test_sqlite_file_can_be_read_by_its_owner_alone() -> None:
    file = Path(str(url.database))
    assert file.stat().st_mode & 0o777 == 0o600


@on_sqlite
@pytest.mark.usefixtures("client")
def test_sqlite_gives_up_a_slow_statement(uptime: Clock) -> None:
    """SQLite asks again and again how late it is; here four seconds pass at once."""

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
def test_sqlite_that_another_program_has_locked_is_a_503_for_writers_alone(
    user: Caller, stranger: Caller
) -> None:
    task = user.make()
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
def test_time_limit_of_a_statement_is_four_seconds_and_travels_with_it(user: Caller) -> None:
    with counted() as cost, sent_statements() as sent:
        user("GET")
    ((sql, _),) = sent
    assert sql.startswith("SET LOCAL statement_timeout = 4000; SELECT ")
    assert cost() == 1


@on_postgres
def test_connections_closed_while_idle_are_replaced_unseen(user: Caller) -> None:
    for _ in range(3):
        assert user("GET").status_code == 200
        administer(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{NAME}'")
        until(closed_by_server)
        user.make()


def closed_by_server() -> bool:
    """Whether the word of the server has reached the pool's connections."""
    idle = [record.dbapi_connection for record in db.engine.pool._pool.queue]  # type: ignore[attr-defined]  # noqa: SLF001  (of a QueuePool)
    readable, _, _ = select.select(idle, [], [], 0)
    return len(readable) == len(idle) > 0


# The watchdog, which hangs up on frozen servers


@on_postgres
def test_watchdog_holds_a_socket_for_each_connection_and_leaves_none_behind(user: Caller) -> None:
    held: list[socket.socket] = []

    def remember(connection: Any, _record: object) -> None:
        held.append(database.sockets[connection])

    db.engine.dispose()
    event.listen(db.engine, "connect", remember)
    try:
        with db.engine.connect(), db.engine.connect() as lost, db.engine.connect() as own:
            assert sum(handle.fileno() >= 0 for handle in held) == 3
            own.detach()
            lost.invalidate()
            assert sum(handle.fileno() >= 0 for handle in held) == 2
        user.make()
        assert 1 <= sum(handle.fileno() >= 0 for handle in held) <= 2  # those that are idle in the pool
    finally:
        event.remove(db.engine, "connect", remember)
        db.engine.dispose()
    assert sum(handle.fileno() >= 0 for handle in held) == 0
    assert not database.sockets
    assert not database.waiting_since


def kill(connection: Any) -> None:
    administer(f"SELECT pg_terminate_backend({connection.connection.dbapi_connection.info.backend_pid})")


def close_behind_its_back(connection: Any) -> None:
    connection.connection.dbapi_connection.close()


SLEEP = "SELECT pg_sleep(20)"


@on_postgres
@pytest.mark.parametrize("spoil", [kill, close_behind_its_back, Connection.detach, Connection.invalidate])
def test_watchdog_outlives_whatever_happens_to_a_connection(
    user: Caller, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]
) -> None:
    monkeypatch.setattr(database, "RESPONSE_TIMEOUT", 0.3)
    with db.engine.connect() as first, db.engine.connect() as second:
        spoil(first)
        with suppress(exc.DBAPIError):
            first.exec_driver_sql("SELECT 1")
        with pytest.raises(exc.DBAPIError, match=r"closed the connection unexpectedly|SSL|terminat"):
            second.exec_driver_sql(SLEEP)
    monkeypatch.undo()
    assert user.titles() == []


@on_postgres
def test_watchdog_counts_from_each_statement(client: TestClient, uptime: Clock) -> None:
    """And not from when a request began to use the connection: it may have other things to do."""
    with db.engine.connect() as connection:
        for _ in range(2):
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
            assert not database.waiting_since
        with pytest.raises(exc.DBAPIError):
            connection.exec_driver_sql("SELECT 1 / 0")
        assert not database.waiting_since


@on_postgres
def test_watchdog_never_hits_a_descriptor_that_was_reused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection closes while the watchdog is about to hang up on it; its number goes to another socket."""
    with db.engine.connect() as connection:
        dbapi_connection = connection.connection.dbapi_connection
        number = database.sockets[dbapi_connection].fileno()
        connection.invalidate()
    ends = [socket.socketpair() for _ in range(number)]
    assert number in [end.fileno() for pair in ends for end in pair]
    database.waiting_since[dbapi_connection] = 0.0  # the watchdog has not heard of the end
    monkeypatch.setattr(database, "RESPONSE_TIMEOUT", 0.3)
    with db.engine.connect() as connection, pytest.raises(exc.DBAPIError):
        connection.exec_driver_sql(SLEEP)
    del database.waiting_since[dbapi_connection]
    for one, other in ends:
        one.sendall(b"still open")
        assert other.recv(10) == b"still open"
        one.close()
        other.close()


@on_postgres
def test_more_than_1024_open_files_are_no_problem(user: Caller) -> None:
    """select(2) knows no others; a server with many clients has more."""
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


@pytest.fixture
def the_wire() -> Iterator[Wire]:
    assert wire is not None
    yield wire
    wire.flowing.set()


@on_postgres
def test_database_that_is_away_is_a_503_until_it_is_back(
    user: Caller, client: TestClient, fresh_health: None, uptime: Clock, the_wire: Wire
) -> None:
    task = user.make()
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
def test_database_that_is_frozen_is_hung_up_on(
    user: Caller, the_wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = user.make()
    monkeypatch.setattr(database, "RESPONSE_TIMEOUT", 0.1)
    the_wire.flowing.clear()
    check_unavailable(user("GET"))
    the_wire.flowing.set()
    monkeypatch.undo()
    until(lambda: user("GET").status_code == 200)
    assert user("GET").json() == [task]


@on_postgres
@pytest.mark.slow
def test_database_that_is_frozen_is_given_up_after_seconds(
    user: Caller, client: TestClient, fresh_health: None, the_wire: Wire
) -> None:
    task = user.make()
    the_wire.flowing.clear()
    with ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(user, "GET"), pool.submit(client.get, "/health")]
        try:
            for request in requests:
                check_unavailable(request.result(timeout=20))
        finally:
            the_wire.flowing.set()
    until(lambda: user("GET").status_code == 200)
    assert user("GET").json() == [task]


@on_postgres
def test_statement_that_waits_for_a_lock_is_given_up_and_changes_nothing(
    user: Caller, stranger: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = user.make()
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT", 0.3)
    with db.engine.connect() as other:
        other.exec_driver_sql("BEGIN")
        other.exec_driver_sql(f"SELECT 1 FROM tasks WHERE id = {task['id']} FOR UPDATE")
        check_unavailable(user("PATCH", f"/{task['id']}/complete"))
        assert stranger("GET").status_code == 200
        other.exec_driver_sql("ROLLBACK")
    assert user("GET", f"/{task['id']}").json() == task


@on_postgres
def test_read_only_database_is_a_503_for_writers_alone(user: Caller) -> None:
    task = user.make()
    administer(f"ALTER DATABASE {NAME} SET default_transaction_read_only = on")
    db.engine.dispose()
    try:
        check_unavailable(user("POST", json={"title": "x"}))
        assert user("GET").json() == [task]
    finally:
        administer(f"ALTER DATABASE {NAME} RESET default_transaction_read_only")
        db.engine.dispose()
