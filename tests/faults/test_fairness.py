"""One user with very many tasks, all searched at once, and another who only wants to see a few."""

import sqlite3
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.conftest import UserClient, check_unavailable
from tests.faults.conftest import MOST_SECONDS, Cluster, Service, service, timed

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
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, UserClient]]:
    """The API, and its user with very many tasks, called searcher."""
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("data") / "todo.db"
        with service(f"sqlite:///{file}") as api:
            searcher = api.user()
            with closing(sqlite3.connect(file)) as database, database:
                database.execute(FILL["sqlite"] % searcher.user_id)
            yield api, searcher
    else:
        cluster: Cluster = request.getfixturevalue("cluster")
        url = cluster.database()
        with service(url) as api:
            searcher = api.user()
            with closing(cluster.connect("app", url.rpartition("/")[2])) as database:
                database.cursor().execute(FILL["postgresql"] % searcher.user_id)
                database.cursor().execute("ANALYZE tasks")
            yield api, searcher


def test_forty_expensive_searches_block_nobody_else(shared: tuple[Service, UserClient]) -> None:
    api, searcher = shared
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
    assert max(waited) < 4  # as long as a search may take
    for search in searches:
        response, seconds = search.result()
        assert seconds < MOST_SECONDS
        if response.status_code == 200:
            assert response.json() == []
        else:
            check_unavailable(response)
