"""/health: 200 after a real query, and a response within two seconds in any case.

That it does not wait for one of the connections: test_session.py.
"""

import errno
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, exc, text

import db
from routes.service import check_database, database_health
from tests.conftest import Clock, UserClient, check_error, check_unavailable, served, until
from tests.support.counting import counted, sent_statements


@pytest.fixture(autouse=True)
def connected(client: TestClient) -> None:
    """Connecting costs round trips, too."""
    with db.engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def test_health_is_a_real_query_of_one_row(client: TestClient, fresh_health: None) -> None:
    with counted() as cost, sent_statements() as sent:
        response = client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert cost() == 1
    ((sql, _),) = sent
    assert "FROM tasks" in sql
    assert "LIMIT" in sql


def test_head_works_too(client: TestClient, fresh_health: None) -> None:
    response = client.head("/health")
    assert (response.status_code, response.content) == (200, b"")


def test_simultaneous_requests_share_one_query(
    client: TestClient, fresh_health: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_when_all_are_here() -> int:
        until(lambda: database_health.checking.statistics().tasks_waiting == 9)
        return check_database()

    monkeypatch.setattr(database_health, "check", check_when_all_are_here)
    with counted() as cost, ThreadPoolExecutor(10) as pool:
        codes = set(pool.map(lambda _: client.get("/health").status_code, range(10)))
    assert codes == {200}
    assert cost() == 1


def test_result_is_at_most_a_second_old(client: TestClient, fresh_health: None, uptime: Clock) -> None:
    assert client.get("/health").status_code == 200
    uptime.forward(1.1)
    with counted() as cost:
        assert client.get("/health").status_code == 200
    assert cost() == 1


def test_health_does_not_wait_for_a_database_that_hangs(
    client: TestClient, fresh_health: None, uptime: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang() -> int:
        asked.set()
        release.wait(20)
        return 200

    monkeypatch.setattr(database_health, "check", hang)
    with ThreadPoolExecutor(1) as pool:
        health = pool.submit(client.get, "/health")
        try:
            until(asked.is_set)
            uptime.forward(1.6)
            client.get("/")  # wakes the event loop, which then sees what time it is
            assert check_unavailable(health.result(timeout=10)) == "The database does not respond"
        finally:
            release.set()


FAILURES = {
    "database down": exc.OperationalError("SELECT", {}, Exception("gone")),
    "no connections left": exc.TimeoutError("gone"),
    "no files left": OSError(errno.EMFILE, "gone"),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_failure_of_the_database_is_a_503_and_one_line(
    client: TestClient, fresh_health: None, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    def fail(*_: object) -> None:
        raise failure

    event.listen(db.engine, "before_cursor_execute", fail)
    try:
        response = client.get("/health")
    finally:
        event.remove(db.engine, "before_cursor_execute", fail)
    assert check_unavailable(response) == "The database does not respond"
    (record,) = caplog.records
    assert re.fullmatch(r"/health: \w+Error: .*gone", record.getMessage())
    assert record.exc_info is None


MISSING = {
    "table": ("ALTER TABLE tasks RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO tasks"),
    "column": (
        "ALTER TABLE tasks RENAME COLUMN description TO elsewhere",
        "ALTER TABLE tasks RENAME COLUMN elsewhere TO description",
    ),
}


@pytest.mark.parametrize(("lose", "find"), MISSING.values(), ids=MISSING)
def test_forgotten_migration_is_seen_at_once(
    user: UserClient,
    fresh_health: None,
    uptime: Clock,
    caplog: pytest.LogCaptureFixture,
    lose: str,
    find: str,
) -> None:
    client = user.client
    assert client.get("/health").status_code == 200
    uptime.forward(1.1)
    with db.engine.connect() as connection:
        connection.execute(text(lose))
        try:
            first = client.get("/health")
            database_health.valid_until += 10  # this machine may be slow
            second = client.get("/health")
            (line,) = [line for line in caplog.messages if "alembic upgrade head" in line]
            assert line.startswith("/health: ")
            tasks = served(user)("GET")
        finally:
            connection.execute(text(find))
    for response in (first, second, tasks):
        check_error(response, 500, "internal_error")
        assert "retry-after" not in response.headers
    uptime.forward(11.1)
    assert client.get("/health").status_code == 200
