"""SQLite has no server to cancel statements: locks of other programs, and a statement that never ends."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import check_unavailable
from tests.faults.conftest import Service, service, timed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def api() -> Iterator[Service]:
    with service("sqlite:///todo.db") as api:
        yield api


@pytest.fixture
def file(api: Service) -> Path:
    return api.log.parent / "todo.db"


def test_write_lock_of_another_program(api: Service, file: Path) -> None:
    """Reads go on, and writes get a 503 within seconds."""
    user = api.user()
    task = user.create("before")
    with closing(sqlite3.connect(file, isolation_level=None)) as other, ThreadPoolExecutor(2) as pool:
        other.execute("BEGIN EXCLUSIVE")
        create = pool.submit(timed, user, "POST", json={"title": "x"})
        toggle = pool.submit(timed, user, "PATCH", f"/{task['id']}/complete")
        while not (create.done() and toggle.done()):
            response, seconds = timed(user, "GET")
            assert response.status_code == 200
            assert api.health() == 200
            assert seconds < 3
        for write in (create, toggle):
            response, seconds = write.result()
            check_unavailable(response)
            assert 3 < seconds < 8
        other.execute("ROLLBACK")
    assert user.create("after")["title"] == "after"
    assert [(found["title"], found["completed"]) for found in user("GET").json()] == [
        ("after", False),
        ("before", False),
    ]


ENDLESS = """CREATE VIEW tasks AS
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)
    SELECT id, user_id || n AS user_id, title, description, completed, created_at, updated_at
    FROM kept, numbers"""


def test_endless_statement(api: Service, file: Path) -> None:
    """It is cancelled after four seconds, and its connection can be used again."""
    user = api.user()
    user.create("one")
    with closing(sqlite3.connect(file)) as other:
        other.executescript(f"ALTER TABLE tasks RENAME TO kept; {ENDLESS}")
        try:
            with ThreadPoolExecutor(6) as pool:
                lists = [pool.submit(timed, user, "GET") for _ in range(6)]
            responses = [one.result() for one in lists]
            for response, seconds in responses:
                check_unavailable(response)
                assert 3 < seconds < 12  # a user's requests may wait for each other
            assert min(seconds for _, seconds in responses) < 8
        finally:
            other.executescript("DROP VIEW tasks; ALTER TABLE kept RENAME TO tasks")
    assert [user.titles() for _ in range(10)] == [["one"]] * 10
    assert "Traceback" not in api.log.read_text(encoding="utf-8")
