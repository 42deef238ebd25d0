"""Bad input: a clear 4xx, no echo, and nothing is changed."""

import json
from collections.abc import Iterator
from typing import Annotated

import pytest
from fastapi.testclient import TestClient
from pydantic import StringConstraints
from sqlmodel import SQLModel

from tests.conftest import UserClient, another_app, check_error
from tests.support.environment import ORIGIN

JSON_TYPE = {"Content-Type": "application/json"}
DEEP = b"[" * 20_000 + b"]" * 20_000
BODIES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{nope",
    "null": b"null",
    "array": b"[]",
    "title missing": b"{}",
    "title null": b'{"title": null}',
    "title empty": b'{"title": ""}',
    "title blank": b'{"title": " \\n\\t "}',
    "title too long": json.dumps({"title": "x" * 201}).encode(),
    "title a number": b'{"title": 1}',
    "title NaN": b'{"title": NaN}',
    "title deep": b'{"title": ' + DEEP + b"}",
    "title a lone surrogate": b'{"title": "\\ud800"}',
    "title with NUL": b'{"title": "a\\u0000b"}',
    "description too long": json.dumps({"title": "x", "description": "x" * 1001}).encode(),
    "description with NUL": b'{"title": "x", "description": "\\u0000"}',
    "description a lone surrogate": b'{"title": "x", "description": "\\udfff"}',
    "completed null": b'{"title": "x", "completed": null}',
    "completed a string": b'{"title": "x", "completed": "true"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bad_bodies_change_nothing(user: UserClient, body: bytes) -> None:
    task = user.create("As it was", description="as it was")
    # Python's parser fails on very deep nesting; some versions on less than others.
    codes = {422: "validation_error"} | ({400: "bad_request"} if DEEP in body else {})
    for method, path in (("POST", ""), ("PUT", f"/{task['id']}"), ("PATCH", f"/{task['id']}")):
        if body == BODIES["title missing"] and method != "POST":
            continue
        response = user(method, path, content=body, headers=JSON_TYPE)
        assert response.status_code in codes
        check_error(response, response.status_code, codes[response.status_code])
    assert user("GET").json() == [task]


def test_invalid_utf8_is_refused(user: UserClient) -> None:
    check_error(user("POST", content=b'{"title": "\xff"}', headers=JSON_TYPE), 400, "bad_request")
    assert user.titles() == []


def test_other_content_types_are_refused(user: UserClient) -> None:
    response = user("POST", content=b'{"title": "x"}', headers={"Content-Type": "text/plain"})
    message = check_error(response, 422, "validation_error")
    assert "Content-Type: application/json" in message
    assert user.titles() == []


BIG = 2**63
URLS = ["/0", f"/{BIG}", f"/{10**400}", "/abc", "/%00"]
URLS += [f"?skip={BIG}", "?skip=-1", "?limit=0", "?limit=1001", "?completed=", "?status=Completed"]
URLS += ["?completed=false&status=completed", "?sort=id", f"?search={'x' * 201}"]


@pytest.mark.parametrize("url", URLS, ids=lambda url: url[:24])
def test_bad_paths_and_queries_are_refused(user: UserClient, url: str) -> None:
    check_error(user("GET", url), 422, "validation_error")


@pytest.mark.parametrize("url", [f"/{BIG - 1}", "/999999999999"])
def test_ids_that_no_task_has_are_not_found(user: UserClient, url: str) -> None:
    check_error(user("GET", url), 404, "not_found")


@pytest.mark.parametrize("url", [f"?skip={BIG - 1}", "?limit=1000&skip=99999999999", "?search=%ED%A0%80"])
def test_extreme_valid_queries_are_an_empty_list(user: UserClient, url: str) -> None:
    assert user.titles(url) == []


MESSAGES = {
    "too long": (b'{"title": "' + b"x" * 201 + b'"}', "title: String should have at most 200 characters"),
    "blank": (b'{"title": "  "}', "title: String should have at least 1 character"),
    "NUL": (b'{"title": "a\\u0000"}', "title: Text cannot contain the NUL character"),
    "missing": (b"{}", "title: Field required"),
    "no object": (b"[]", "body: Send a JSON object, with Content-Type: application/json"),
    "no JSON": (b"{nope", "body: JSON decode error"),
}


@pytest.mark.parametrize(("body", "message"), MESSAGES.values(), ids=MESSAGES)
def test_message_names_the_field_and_the_mistake(user: UserClient, body: bytes, message: str) -> None:
    response = user("POST", content=body, headers=JSON_TYPE)
    assert check_error(response, 422, "validation_error") == message


QUERIES = {
    "?completed=maybe": "completed: Input should be a valid boolean, unable to interpret input",
    "?completed=true&status=pending": "status: Status contradicts completed",
    "?search=%00": "search: Text cannot contain the NUL character",
    "/x": "task_id: Input should be a valid integer, unable to parse string as an integer",
}


@pytest.mark.parametrize(("url", "message"), QUERIES.items())
def test_message_names_the_parameter_and_the_mistake(user: UserClient, url: str, message: str) -> None:
    assert check_error(user("GET", url), 422, "validation_error") == message


def test_other_patterns_have_their_own_message() -> None:
    """NUL is not the only thing that a pattern can refuse."""
    app = another_app()

    class Tag(SQLModel):
        color: Annotated[str, StringConstraints(pattern="^#[0-9a-f]{6}$")]

    @app.post("/tags")
    def create_tag(tag: Tag) -> Tag:
        return tag

    with TestClient(app) as client:
        response = client.post("/tags", json={"color": "red"})
        message = check_error(response, 422, "validation_error")
        assert message == "color: String should match pattern '^#[0-9a-f]{6}$'"
        response = client.post("/tags", json={"color": "red\0"})
        message = check_error(response, 422, "validation_error")
        assert message == "color: Text cannot contain the NUL character"


def test_validation_error_does_not_echo_the_input(user: UserClient) -> None:
    response = user("POST", json={"title": "s3cret" * 100, "description": ["s3cret"], "completed": "s3cret"})
    check_error(response, 422, "validation_error")
    assert len(response.json()["detail"]) == 3
    assert "s3cret" not in response.text


def chunks(size: int) -> Iterator[bytes]:
    yield b'{"title": "x", "description": "'
    for _ in range(size // 1024):
        yield b"x" * 1024


@pytest.mark.parametrize("kind", ["declared", "chunked"])
def test_bodies_over_64_kib_are_refused_with_cors_headers(user: UserClient, kind: str) -> None:
    content = b"x" * (64 * 1024 + 1) if kind == "declared" else chunks(80 * 1024)
    response = user("POST", content=content, headers=JSON_TYPE | {"Origin": ORIGIN})
    check_error(response, 413, "body_too_large")
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert user.titles() == []


def test_bodies_up_to_64_kib_are_read(user: UserClient) -> None:
    padding = " " * (64 * 1024 - len('{"title": "x"}'))
    response = user("POST", content=('{"title": "x"}' + padding).encode(), headers=JSON_TYPE)
    assert response.status_code == 201
