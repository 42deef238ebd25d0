"""/health: 200 after a real query, and soon, whatever is going on."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

import db
from tests.conftest import Clock, check_unavailable, counted


@pytest.fixture(autouse=True)
def connected(client: TestClient) -> None:
    """To connect costs round trips too."""
    with db.engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def test_health_is_a_real_query(fresh_client: TestClient) -> None:
    with counted() as cost:
        response = fresh_client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert cost() == 1


def test_health_can_be_asked_with_head(fresh_client: TestClient) -> None:
    response = fresh_client.head("/health")
    assert (response.status_code, response.content) == (200, b"")


def test_many_who_ask_at_once_share_one_query(fresh_client: TestClient) -> None:
    with counted() as cost, ThreadPoolExecutor(20) as pool:
        codes = set(pool.map(lambda _: fresh_client.get("/health").status_code, range(20)))
    assert codes == {200}
    assert cost() == 1


def test_health_is_a_second_old_at_most(fresh_client: TestClient, uptime: Clock) -> None:
    assert fresh_client.get("/health").status_code == 200
    uptime.forward(1.1)
    with counted() as cost:
        assert fresh_client.get("/health").status_code == 200
    assert cost() == 1


def test_database_without_our_tables_is_not_healthy(
    fresh_client: TestClient, uptime: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with db.engine.connect() as connection:
        connection.execute(text("ALTER TABLE tasks RENAME TO elsewhere"))
        try:
            first = fresh_client.get("/health")
            second = fresh_client.get("/health")
        finally:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO tasks"))
    check_unavailable(first)
    check_unavailable(second)
    (line,) = [line for line in caplog.messages if line.startswith("Not healthy: ")]
    assert "tasks" in line
    uptime.forward(1.1)
    assert fresh_client.get("/health").status_code == 200
