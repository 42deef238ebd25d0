"""The task endpoints: create, read, change and delete tasks. Lists are in test_lists.py."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anyio import to_thread
from sqlmodel import Session

import db
from models import TaskUpdate
from routes.tasks import get_task, toggle_task, update_task
from tests.conftest import FIELDS, UserClient, check_change, check_error
from tests.support.counting import counted


def test_create_returns_the_task_and_its_location(user: UserClient) -> None:
    response = user("POST", json={"title": "  Buy milk \n", "description": " two litres "})
    task = response.json()
    assert response.status_code == 201
    assert set(task) >= FIELDS
    assert task["user_id"] == user.user_id
    assert (task["title"], task["description"]) == ("Buy milk", " two litres ")
    assert task["completed"] is False
    assert task["created_at"] == task["updated_at"]
    assert task["created_at"].endswith("Z")
    age = datetime.now(UTC) - datetime.fromisoformat(task["created_at"])
    assert timedelta() <= age < timedelta(minutes=1)
    assert response.headers["location"] == f"{user.path}/{task['id']}"
    assert user.client.get(response.headers["location"], headers=user.headers).json() == task


TITLES = {"1 character": "x", "200 characters in spaces": "  " + "t" * 200 + "  ", "emoji": "日本語 🎉" * 20}


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
def test_valid_titles(user: UserClient, title: str) -> None:
    task = user.create(title)
    assert task["title"] == title.strip()
    assert user("GET", f"/{task['id']}").json() == task


DESCRIPTIONS = {"none": None, "empty": "", "two lines": "two\r\nlines\n", "1000 emoji": "🎉" * 1000}


@pytest.mark.parametrize("description", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_valid_descriptions(user: UserClient, description: str | None) -> None:
    task = user.create(description=description)
    assert task["description"] == description
    assert user("GET", f"/{task['id']}").json() == task


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_update_changes_what_is_sent_and_keeps_the_rest(user: UserClient, method: str) -> None:
    task = user.create("Old", description="keep me")
    path = f"/{task['id']}"
    renamed = user(method, path, json={"title": " New "}).json()
    check_change(task, renamed, title="New")
    done = user(method, path, json={"completed": True}).json()
    check_change(renamed, done, completed=True)
    cleared = user(method, path, json={"description": None}).json()
    check_change(done, cleared, description=None)
    assert user("GET", path).json() == cleared


UNCHANGED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "all of it": {"title": "Same", "description": "d", "completed": False},
}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("body", UNCHANGED.values(), ids=UNCHANGED)
def test_update_without_changes_sets_only_updated_at(
    user: UserClient, method: str, body: dict[str, Any]
) -> None:
    task = user.create("Same", description="d")
    check_change(task, user(method, f"/{task['id']}", json=body).json())


UNKNOWN: dict[str, dict[str, Any]] = {
    "typo": {"titel": "x"},
    "nothing that can be changed": {"id": 1, "user_id": "x", "created_at": "2000-01-01T00:00:00Z"},
}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("body", UNKNOWN.values(), ids=UNKNOWN)
def test_update_with_unknown_fields_only_is_a_422(
    user: UserClient, method: str, body: dict[str, Any]
) -> None:
    task = user.create()
    message = check_error(user(method, f"/{task['id']}", json=body), 422, "validation_error")
    assert all(name in message for name in ("title", "description", "completed"))
    assert user("GET", f"/{task['id']}").json() == task


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_client_may_send_back_a_whole_task(user: UserClient, another_user: UserClient, method: str) -> None:
    task = user.create()
    forged = task | {
        "id": 1,
        "user_id": another_user.user_id,
        "created_at": "2000-01-01T00:00:00Z",
        "extra": [1],
    }
    forged |= {"title": "New", "updated_at": "2000-01-01T00:00:00Z"}
    changed = user(method, f"/{task['id']}", json=forged).json()
    check_change(task, changed, title="New")
    copy = user("POST", json=forged | {"completed": True}).json()
    assert copy["id"] not in {1, task["id"]}
    assert (copy["user_id"], copy["completed"]) == (user.user_id, True)
    assert copy["created_at"] > task["created_at"]
    assert another_user.titles() == []


def test_toggle_completes_a_task_and_opens_it_again(user: UserClient) -> None:
    task = user.create()
    path = f"/{task['id']}/complete"
    there, back = user("PATCH", path).json(), user("PATCH", path).json()
    check_change(task, there, completed=True)
    check_change(there, back, completed=False)


def test_changes_after_a_read_in_the_same_session_return_the_new_values(user: UserClient) -> None:
    task_id = user.create("Old")["id"]
    with Session(db.engine, expire_on_commit=False) as session:
        before = get_task(user.user_id, session, task_id)  # the session knows it as long as we do
        assert before.title == "Old"
        assert update_task(user.user_id, session, task_id, TaskUpdate(title="New")).title == "New"
        assert toggle_task(user.user_id, session, task_id).completed is True


def test_delete_deletes_once_and_ids_are_not_reused(user: UserClient) -> None:
    task = user.create()
    response = user("DELETE", f"/{task['id']}")
    assert (response.status_code, response.content) == (204, b"")
    assert check_error(user("DELETE", f"/{task['id']}"), 404, "not_found") == "Task not found"
    assert user.create()["id"] > task["id"]


ON_ONE_TASK = {
    "get": ("GET", "", None),
    "put": ("PUT", "", {"title": "Mine"}),
    "patch": ("PATCH", "", {"title": "Mine"}),
    "toggle": ("PATCH", "/complete", None),
    "delete": ("DELETE", "", None),
}


@pytest.mark.parametrize(("method", "suffix", "body"), ON_ONE_TASK.values(), ids=ON_ONE_TASK)
def test_another_users_task_is_a_404(
    user: UserClient, another_user: UserClient, method: str, suffix: str, body: object
) -> None:
    task = user.create()
    missing = another_user(method, f"/999999999999{suffix}", json=body)
    foreign = another_user(method, f"/{task['id']}{suffix}", json=body)
    check_error(foreign, 404, "not_found")
    assert foreign.content == missing.content
    assert user("GET", f"/{task['id']}").json() == task


def test_trailing_slash_is_ignored(user: UserClient) -> None:
    response = user("POST", "/", json={"title": "x"}, follow_redirects=False)
    path = f"/{response.json()['id']}"
    assert response.status_code == 201
    assert response.headers["location"] == user.path + path
    assert user("PATCH", f"{path}/complete/", follow_redirects=False).status_code == 200


OPERATIONS = {
    "list": ("GET", "?search=a&completed=false&sort=title", None),
    "create": ("POST", "", {"title": "x"}),
    "get": ("GET", "/{id}", None),
    "put": ("PUT", "/{id}", {"title": "y", "description": None}),
    "patch": ("PATCH", "/{id}", {"completed": True}),
    "toggle": ("PATCH", "/{id}/complete", None),
    "delete": ("DELETE", "/{id}", None),
    "missing": ("PUT", "/999999999999", {"title": "y"}),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_request_costs_one_statement_and_one_round_trip(user: UserClient, operation: str) -> None:
    method, path, body = OPERATIONS[operation]
    path = path.format(id=user.create()["id"])
    with counted() as cost:
        user(method, path, json=body)
    assert cost() == 1


def test_refused_request_costs_no_statement(user: UserClient) -> None:
    with counted() as cost:
        assert user("POST", json={"title": ""}).status_code == 422
        assert user("GET", "?limit=0").status_code == 422
    assert cost() == 0


def test_a_request_needs_one_trip_to_a_thread(user: UserClient, monkeypatch: pytest.MonkeyPatch) -> None:
    trips, run_sync = [], to_thread.run_sync

    async def count(function: Any, *arguments: Any, **options: Any) -> Any:
        trips.append(function)
        return await run_sync(function, *arguments, **options)

    monkeypatch.setattr(to_thread, "run_sync", count)
    user.create()
    assert len(trips) == 1
    user.titles()
    assert len(trips) == 2
