"""The task endpoints, as the contract has them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import Caller, check_error, counted

FIELDS = {"id", "user_id", "title", "description", "completed", "created_at", "updated_at"}


def test_create_answers_the_task_and_its_place(user: Caller) -> None:
    answer = user("POST", json={"title": "  Buy milk \n", "description": " two litres "})
    task = answer.json()
    assert answer.status_code == 201
    assert set(task) == FIELDS
    assert task["user_id"] == user.user_id
    assert (task["title"], task["description"]) == ("Buy milk", " two litres ")
    assert task["completed"] is False
    assert task["created_at"] == task["updated_at"]
    assert task["created_at"].endswith("Z")
    age = datetime.now(UTC) - datetime.fromisoformat(task["created_at"])
    assert timedelta() <= age < timedelta(minutes=1)
    assert answer.headers["location"] == f"{user.path}/{task['id']}"
    assert user.client.get(answer.headers["location"], headers=user.headers).json() == task


@pytest.mark.parametrize(
    "title", ["x", "t" * 200, "  " + "t" * 200 + "  ", "日本語 🎉", "'; DROP TABLE tasks; --"]
)
def test_titles_that_are_fine(user: Caller, title: str) -> None:
    assert user.make(title)["title"] == title.strip()


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_update_changes_what_is_sent_and_keeps_the_rest(user: Caller, method: str) -> None:
    task = user.make("Old", description="keep me")
    path = f"/{task['id']}"
    renamed = user(method, path, json={"title": " New "}).json()
    assert renamed == task | {"title": "New", "updated_at": renamed["updated_at"]}
    assert renamed["updated_at"] > task["updated_at"]
    done = user(method, path, json={"completed": True}).json()
    assert done == renamed | {"completed": True, "updated_at": done["updated_at"]}
    cleared = user(method, path, json={"description": None}).json()
    assert cleared == done | {"description": None, "updated_at": cleared["updated_at"]}
    assert user("GET", path).json() == cleared


@pytest.mark.parametrize(
    "body", [{}, {"title": "Same"}, {"title": "Same", "description": "d", "completed": False}]
)
def test_an_update_that_changes_nothing_leaves_the_time_too(user: Caller, body: dict[str, Any]) -> None:
    task = user.make("Same", description="d")
    assert user("PUT", f"/{task['id']}", json=body).json() == task


def test_a_client_may_send_back_a_whole_task(user: Caller, stranger: Caller) -> None:
    task = user.make()
    forged = task | {"id": 1, "user_id": stranger.user_id, "created_at": "2000-01-01T00:00:00Z", "extra": [1]}
    assert user("PUT", f"/{task['id']}", json=forged).json() == task
    copy = user("POST", json=forged | {"completed": True}).json()
    assert copy["id"] not in {1, task["id"]}
    assert copy["user_id"] == user.user_id
    assert copy["completed"] is True
    assert copy["created_at"] > task["created_at"]
    assert stranger.titles() == []


def test_toggle_goes_there_and_back(user: Caller) -> None:
    task = user.make()
    path = f"/{task['id']}/complete"
    there, back = user("PATCH", path).json(), user("PATCH", path).json()
    assert there == task | {"completed": True, "updated_at": there["updated_at"]}
    assert back == task | {"completed": False, "updated_at": back["updated_at"]}
    assert task["updated_at"] < there["updated_at"] < back["updated_at"]


def test_delete_deletes_once_and_the_id_does_not_come_back(user: Caller) -> None:
    task = user.make()
    answer = user("DELETE", f"/{task['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert check_error(user("DELETE", f"/{task['id']}"), 404, "not_found") == "Task not found"
    assert user.make()["id"] > task["id"]


ON_ONE_TASK = [("GET", "", None), ("PUT", "", {"title": "Mine"}), ("PATCH", "", {"title": "Mine"})]
ON_ONE_TASK += [("DELETE", "", None), ("PATCH", "/complete", None)]


@pytest.mark.parametrize(("method", "suffix", "body"), ON_ONE_TASK)
def test_the_task_of_another_looks_like_no_task(
    user: Caller, stranger: Caller, method: str, suffix: str, body: object
) -> None:
    task = user.make()
    missing = stranger(method, f"/999999999999{suffix}", json=body)
    foreign = stranger(method, f"/{task['id']}{suffix}", json=body)
    check_error(foreign, 404, "not_found")
    assert foreign.content == missing.content
    assert user("GET", f"/{task['id']}").json() == task


def test_list_is_newest_first_and_only_ones_own(user: Caller, stranger: Caller) -> None:
    stranger.make("not yours")
    for title in "abc":
        user.make(title)
    assert user.titles() == ["c", "b", "a"]


SORTS = {
    "created_at": "bca",
    "-created_at": "acb",
    "updated_at": "bac",
    "-updated_at": "cab",
    "title": "abc",
    "-title": "cba",
}


@pytest.mark.parametrize(("sort", "expected"), SORTS.items())
def test_list_sorts(user: Caller, sort: str, expected: str) -> None:
    ids = {title: user.make(title)["id"] for title in "bCa"}
    user("PATCH", f"/{ids['C']}/complete")
    assert "".join(user.titles(f"?sort={sort}")).lower() == expected


def test_equal_titles_come_in_the_order_of_their_ids(user: Caller) -> None:
    ids = [user.make("same")["id"] for _ in range(4)]
    assert [task["id"] for task in user("GET", "?sort=title").json()] == ids
    assert [task["id"] for task in user("GET", "?sort=-title").json()] == ids[::-1]


def test_list_filters_by_completed(user: Caller) -> None:
    user.make("open")
    user.make("done", completed=True)
    assert user.titles("?completed=true") == ["done"]
    assert user.titles("?completed=false") == ["open"]


FINDS = [
    ("MILK", ["Buy milk"]),
    ("ÄPF", ["Fruit"]),
    ("100%", ["100% sure"]),
    ("0_s", ["snake 0_s"]),
    ("back\\slash", ["back\\slash"]),
    ("nothing like it", []),
    ("", ["back\\slash", "snake 0_s", "100% sure", "Fruit", "Buy milk"]),
]


@pytest.mark.parametrize(("text", "expected"), FINDS)
def test_search_is_a_plain_substring_in_any_case(user: Caller, text: str, expected: list[str]) -> None:
    user.make("Buy milk")
    user.make("Fruit", description="Zwei Äpfel")
    for title in ("100% sure", "snake 0_s", "back\\slash"):
        user.make(title)
    answer = user("GET", params={"search": text})
    assert [task["title"] for task in answer.json()] == expected


def test_search_sort_filter_and_paging_work_together(user: Caller) -> None:
    for number in range(6):
        user.make(f"match {number}", completed=number % 2 == 0)
    user.make("other", completed=True)
    query = "?search=MATCH&completed=true&sort=title&limit=2"
    assert user.titles(query) == ["match 0", "match 2"]
    assert user.titles(query + "&skip=2") == ["match 4"]


def links(answer: Any) -> dict[str, str]:
    return {rel: url for url, rel in re.findall(r'<([^>]*)>; rel="(\w+)"', answer.headers.get("link", ""))}


def test_links_lead_through_all_pages_and_back(user: Caller) -> None:
    for number in range(5):
        user.make(f"é {number}", completed=True)
    answer = user("GET", "?limit=2&completed=true&search=%C3%A9&sort=title")
    assert set(links(answer)) == {"next"}
    seen = [answer.json()]
    while target := links(answer).get("next"):
        answer = user.client.get(target, headers=user.headers)
        seen.append(answer.json())
    assert [[task["title"] for task in page] for page in seen] == [["é 0", "é 1"], ["é 2", "é 3"], ["é 4"]]
    assert set(links(answer)) == {"prev"}
    while target := links(answer).get("prev"):
        answer = user.client.get(target, headers=user.headers)
    assert answer.json() == seen[0]


def test_a_list_that_fits_has_no_links(user: Caller) -> None:
    user.make()
    assert "link" not in user("GET", "?limit=1").headers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ids_beyond_ascii_survive_in_headers(user: Caller, method: str) -> None:
    other = Caller(user.client, f"用户 é#{user.user_id}")
    other.make()
    answer = other("POST", json={"title": "x"})
    assert other.client.get(answer.headers["location"], headers=other.headers).json() == answer.json()
    page = other("GET", "?limit=1")
    assert other.client.get(links(page)["next"], headers=other.headers).status_code == 200


PATHS = [("GET", "/", 200), ("POST", "/", 201), ("GET", "/{id}/", 200), ("PUT", "/{id}/", 200)]
PATHS += [("PATCH", "/{id}/", 200), ("PATCH", "/{id}/complete/", 200), ("DELETE", "/{id}/", 204)]


@pytest.mark.parametrize(("method", "path", "status"), PATHS)
def test_a_trailing_slash_works_as_well(user: Caller, method: str, path: str, status: int) -> None:
    path = path.format(id=user.make()["id"])
    answer = user(method, path, json={"title": "x"}, follow_redirects=False)
    assert answer.status_code == status


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
def test_each_request_costs_one_round_trip(user: Caller, operation: str) -> None:
    method, path, body = OPERATIONS[operation]
    path = path.format(id=user.make()["id"])
    with counted() as cost:
        user(method, path, json=body)
    assert cost() == 1


@pytest.mark.parametrize(
    ("method", "query", "body"), [("POST", "", {"title": ""}), ("GET", "?limit=0", None)]
)
def test_a_refused_request_costs_none(user: Caller, method: str, query: str, body: object) -> None:
    with counted() as cost:
        assert user(method, query, json=body).status_code == 422
    assert cost() == 0
