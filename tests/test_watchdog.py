"""The watchdog closes connections to a PostgreSQL server that is frozen, and no others."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg2
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Result, event, exc, text
from sqlmodel import Session, col, select, update

import db
from auth import CurrentOwner
from db import SessionDep, transaction
from hardening import watchdog
from models import Task
from tests.conftest import Clock, UserClient, another_app, check_unavailable, until
from tests.support.environment import administer, on_postgres
from tests.support.wire import Wire

pytestmark = [on_postgres, pytest.mark.usefixtures("client")]


@pytest.fixture
def frozen(the_wire: Wire) -> Iterator[Callable[[], None]]:
    yield the_wire.flowing.clear
    the_wire.flowing.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit of a tenth of a second instead of five seconds."""
    monkeypatch.setattr(watchdog, "RESPONSE_TIMEOUT", 0.1)


# Connections to a frozen server


def test_frozen_database_is_a_503_until_it_responds(
    user: UserClient, frozen: Callable[[], None], the_wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = user.create()
    with monkeypatch.context() as patch:
        patch.setattr(watchdog, "RESPONSE_TIMEOUT", 0.1)
        frozen()
        check_unavailable(user("GET"))
        the_wire.flowing.set()
    until(lambda: user("GET").status_code == 200)
    assert user("GET").json() == [task]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_health")
def test_frozen_database_is_a_503_within_seconds(
    user: UserClient, client: TestClient, frozen: Callable[[], None], the_wire: Wire
) -> None:
    task = user.create()
    frozen()
    with ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(user, "GET"), pool.submit(client.get, "/health")]
        try:
            for request in requests:
                check_unavailable(request.result(timeout=20))
        finally:
            the_wire.flowing.set()
    until(lambda: user("GET").status_code == 200)
    assert user("GET").json() == [task]


def in_transaction() -> Connection:
    return db.engine.connect().execution_options(isolation_level="READ COMMITTED")


def begun(connection: Connection) -> Connection:
    connection.exec_driver_sql("SELECT 1")
    return connection


def stream(connection: Connection) -> Result[Any]:
    return connection.execution_options(yield_per=1).execute(text("SELECT generate_series(1, 3)"))


def end_early(rows: Any) -> None:
    rows.close()  # if this fails, SQLAlchemy only logs it
    begun(rows.connection)


# What runs before the server freezes, and what then waits for it.
WAITS: dict[str, tuple[Callable[[Connection], Any], Callable[[Any], object]]] = {
    "begin": (lambda connection: connection, begun),  # psycopg2 sends BEGIN before the first statement
    "statement": (begun, begun),
    "several rows": (begun, lambda connection: connection.execute(text("SELECT :n"), [{"n": 1}, {"n": 2}])),
    "next row": (stream, lambda rows: rows.cursor.fetchone()),
    "next part": (stream, list),
    "all other rows": (stream, Result.all),
    "end of a stream": (stream, end_early),
    "commit": (begun, Connection.commit),
    "rollback": (begun, Connection.rollback),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("before", "wait"), WAITS.values(), ids=WAITS)
def test_every_wait_for_a_frozen_server_times_out(
    frozen: Callable[[], None], before: Callable[[Connection], Any], wait: Callable[[Any], object]
) -> None:
    ended = pytest.raises((exc.DBAPIError, psycopg2.Error), match=r"closed the connection|already closed")
    with ended, in_transaction() as connection:
        waiting = before(connection)
        frozen()
        wait(waiting)


