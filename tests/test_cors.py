"""Which browsers may call, and what they may read."""

import logging
import uuid
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hardening.settings import warn_once
from tests.conftest import UserClient, app_with
from tests.support.environment import ORIGIN


def preflight(client: TestClient, origin: str) -> Any:
    asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}
    return client.options("/api/x/tasks/1/complete", headers={"Origin": origin} | asked)


def test_browsers_may_call_from_a_listed_origin(client: TestClient, user: UserClient) -> None:
    response = preflight(client, ORIGIN)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-credentials"] == "true"
    methods = set(response.headers["access-control-allow-methods"].split(", "))
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= methods
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
    response = user("GET", headers={"Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["vary"] == "Origin"
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert sorted(exposed) == ["Link", "Location", "Retry-After"]


@pytest.mark.usefixtures("client")
def test_several_origins_may_be_listed() -> None:
    origins = ["https://app.example.com", "http://localhost:5173"]
    with app_with(CORS_ORIGINS=",".join(origins)) as client:
        for origin in origins:
            for response in (preflight(client, origin), client.get("/", headers={"Origin": origin})):
                assert response.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-origin" not in preflight(client, ORIGIN).headers


@pytest.mark.parametrize("origin", ["http://localhost:3001", "null", f"{ORIGIN}.evil.example"])
def test_browsers_may_not_call_from_other_origins(client: TestClient, user: UserClient, origin: str) -> None:
    for response in (preflight(client, origin), user("GET", headers={"Origin": origin})):
        assert "access-control-allow-origin" not in response.headers


def test_refused_origin_is_logged_once(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """So the operator sees why the frontend does not work, and no client can fill the log."""
    first, second = (f"https://{uuid.uuid4().hex}.example" for _ in range(2))
    with caplog.at_level(logging.WARNING):
        for origin in (first, second, first, first):
            assert preflight(client, origin).status_code == 400
            client.get("/", headers={"Origin": origin})
    for origin in (first, second):
        (line,) = [line for line in caplog.messages if origin in line]
        assert "CORS_ORIGINS" in line


def test_only_a_refused_origin_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert preflight(client, ORIGIN).status_code == 200
        assert client.options("/health").status_code == 405
        assert client.options("/health", headers={"Origin": "https://elsewhere.example"}).status_code == 405
    assert caplog.messages == []


def test_long_origin_is_cut_in_the_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        preflight(client, f"https://{uuid.uuid4().hex}.example/" + "x" * 10_000)
    assert max(map(len, caplog.messages)) < 300


@pytest.mark.parametrize(
    ("path", "status"),
    [("/nowhere", 404), ("/api/x/tasks", 401), ("/api/auth/login", 405)],
    ids=["not found", "no token", "wrong method"],
)
def test_errors_can_be_read_by_a_browser(client: TestClient, path: str, status: int) -> None:
    response = client.get(path, headers={"Origin": ORIGIN})
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == ORIGIN
