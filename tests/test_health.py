"""/health: 200 after a real query, and soon, whatever is going on.

That it does not wait for one of the connections: test_session.py.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

import db
import main
from tests.conftest import Clock, check_unavailable, counted, sent_statements, until


@pytest.fixture(autouse=True)
def connected(client: TestClient) -> None:
    """To connect costs round trips too."""
    with db.engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def test_health_is_a_real_query_of_one_row(fresh_client: TestClient) -> None:
    with counted() as cost, sent_statements() as sent:
        response = fresh_client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert cost() == 1
    ((sql, _),) = sent
    assert "FROM tasks" in sql
    assert "LIMIT" in sql


def test_health_can_be_asked_with_head(fresh_client: TestClient) -> None:
    response = fresh_client.head("/health")
    assert (response.status_code, response.content) == (200, b"")


def test_many_who_ask_at_once_share_one_query(
    fresh_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_main = sys.modules["main"]
    checking, ask_database = fresh_main.Health.checking, fresh_main.ask_database

    def ask_when_all_are_here() -> None:
        until(lambda: checking.statistics().tasks_waiting == 9)
        ask_database()

    monkeypatch.setattr(fresh_main, "ask_database", ask_when_all_are_here)
    with counted() as cost, ThreadPoolExecutor(10) as pool:
        codes = set(pool.map(lambda _: fresh_client.get("/health").status_code, range(10)))
    assert codes == {200}
    assert cost() == 1


def test_health_is_a_second_old_at_most(fresh_client: TestClient, uptime: Clock) -> None:
    assert fresh_client.get("/health").status_code == 200
    uptime.forward(1.1)
    with counted() as cost:
        assert fresh_client.get("/health").status_code == 200
    assert cost() == 1


def test_health_does_not_wait_for_a_database_that_hangs(
    client: TestClient, uptime: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        release.wait(20)

    monkeypatch.setattr(main, "ask_database", hang)
    monkeypatch.setattr(main.Health, "known_until", 0.0)  # both are put back afterwards
    monkeypatch.setattr(main.Health, "good", False)
    with ThreadPoolExecutor(1) as pool:
        health = pool.submit(client.get, "/health")
        try:
            until(asked.is_set)
            uptime.forward(1.6)
            client.get("/")  # wakes the event loop, which then sees what time it is
            check_unavailable(health.result(timeout=10))
        finally:
            release.set()


def test_database_without_our_tables_is_not_healthy(
    fresh_client: TestClient, uptime: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert fresh_client.get("/health").status_code == 200
    uptime.forward(1.1)
    with db.engine.connect() as connection:
        connection.execute(text("ALTER TABLE tasks RENAME TO elsewhere"))
        try:
            first = fresh_client.get("/health")
            sys.modules["main"].Health.known_until += 10  # this machine may be slow
            second = fresh_client.get("/health")
        finally:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO tasks"))
    check_unavailable(first)
    check_unavailable(second)
    (line,) = [line for line in caplog.messages if line.startswith("Not healthy: ")]
    assert "tasks" in line
    uptime.forward(11.1)
    assert fresh_client.get("/health").status_code == 200
