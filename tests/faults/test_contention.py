"""Many clients at the same moment, whatever the database and however many workers."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.conftest import Service, at_once, service

pytestmark = pytest.mark.slow

KINDS = [("sqlite", 1), ("sqlite", 4), ("postgresql", 1), ("postgresql", 4)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def api(request: pytest.FixtureRequest) -> Iterator[Service]:
    kind, workers = request.param
    url = "sqlite:///todo.db" if kind == "sqlite" else request.getfixturevalue("cluster").database()
    with service(url, "--workers", str(workers)) as api:
        yield api


def test_each_toggle_counts(api: Service) -> None:
    user = api.user()
    task = user.create()
    path = f"/{task['id']}/complete"
    for times in (200, 1):
        assert set(at_once(times, lambda _: user("PATCH", path).status_code)) == {200}
        assert user("GET", f"/{task['id']}").json()["completed"] is (times % 2 == 1)


def test_each_new_task_is_created_once(api: Service) -> None:
    user = api.user()
    created = at_once(100, lambda client: [user.create(f"{client} {number}") for number in range(6)])
    tasks = {task["id"]: task["title"] for some in created for task in some}
    listed = user("GET", "?limit=1000").json()
    assert len(listed) == len(tasks) == 600
    assert {task["id"]: task["title"] for task in listed} == tasks


def test_one_of_many_deletes_succeeds(api: Service) -> None:
    user = api.user()
    path = f"/{user.create()['id']}"
    codes = at_once(30, lambda _: user("DELETE", path).status_code)
    assert Counter(codes) == {204: 1, 404: 29}
    assert user.titles() == []
