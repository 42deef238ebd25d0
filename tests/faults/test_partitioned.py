"""Tasks partitioned by user, with the statements of docs/deploy.md: the app works unchanged."""

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import until
from tests.faults.conftest import Cluster, Service, binary, load, query, service
from tests.support.environment import SECRET
from tests.support.server import serving

pytestmark = pytest.mark.slow

GUIDE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
(PARTITION,) = (sql for sql in re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL) if "PARTITION BY" in sql)
# Enough rows for PostgreSQL to use the indexes.
FILL = """
    INSERT INTO tasks (user_id, title, completed, created_at, updated_at)
    SELECT 'ann', 'old', n % 2 = 0, now(), now() FROM generate_series(1, 5000) n
    UNION ALL SELECT 'ben', 'old', n % 2 = 0, now(), now() FROM generate_series(1, 5000) n
    UNION ALL SELECT 'user ' || n, 'old', false, now(), now() FROM generate_series(1, 500) n
"""
LATER = """
import sqlalchemy as sa
from alembic import op

revision = "later"
down_revision = "{head}"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("added_later", sa.Integer(), nullable=False, server_default="7"))
    op.create_index("ix_tasks_user_added_later", "tasks", ["user_id", "added_later", "id"])
"""


def partition(url: str) -> None:
    psql = [binary("psql"), url, "--set", "ON_ERROR_STOP=1"]
    subprocess.run(psql, input=PARTITION, check=True, capture_output=True, text=True)


def last_plan(url: str) -> str:
    """How PostgreSQL runs the last statement of the app."""
    of_app = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ((sent,),) = query(url, f"SELECT query {of_app} AND usename = 'app' ORDER BY query_start DESC LIMIT 1")
    statement = re.sub(r"^SET LOCAL [^;]*; ", "", sent)  # the time limit before it
    return json.dumps(query(url, f"EXPLAIN (FORMAT JSON) {statement}"))


def test_table_in_use_is_partitioned_and_nothing_is_lost(cluster: Cluster) -> None:
    url = cluster.database()
    with service(url) as api:
        query(url, FILL)
        before = query(url, "SELECT * FROM tasks ORDER BY id")
        with load(api) as clients:
            partition(url)
            created = len(clients.created)
            until(lambda: len(clients.created) > created + 20)
        after = query(url, "SELECT * FROM tasks ORDER BY id")
        assert after[: len(before)] == before  # and new ids are greater than those
        assert len({row[0] for row in after}) == len(after)  # none was given twice
        assert "Traceback" not in api.log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    """A database whose tasks are partitioned."""
    url = cluster.database()
    with service(url):
        query(url, FILL)
        partition(url)
    query(url, "ANALYZE tasks")
    return url


def check_all_operations(api: Service, url: str) -> None:
    """Each works, and reads only the partition that has this user's tasks."""
    for user_id, other_id in (("ann", "ben"), ("ben", "ann")):
        user, other = api.user(user_id), api.user(other_id)
        task = user.create("Water the plants")
        path = f"/{task['id']}"
        assert [other(method, path).status_code for method in ("GET", "DELETE")] == [404, 404]
        ((home,),) = query(url, f"SELECT DISTINCT tableoid::regclass FROM tasks WHERE user_id = '{user_id}'")
        for method, where, body, status, sorts in (
            ("GET", "", None, 200, False),
            ("GET", "?completed=false", None, 200, False),
            ("GET", "?search=plants&sort=title", None, 200, True),
            ("GET", path, None, 200, False),
            ("PUT", path, {"title": "Water them"}, 200, False),
            ("PATCH", path, {"description": "twice"}, 200, False),
            ("PATCH", f"{path}/complete", None, 200, False),
            ("DELETE", path, None, 204, False),
        ):
            response = user(method, where, json=body)
            assert response.status_code == status, response.text
            plan = last_plan(url)
            assert set(re.findall(r'"Relation Name": "(tasks_\d+)"', plan)) == {home}, (method, where)
            assert ('"Sort"' in plan, '"Seq Scan"' in plan) == (sorts, sorts), (method, where)
        assert user("GET", path).status_code == 404
    assert api.health() == 200


def test_each_operation_reads_one_partition(url: str) -> None:
    with service(url) as api:
        check_all_operations(api, url)
    ((partitions,),) = query(url, "SELECT count(DISTINCT tableoid) FROM tasks")
    assert partitions == 16


def test_later_migrations_reach_every_partition(url: str, clone: Path) -> None:
    variables = {"DATABASE_URL": url, "BETTER_AUTH_SECRET": SECRET}
    check = [sys.executable, "-m", "alembic", "check"]
    environment = os.environ | variables
    checked = subprocess.run(check, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert "No new upgrade operations detected" in checked.stdout, checked.stderr

    ((head,),) = query(url, "SELECT version_num FROM alembic_version")
    later = clone / "migrations" / "versions" / "later.py"
    later.write_text(LATER.format(head=head), encoding="utf-8")
    with serving(clone, **variables) as server:
        api = Service(server, clone / "log")
        with closing(api.client):
            check_all_operations(api, url)
    assert query(url, "SELECT DISTINCT added_later FROM tasks") == [(7,)]
    indexes = "SELECT count(*) FROM pg_indexes WHERE tablename ~ '^tasks_' AND indexdef ~ 'added_later'"
    assert query(url, indexes) == [(16,)]