@pytest.mark.parametrize("at", ["BEGIN", "statement", "COMMIT", "ROLLBACK"])
def test_transaction_on_a_frozen_server_is_a_503(
    user: UserClient, frozen: Callable[[], None], the_wire: Wire, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    app = another_app()

    @app.post("/api/{user_id}/twice")
    def twice(owner: CurrentOwner, session: SessionDep) -> None:
        with transaction(session):
            for step in ("BEGIN", "statement"):
                if at == step:
                    frozen()
                session.exec(update(Task).where(col(Task.user_id) == owner).values(title=step))
            frozen()
            if at == "ROLLBACK":
                raise HTTPException(409)

    user.create("before")
    with TestClient(app) as other, monkeypatch.context() as patch:
        patch.setattr(watchdog, "RESPONSE_TIMEOUT", 0.1)
        check_unavailable(other.post(f"/api/{user.user_id}/twice", headers=user.headers))
        the_wire.flowing.set()
    until(lambda: user("GET").status_code == 200)
    assert user.titles() in (["before"], ["statement"])  # a COMMIT may arrive later, and nothing is half done


# Other connections


def three_rows(connection: Connection) -> None:
    assert connection.execute(text("SELECT generate_series(1, 3)")).scalars().all() == [1, 2, 3]


def mistake(connection: Connection) -> None:
    with pytest.raises(exc.DBAPIError):
        connection.exec_driver_sql("SELECT 1 / 0")
    connection.rollback()


def part_of_a_stream(connection: Connection) -> None:
    assert stream(connection).scalar() == 1


def begun_and(end: Callable[[Connection], None]) -> Callable[[Connection], None]:
    return lambda connection: end(begun(connection))


USES = {
    "a statement": three_rows,
    "a mistake": mistake,
    "a stream": part_of_a_stream,
    "a commit": begun_and(Connection.commit),
    "a rollback": begun_and(Connection.rollback),
}


@pytest.mark.parametrize("isolation_level", ["AUTOCOMMIT", "READ COMMITTED"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_idle_connection_stays_open(
    uptime: Clock, use: Callable[[Connection], None], isolation_level: Any
) -> None:
    """A request may hold one while it does something else."""
    with db.engine.connect().execution_options(isolation_level=isolation_level) as connection:
        for _ in range(2):
            use(connection)
            uptime.forward(7)
            watchdog.close_frozen_connections()


def test_many_changes_may_take_long_while_the_server_responds(
    user: UserClient, the_wire: Wire, uptime: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is a round trip; here each takes three seconds."""

    def three_seconds_pass() -> None:
        uptime.forward(3)
        watchdog.close_frozen_connections()

    for _ in range(5):
        user.create("old")
    with Session(db.engine) as session:
        for task in session.exec(select(Task).where(Task.user_id == user.user_id)):
            task.title = "new"
        with monkeypatch.context() as patch:
            patch.setattr(the_wire, "on_trip", three_seconds_pass)
            session.commit()
    assert user.titles() == ["new"] * 5


def test_watchdog_never_closes_a_reused_descriptor() -> None:
    """A connection closes just before the watchdog would close it."""
    with db.engine.connect() as connection:
        watched: Any = connection.connection.dbapi_connection
        handle = watched.handle
        number = handle.fileno()
        connection.invalidate()
    ends = [socket.socketpair() for _ in range(number)]
    assert number in [end.fileno() for pair in ends for end in pair]
    watchdog.waiting_since[handle] = 0.0
    watchdog.close_frozen_connections()
    del watchdog.waiting_since[handle]
    for one, other in ends:
        one.sendall(b"still open")
        assert other.recv(10) == b"still open"
        one.close()
        other.close()


# The watchdog itself


def kill(connection: Any) -> None:
    administer(f"SELECT pg_terminate_backend({connection.connection.dbapi_connection.info.backend_pid})")


def close_behind_its_back(connection: Any) -> None:
    connection.connection.dbapi_connection.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("spoil", [kill, close_behind_its_back, Connection.detach, Connection.invalidate])
def test_watchdog_still_works_after_a_connection_is_lost(spoil: Callable[[Any], None]) -> None:
    with db.engine.connect() as first, db.engine.connect() as second:
        spoil(first)
        with suppress(exc.DBAPIError):
            first.exec_driver_sql("SELECT 1")
        with pytest.raises(exc.DBAPIError, match=r"closed the connection unexpectedly|SSL|terminat"):
            second.exec_driver_sql("SELECT pg_sleep(20)")


def test_watchdog_has_one_socket_for_each_open_connection(user: UserClient) -> None:
    held: list[socket.socket] = []

    def open_ones() -> int:
        return sum(handle.fileno() >= 0 for handle in held)

    def remember(connection: Any, _record: object) -> None:
        held.append(connection.handle)

    db.engine.dispose()
    event.listen(db.engine, "connect", remember)
    try:
        with db.engine.connect(), db.engine.connect() as lost, db.engine.connect() as own:
            assert open_ones() == 3
            own.detach()
            lost.invalidate()
            assert open_ones() == 2
        user.create()
        assert 1 <= open_ones() <= 2  # those that are idle in the pool
    finally:
        event.remove(db.engine, "connect", remember)
        db.engine.dispose()
    assert open_ones() == 0
    assert not watchdog.waiting_since
