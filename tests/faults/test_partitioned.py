"""Tasks partitioned by user, with the statements of docs/deploy.md: the app neither knows nor notices."""

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import UserClient, until
from tests.faults.conftest import Cluster, Service, binary, load, service
from tests.support.environment import SECRET
from tests.support.server import serving

pytestmark = pytest.mark.slow

PAPER = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
(PARTITION,) = (sql for sql in re.findall(r"```sql\n(.*?)```", PAPER, re.DOTALL) if "PARTITION BY" in sql)
# So many that no index is left aside for being more than the table is worth.
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


class Database:
    """The app's database, asked past the app."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.url = cluster, cluster.database()

    def sql(self, statement: str, user: str = "app") -> list[Any]:
        with closing(self.cluster.connect(user, self.url.rpartition("/")[2])) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def partition(self) -> None:
        psql = [binary("psql"), self.url, "--set", "ON_ERROR_STOP=1"]
        subprocess.run(psql, input=PARTITION, check=True, capture_output=True, text=True)

    def last_plan(self) -> str:
        """How PostgreSQL runs what the app asked last."""
        of_app = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app'"
        ((query,),) = self.sql(f"{of_app} ORDER BY query_start DESC LIMIT 1", "postgres")
        statement = re.sub(r"^SET LOCAL [^;]*; ", "", query)  # the time limit before it
        return json.dumps(self.sql(f"EXPLAIN (FORMAT JSON) {statement}"))


def user_of(api: Service, user_id: str) -> UserClient:
    return UserClient(api.client, user_id)  # type: ignore[arg-type]  # any client of this kind will do


def test_table_in_use_is_partitioned_and_nothing_is_lost(cluster: Cluster) -> None:
    database = Database(cluster)
    with service(database.url) as api:
        database.sql(FILL)
        before = database.sql("SELECT * FROM tasks ORDER BY id")
        with load(api) as clients:
            database.partition()
            made = len(clients.made)
            until(lambda: len(clients.made) > made + 20)
        after = database.sql("SELECT * FROM tasks ORDER BY id")
        assert after[: len(before)] == before  # and new ids are greater than those
        assert len({row[0] for row in after}) == len(after)  # none was given twice
        assert "Traceback" not in api.log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def partitioned(cluster: Cluster) -> Database:
    database = Database(cluster)
    with service(database.url):
        database.sql(FILL)
        database.partition()
    database.sql("ANALYZE tasks")
    return database


def check_all_operations(api: Service, database: Database) -> None:
    """Each does what it should, and reads the one partition that has this user's tasks."""
    for user_id, other_id in (("ann", "ben"), ("ben", "ann")):
        user, other = user_of(api, user_id), user_of(api, other_id)
        task = user.create("Water the plants")
        path = f"/{task['id']}"
        assert [other(method, path).status_code for method in ("GET", "DELETE")] == [404, 404]
        ((home,),) = database.sql(
            f"SELECT DISTINCT tableoid::regclass FROM tasks WHERE user_id = '{user_id}'"
        )
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
            plan = database.last_plan()
            assert set(re.findall(r'"Relation Name": "(tasks_\d+)"', plan)) == {home}, (method, where)
            assert ('"Sort"' in plan, '"Seq Scan"' in plan) == (sorts, sorts), (method, where)
        assert user("GET", path).status_code == 404
    assert api.health() == 200


def test_each_operation_reads_one_partition(partitioned: Database) -> None:
    with service(partitioned.url) as api:
        check_all_operations(api, partitioned)
    ((partitions,),) = partitioned.sql("SELECT count(DISTINCT tableoid) FROM tasks")
    assert partitions == 16


def test_later_migrations_reach_every_partition(partitioned: Database, clone: Path) -> None:
    variables = {"DATABASE_URL": partitioned.url, "BETTER_AUTH_SECRET": SECRET}
    check = [sys.executable, "-m", "alembic", "check"]
    environment = os.environ | variables
    checked = subprocess.run(check, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert "No new upgrade operations detected" in checked.stdout, checked.stderr

    ((head,),) = partitioned.sql("SELECT version_num FROM alembic_version")
    later = clone / "migrations" / "versions" / "later.py"
    later.write_text(LATER.format(head=head), encoding="utf-8")
    with serving(clone, **variables) as server:
        api = Service(server, clone / "log")
        with closing(api.client):
            check_all_operations(api, partitioned)
    assert partitioned.sql("SELECT DISTINCT added_later FROM tasks") == [(7,)]
    indexes = "SELECT count(*) FROM pg_indexes WHERE tablename ~ '^tasks_' AND indexdef ~ 'added_later'"
    assert partitioned.sql(indexes) == [(16,)]
