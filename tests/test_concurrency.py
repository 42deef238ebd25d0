"""Many requests at the same moment: nothing is lost, nothing happens twice, and none blocks all others.

With real servers: tests/faults.
"""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

import db
from tests.conftest import UserClient
from tests.support.accounts import PASSWORD, Account, new_email

pytestmark = pytest.mark.usefixtures("patient")


def test_simultaneous_creates_lose_and_duplicate_nothing(user: UserClient) -> None:
    with ThreadPoolExecutor(20) as pool:
        created = list(pool.map(user.create, [str(number) for number in range(100)]))
    assert len({task["id"] for task in created}) == 100
    assert sorted(user.titles(), key=int) == [str(number) for number in range(100)]


@pytest.mark.parametrize("times", [40, 41])
def test_simultaneous_toggles_all_count(user: UserClient, times: int) -> None:
    path = f"/{user.create()['id']}"
    with ThreadPoolExecutor(20) as pool:
        codes = set(pool.map(lambda _: user("PATCH", f"{path}/complete").status_code, range(times)))
    assert codes == {200}
    assert user("GET", path).json()["completed"] is (times % 2 == 1)


def test_simultaneous_updates_of_different_fields_keep_each(user: UserClient) -> None:
    changes: list[dict[str, Any]] = [{"title": "new"}, {"description": "new"}, {"completed": True}]
    tasks = [user.create("old", description="old") for _ in range(10)]
    work = [(task["id"], change) for task in tasks for change in changes]
    with ThreadPoolExecutor(6) as pool:
        codes = set(pool.map(lambda job: user("PATCH", f"/{job[0]}", json=job[1]).status_code, work))
    assert codes == {200}
    listed = user("GET").json()
    assert len(listed) == 10
    for task in listed:
        assert (task["title"], task["description"], task["completed"]) == ("new", "new", True)


def test_simultaneous_deletes_delete_once(user: UserClient) -> None:
    path = f"/{user.create()['id']}"
    with ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(lambda _: user("DELETE", path).status_code, range(10)))
    assert sorted(codes) == [204] + [404] * 9


@contextmanager
def blocked_database(statement: int) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Blocks the statement with this number: sets the first event, and waits for the second one."""
    blocked, go_on = threading.Event(), threading.Event()
    numbers = itertools.count(1)

    def wait(*_: object) -> None:
        if next(numbers) == statement:
            blocked.set()
            go_on.wait(20)

    event.listen(db.engine, "before_cursor_execute", wait)
    try:
        yield blocked, go_on
    finally:
        event.remove(db.engine, "before_cursor_execute", wait)


TASK_REQUESTS = {
    "list": ("GET", ""),
    "create": ("POST", ""),
    "get": ("GET", "/{id}"),
    "put": ("PUT", "/{id}"),
    "patch": ("PATCH", "/{id}"),
    "toggle": ("PATCH", "/{id}/complete"),
    "delete": ("DELETE", "/{id}"),
}
ACCOUNT_REQUESTS = {
    "me": ("GET", "/api/auth/me", 1),
    "log out, account": ("POST", "/api/auth/logout", 1),
    "log out, change": ("POST", "/api/auth/logout", 2),
    "log in": ("POST", "/api/auth/login", 1),
    "register, select": ("POST", "/api/auth/register", 1),
    "register, insert": ("POST", "/api/auth/register", 2),
}


def check_that_it_blocks_no_other_request(
    client: TestClient, method: str, path: str, statement: int = 1, **options: Any
) -> None:
    """While this request waits for the database, a request that needs no database gets its response."""
    with blocked_database(statement) as (blocked, go_on), ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(client.request, method, path, **options)
        try:
            assert blocked.wait(10)
            assert pool.submit(client.get, "/").result(timeout=10).status_code == 200
            assert not waiting.done()
        finally:
            go_on.set()
    assert waiting.result().status_code in (200, 201, 204)


@pytest.mark.parametrize(("method", "path"), TASK_REQUESTS.values(), ids=TASK_REQUESTS)
def test_task_request_waiting_for_the_database_blocks_no_other_request(
    user: UserClient, method: str, path: str
) -> None:
    path = user.path + path.format(id=user.create()["id"])
    check_that_it_blocks_no_other_request(
        user.client, method, path, headers=user.headers, json={"title": "x"}
    )


@pytest.mark.parametrize(("method", "path", "statement"), ACCOUNT_REQUESTS.values(), ids=ACCOUNT_REQUESTS)
def test_account_request_waiting_for_the_database_blocks_no_other_request(
    ann: Account, method: str, path: str, statement: int
) -> None:
    headers = {"Authorization": f"Bearer {ann.login()}"}
    email = new_email() if path.endswith("register") else ann.email
    body = {"email": email, "password": PASSWORD}
    check_that_it_blocks_no_other_request(ann.client, method, path, statement, headers=headers, json=body)
