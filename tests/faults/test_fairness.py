"""One user searches very many tasks, many times at once; another user lists one task."""

import sqlite3
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.conftest import UserClient, check_unavailable
from tests.faults.conftest import MOST_SECONDS, Service, connect, service, timed

pytestmark = pytest.mark.slow

MANY = 200_000
COLUMNS = "(user_id, title, description, completed, created_at, updated_at)"
FILL = {
    "postgresql": f"""INSERT INTO tasks {COLUMNS}
        SELECT '%s', 'Task ' || n, repeat('What there is to say of it. ', 4), false, now(), now()
        FROM generate_series(1, {MANY}) n""",
    "sqlite": f"""
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {MANY})
        INSERT INTO tasks {COLUMNS}
        SELECT '%s', 'Task ' || n, replace('....', '.', 'What there is to say of it. '), 0,
               '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000' FROM numbers""",
}


@pytest.fixture(scope="module", params=FILL)
def api_and_searcher(request: pytest.FixtureRequest) -> Iterator[tuple[Service, UserClient]]:
    """The API, and its user with very many tasks."""
    on_sqlite = request.param == "sqlite"
    url = "sqlite:///todo.db" if on_sqlite else request.getfixturevalue("cluster").database()
    with service(url) as api:
        searcher = api.user()
        with closing(sqlite3.connect(api.log.parent / "todo.db") if on_sqlite else connect(url)) as database:
            database.cursor().execute(FILL[request.param] % searcher.user_id)
            database.commit()
        yield api, searcher


def test_forty_expensive_searches_block_nobody_else(api_and_searcher: tuple[Service, UserClient]) -> None:
    api, searcher = api_and_searcher
    other = api.user()
    other.create("the only one")
    waited = []
    with ThreadPoolExecutor(40) as pool:
        searches = [pool.submit(timed, searcher, "GET", "?search=nowhere") for _ in range(40)]
        while not all(search.done() for search in searches):
            response, seconds = timed(other, "GET")
            assert response.status_code == 200
            assert [task["title"] for task in response.json()] == ["the only one"]
            waited.append(seconds)
    assert statistics.median(waited) < 1
    assert max(waited) < 4  # the time limit of a search
    for search in searches:
        response, seconds = search.result()
        assert seconds < MOST_SECONDS
        if response.status_code == 200:
            assert response.json() == []
        else:
            check_unavailable(response)
