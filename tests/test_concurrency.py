"""Many requests at the same moment: nothing is lost, nothing happens twice. (Real servers: tests/faults.)"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import Caller


def test_simultaneous_creates_lose_and_double_nothing(user: Caller) -> None:
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(user.make, [str(number) for number in range(100)]))
    assert len({task["id"] for task in made}) == 100
    assert sorted(user.titles(), key=int) == [str(number) for number in range(100)]


@pytest.mark.parametrize("times", [40, 41])
def test_simultaneous_toggles_all_count(user: Caller, times: int) -> None:
    path = f"/{user.make()['id']}"
    with ThreadPoolExecutor(20) as pool:
        codes = set(pool.map(lambda _: user("PATCH", f"{path}/complete").status_code, range(times)))
    assert codes == {200}
    assert user("GET", path).json()["completed"] is (times % 2 == 1)


def test_simultaneous_updates_of_different_fields_keep_each(user: Caller) -> None:
    changes: list[dict[str, Any]] = [{"title": "new"}, {"description": "new"}, {"completed": True}]
    tasks = [user.make("old", description="old") for _ in range(10)]
    work = [(task["id"], change) for task in tasks for change in changes]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda job: user("PATCH", f"/{job[0]}", json=job[1]), work))
    for task in user("GET").json():
        assert (task["title"], task["description"], task["completed"]) == ("new", "new", True)


def test_simultaneous_deletes_delete_once(user: Caller) -> None:
    path = f"/{user.make()['id']}"
    with ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(lambda _: user("DELETE", path).status_code, range(10)))
    assert sorted(codes) == [204] + [404] * 9
