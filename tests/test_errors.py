"""Bad input, failures and what all answers have in common."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import exc

import main
from routes import tasks
from tests.conftest import ORIGIN, Caller, check_error

DEEP = b"[" * 20_000 + b"]" * 20_000
BODIES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{nope",
    "half": b'{"title": "a',
    "null": b"null",
    "array": b"[]",
    "string": b'"title"',
    "number": b"1",
    "title missing": b"{}",
    "title null": b'{"title": null}',
    "title empty": b'{"title": ""}',
    "title blank": b'{"title": " \\n\\t "}',
    "title too long": json.dumps({"title": "x" * 201}).encode(),
    "title a number": b'{"title": 1}',
    "title an object": b'{"title": {"a": 1}}',
    "title NaN": b'{"title": NaN}',
    "title deep": b'{"title": ' + DEEP + b"}",
    "title a lone surrogate": b'{"title": "\\ud800"}',
    "title with NUL": b'{"title": "a\\u0000b"}',
    "description too long": json.dumps({"title": "x", "description": "x" * 1001}).encode(),
    "description with NUL": b'{"title": "x", "description": "\\u0000"}',
    "description a lone surrogate": b'{"title": "x", "description": "\\udfff"}',
    "description infinite": b'{"title": "x", "description": Infinity}',
    "completed null": b'{"title": "x", "completed": null}',
    "completed a string": b'{"title": "x", "completed": "true"}',
    "completed a number": b'{"title": "x", "completed": 1}',
    "completed NaN": b'{"title": "x", "completed": NaN}',
}
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bad_bodies_change_nothing(user: Caller, body: bytes) -> None:
    task = user.make("As it was", description="as it was")
    # Python's parser gives up on very deep nesting; some versions on less than others.
    expected = (
        ({400, 422}, {"bad_request", "validation_error"}) if DEEP in body else ({422}, {"validation_error"})
    )
    for method, path in (("POST", ""), ("PUT", f"/{task['id']}"), ("PATCH", f"/{task['id']}")):
        if body == BODIES["title missing"] and method != "POST":
            continue
        answer = user(method, path, content=body, headers=JSON_TYPE)
        assert answer.status_code in expected[0]
        code = answer.json()["error"]["code"]
        assert code in expected[1]
        check_error(answer, answer.status_code, code)
    assert user("GET").json() == [task]


def test_invalid_utf8_is_refused(user: Caller) -> None:
    check_error(user("POST", content=b'{"title": "\xff"}', headers=JSON_TYPE), 400, "bad_request")
    assert user.titles() == []


def test_another_content_type_is_refused(user: Caller) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = user("POST", content=b'{"title": "x"}', headers={"Content-Type": kind})
        check_error(answer, 422, "validation_error")
    assert user.titles() == []


BIG = 2**63
URLS = ["/0", "/-1", f"/{BIG}", f"/{10**400}", "/abc", "/1.5", "/%00", "/1e3", "/0x1"]
URLS += [f"?skip={BIG}", "?skip=-1", "?limit=0", "?limit=1001", "?limit=x", "?completed=maybe", "?completed="]
URLS += ["?sort=id", "?sort=", "?sort=title;--", "?search=%00", f"?search={'x' * 201}"]


@pytest.mark.parametrize("url", URLS)
def test_bad_paths_and_queries_are_refused(user: Caller, url: str) -> None:
    check_error(user("GET", url), 422, "validation_error")


@pytest.mark.parametrize("url", [f"/{BIG - 1}", "/999999999999"])
def test_ids_that_no_task_has_are_not_found(user: Caller, url: str) -> None:
    check_error(user("GET", url), 404, "not_found")


@pytest.mark.parametrize("url", [f"?skip={BIG - 1}", "?limit=1000&skip=99999999999", "?search=%ED%A0%80"])
def test_extremes_within_bounds_are_an_empty_list(user: Caller, url: str) -> None:
    assert user.titles(url) == []


def test_messages_name_the_field_and_do_not_echo_the_input(user: Caller) -> None:
    answer = user("POST", json={"title": "s3cret" * 100})
    assert check_error(answer, 422, "validation_error") == "title: String should have at most 200 characters"
    assert "s3cret" not in answer.text
    answer = user("POST", json={"title": "a\x00"})
    assert check_error(answer, 422, "validation_error") == "title: Text cannot contain the NUL character"
    answer = user("POST", content=b"{nope", headers=JSON_TYPE)
    assert check_error(answer, 422, "validation_error") == "body: JSON decode error"


def chunks(size: int) -> Iterator[bytes]:
    yield b'{"title": "x", "description": "'
    for _ in range(size // 1024):
        yield b"x" * 1024


@pytest.mark.parametrize("kind", ["declared", "chunked"])
def test_bodies_over_64_kib_are_refused_so_that_a_browser_sees_it(user: Caller, kind: str) -> None:
    content = b"x" * (64 * 1024 + 1) if kind == "declared" else chunks(80 * 1024)
    answer = user("POST", content=content, headers=JSON_TYPE | {"Origin": ORIGIN})
    check_error(answer, 413, "body_too_large")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert user.titles() == []


def test_bodies_up_to_64_kib_are_read(user: Caller) -> None:
    padding = " " * (64 * 1024 - len('{"title": "x"}'))
    answer = user("POST", content=('{"title": "x"}' + padding).encode(), headers=JSON_TYPE)
    assert answer.status_code == 201


def test_unknown_paths_and_methods_have_the_one_shape(client: TestClient) -> None:
    check_error(client.get("/nowhere"), 404, "not_found")
    check_error(client.get("/api/x/tasks/1/2/3"), 404, "not_found")
    answer = client.delete("/health")
    check_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


SECRET_WORDS = "the client must not see this"


def failing(error: Exception) -> Any:
    def fail(*_arguments: object) -> None:
        raise error

    return fail


def test_an_unexpected_failure_is_logged_and_says_nothing(
    user: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "substring_pattern", failing(RuntimeError(SECRET_WORDS)))
    with caplog.at_level(logging.ERROR):
        answer = user("GET", headers={"Origin": ORIGIN})
    check_error(answer, 500, "internal_error")
    assert SECRET_WORDS not in answer.text
    assert SECRET_WORDS in caplog.text
    assert answer.headers["access-control-allow-origin"] == ORIGIN


AWAY = [
    exc.OperationalError("SELECT", {}, Exception(SECRET_WORDS)),
    exc.InterfaceError("SELECT", {}, Exception(SECRET_WORDS)),
    exc.InternalError("UPDATE", {}, Exception(SECRET_WORDS)),
    exc.TimeoutError(SECRET_WORDS),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_a_database_that_is_away_is_a_503(
    user: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    monkeypatch.setattr(tasks, "substring_pattern", failing(error))
    answer = user("GET", headers={"Origin": ORIGIN})
    check_error(answer, 503, "service_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert SECRET_WORDS not in answer.text
    assert SECRET_WORDS in caplog.text
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_a_failure_within_an_answer_is_not_answered_twice() -> None:
    async def half_an_answer(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(SECRET_WORDS)

    with pytest.raises(RuntimeError, match=SECRET_WORDS):
        TestClient(main.CommonGround(half_an_answer)).get("/")


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/openapi.json", "/nowhere", "/api/x/tasks"])
def test_nothing_is_sniffed(client: TestClient, path: str) -> None:
    assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_answers_with_tasks_are_stored_by_nobody(user: Caller) -> None:
    task = user.make()
    for path in ("", f"/{task['id']}", "/999999999999"):
        assert user("GET", path).headers["cache-control"] == "no-store"


def test_the_service_says_that_it_runs(client: TestClient) -> None:
    assert client.get("/").json() == {"message": "Todo API is running", "docs": "/docs"}
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert client.head("/health").status_code == 200


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_ask_no_other_host(client: TestClient, page: str) -> None:
    answer = client.get(page)
    assert answer.status_code == 200
    assert "http://" not in answer.text
    assert "https://" not in answer.text


def preflight(client: TestClient, origin: str) -> Any:
    asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}
    return client.options("/api/x/tasks/1/complete", headers={"Origin": origin} | asked)


def test_browsers_may_call_from_a_listed_origin(client: TestClient, user: Caller) -> None:
    answer = preflight(client, ORIGIN)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    exposed = user("GET", headers={"Origin": ORIGIN}).headers["access-control-expose-headers"]
    assert {"Link", "Location"} <= set(exposed.split(", "))


STRANGE = [
    "http://localhost:3001",
    "https://localhost:3000",
    "null",
    "http://localhost:3000.evil.example",
    "*",
]


@pytest.mark.parametrize("origin", STRANGE)
def test_browsers_may_not_call_from_elsewhere(client: TestClient, user: Caller, origin: str) -> None:
    for answer in (preflight(client, origin), user("GET", headers={"Origin": origin})):
        assert "access-control-allow-origin" not in answer.headers
