"""Lists of tasks: order, filters, search, pages and the links between them."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import create_engine, insert

import db
from models import Task, now
from tests.conftest import UserClient
from tests.support.counting import counted, sent_statements
from tests.support.environment import POSTGRES


def test_list_is_newest_first_and_of_one_user_only(user: UserClient, another_user: UserClient) -> None:
    another_user.create("not yours")
    for title in "abc":
        user.create(title)
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
def test_list_sorts(user: UserClient, sort: str, expected: str) -> None:
    ids = {title: user.create(title)["id"] for title in "bCa"}
    user("PATCH", f"/{ids['C']}/complete")
    assert "".join(user.titles(f"?sort={sort}")).lower() == expected


FILTERS = {
    "completed=true": ["done"],
    "completed=false": ["open"],
    "status=all": ["done", "open"],
    "status=pending": ["open"],
    "status=completed": ["done"],
    "status=completed&completed=true": ["done"],
    "status=all&completed=false": ["open"],
}


@pytest.mark.parametrize(("query", "titles"), FILTERS.items())
def test_lists_filter_by_completed_or_status(user: UserClient, query: str, titles: list[str]) -> None:
    user.create("open")
    user.create("done", completed=True)
    with counted() as cost:
        assert user.titles(f"?{query}") == titles
    assert cost() == 1


SEARCHES = {
    "another case": ("MILK", ["Buy milk"]),
    "in a description": ("apples", ["Fruit"]),
    "umlaut in another case": ("äpf", ["Fruit"]),
    "percent": ("100%", ["100% sure"]),
    "underscore": ("0_s", ["snake 0_s"]),
    "backslash": ("back\\slash", ["back\\slash"]),
}
SEARCHED = ["Buy milk", "100% sure", "1000 sure", "snake 0_s", "snake 0xs", "back\\slash"]


@pytest.mark.parametrize(("text", "expected"), SEARCHES.values(), ids=SEARCHES)
def test_search_is_a_plain_substring_in_any_case(user: UserClient, text: str, expected: list[str]) -> None:
    user.create("Fruit", description="Zwei Äpfel, two apples")
    for title in SEARCHED:
        user.create(title)
    response = user("GET", params={"search": text})
    assert [task["title"] for task in response.json()] == expected


def test_empty_search_finds_all(user: UserClient) -> None:
    for title in "abc":
        user.create(title)
    assert user.titles("?search=") == ["c", "b", "a"]


def test_search_may_have_200_characters(user: UserClient) -> None:
    user.create("t" * 200)
    assert user.titles(f"?search={'T' * 200}") == ["t" * 200]


def test_search_sort_filter_and_paging_work_together(user: UserClient) -> None:
    for number in range(6):
        user.create(f"match {number}", completed=number % 2 == 0)
    user.create("other", completed=True)
    query = "?search=MATCH&completed=true&sort=title&limit=2"
    assert user.titles(query) == ["match 0", "match 2"]
    assert user.titles(query + "&skip=2") == ["match 4"]


def links(response: Any) -> dict[str, str]:
    return {rel: url for url, rel in re.findall(r'<([^>]*)>; rel="(\w+)"', response.headers.get("link", ""))}


def test_links_lead_through_all_pages_and_back(user: UserClient) -> None:
    for number in range(5):
        user.create(f"é {number}", completed=True)
    response = user("GET", "?limit=2&completed=true&search=%C3%A9&sort=title")
    assert set(links(response)) == {"next"}
    seen = [response.json()]
    while target := links(response).get("next"):
        response = user.client.get(target, headers=user.headers)
        seen.append(response.json())
    assert [[task["title"] for task in page] for page in seen] == [["é 0", "é 1"], ["é 2", "é 3"], ["é 4"]]
    assert set(links(response)) == {"prev"}
    while target := links(response).get("prev"):
        response = user.client.get(target, headers=user.headers)
    assert response.json() == seen[0]


def test_list_that_fits_has_no_links(user: UserClient) -> None:
    user.create()
    assert "link" not in user("GET", "?limit=1").headers


def test_previous_page_begins_at_zero_at_the_earliest(user: UserClient) -> None:
    for title in "ab":
        user.create(title)
    previous = links(user("GET", "?skip=1&limit=5"))["prev"]
    assert [task["title"] for task in user.client.get(previous, headers=user.headers).json()] == ["b", "a"]


def insert_tasks(user: UserClient, *tasks: Mapping[str, object]) -> None:
    """So many that the API would take too long: in one transaction, without the time limit of a request."""
    engine = create_engine(db.engine.url)
    common = {"user_id": user.user_id, "title": "x", "created_at": now(), "updated_at": now()}
    with engine.begin() as connection:
        connection.execute(insert(Task), [{**common, "completed": False, **task} for task in tasks])
    engine.dispose()


@pytest.mark.parametrize("sort", ["created_at", "updated_at", "title"])
def test_ties_are_sorted_by_id(user: UserClient, sort: str) -> None:
    """Whatever else is different about them: here the later tasks have the earlier times."""
    moments = [now() - timedelta(hours=hour) for hour in range(4)]
    others = {"created_at", "updated_at"} - {sort}
    insert_tasks(user, *[dict.fromkeys(others, moment) for moment in moments])
    ids = [task["id"] for task in user("GET", f"?sort={sort}").json()]
    assert ids == sorted(ids)
    assert [task["id"] for task in user("GET", f"?sort=-{sort}").json()] == ids[::-1]


def test_list_is_a_hundred_tasks_by_default_and_a_thousand_at_most(user: UserClient) -> None:
    insert_tasks(user, *[{}] * 1001)
    assert len(user("GET").json()) == 100
    page = user("GET", "?limit=1000")
    assert len(page.json()) == 1000
    assert len(user.client.get(links(page)["next"], headers=user.headers).json()) == 1


def test_links_and_location_of_ids_beyond_ascii_can_be_followed(user: UserClient) -> None:
    other = UserClient(user.client, f"用户 é#{user.user_id}")
    other.create()
    response = other("POST", json={"title": "x"})
    assert user.client.get(response.headers["location"], headers=other.headers).json() == response.json()
    page = other("GET", "?limit=1")
    assert user.client.get(links(page)["next"], headers=other.headers).status_code == 200


def test_links_and_location_keep_the_root_path_of_a_proxy(user: UserClient) -> None:
    """With uvicorn --root-path /todo the path of a request begins with it."""
    behind = TestClient(user.client.app, root_path="/todo")
    path = f"/todo{user.path}"
    made = behind.post(path, json={"title": "x"}, headers=user.headers)
    assert made.headers["location"] == f"{path}/{made.json()['id']}"
    assert behind.get(made.headers["location"], headers=user.headers).json() == made.json()
    user.create()
    page = behind.get(f"{path}/?limit=1", headers=user.headers)
    assert links(page) == {"next": f"{path}?limit=1&skip=1"}
    assert behind.get(links(page)["next"], headers=user.headers).json() == [made.json()]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("", "ix_tasks_user_created"),
        ("?sort=created_at", "ix_tasks_user_created"),
        ("?completed=false", "ix_tasks_user_completed_created"),
        ("?status=pending", "ix_tasks_user_completed_created"),
    ],
    ids=["newest first", "oldest first", "completed", "status"],
)
def test_pages_use_an_index(user: UserClient, query: str, index: str) -> None:
    """However many tasks there are: nothing is sorted, and no more is read than shown."""
    with sent_statements() as sent:
        user("GET", query)
    ((sql, parameters),) = sent
    sql = sql.rpartition("; ")[2]  # without its time limit
    insert_tasks(user, *[{}, *[{"completed": True}] * 9] * 300)
    with db.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        explain = "EXPLAIN" if POSTGRES else "EXPLAIN QUERY PLAN"
        plan = str(connection.exec_driver_sql(f"{explain} {sql}", parameters).all())
    assert index in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan
