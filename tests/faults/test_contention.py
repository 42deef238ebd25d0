"""Many clients at the same moment, whatever the database and however many workers."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.conftest import Cluster, Service, at_once, service

pytestmark = pytest.mark.slow

KINDS = [("sqlite", 1), ("sqlite", 4), ("postgresql", 1), ("postgresql", 4)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def crowded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    kind, workers = request.param
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('data')}/todo.db"
    else:
        cluster: Cluster = request.getfixturevalue("cluster")
        url = cluster.database()
    with service(url, "--workers", str(workers)) as it:
        yield it


def codes(responses: list[Any]) -> Counter[int]:
    return Counter(response.status_code for response in responses)


def test_each_toggle_counts(crowded: Service) -> None:
    user = crowded.user()
    task = user.create()
    path = f"/{task['id']}/complete"
    for times in (200, 1):
        assert codes(at_once(times, lambda _: user("PATCH", path))) == {200: times}
        assert user("GET", f"/{task['id']}").json()["completed"] is (times % 2 == 1)


def test_new_tasks_are_neither_lost_nor_doubled(crowded: Service) -> None:
    user = crowded.user()
    made = at_once(100, lambda client: [user.create(f"{client} {number}") for number in range(6)])
    tasks = {task["id"]: task["title"] for some in made for task in some}
    listed = user("GET", "?limit=1000").json()
    assert len(listed) == len(tasks) == 600
    assert {task["id"]: task["title"] for task in listed} == tasks


def test_updates_of_different_fields_are_all_kept(crowded: Service) -> None:
    user = crowded.user()
    tasks = [user.create("old", description="old") for _ in range(20)]
    changes: list[dict[str, object]] = [{"title": "new"}, {"description": "new"}, {"completed": True}]

    def change(number: int) -> Any:
        return user("PATCH", f"/{tasks[number // 3]['id']}", json=changes[number % 3])

    assert codes(at_once(60, change)) == {200: 60}
    listed = user("GET").json()
    assert len(listed) == 20
    for task in listed:
        assert (task["title"], task["description"], task["completed"]) == ("new", "new", True)


def test_one_of_many_deletes_succeeds(crowded: Service) -> None:
    user = crowded.user()
    task = user.create()
    responses = at_once(30, lambda _: user("DELETE", f"/{task['id']}"))
    assert codes(responses) == {204: 1, 404: 29}
    assert user.titles() == []
