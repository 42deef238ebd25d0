"""What all tests share. To write your first: tests/test_first.py."""

import asyncio
import logging
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import Message, Receive, Scope, Send

from tests.support.environment import SECRET, SETTINGS, end, wire  # before the app, which reads them

import auth  # isort: skip
import db
import main
from hardening import database, turns, watchdog
from hardening.keys import KeyRing
from hardening.settings import Settings, logger, settings
from routes.service import database_health
from tests.support.accounts import Account
from tests.support.server import copy_project
from tests.support.wire import Wire


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """The app, on a database of its own."""
    with TestClient(main.app) as client:
        yield client


@pytest.fixture
def user(client: TestClient) -> "UserClient":
    """A new user: so no test needs an empty database."""
    return UserClient(client, uuid.uuid4().hex)


@pytest.fixture
def another_user(client: TestClient) -> "UserClient":
    """Another user."""
    return UserClient(client, uuid.uuid4().hex)


class UserClient:
    """A user with a token, which needs no account.

    `user("GET", "/1")` sends a request for tasks, and `user.create("Milk")` creates one.
    """

    def __init__(self, client: TestClient, user_id: str) -> None:
        self.client, self.user_id = client, user_id
        self.path = f"/api/{quote(user_id, safe='')}/tasks"
        self.headers = {"Authorization": f"Bearer {token(user_id)}"}

    def __call__(self, method: str, path: str = "", **options: Any) -> Any:
        headers = self.headers | options.pop("headers", {})
        return self.client.request(method, self.path + path, headers=headers, **options)

    def create(self, title: str = "Water the plants", **fields: object) -> dict[str, Any]:
        response = self("POST", json={"title": title, **fields})
        assert response.status_code == 201, response.text
        return dict(response.json())

    def titles(self, query: str = "") -> list[str]:
        response = self("GET", query)
        assert response.status_code == 200, response.text
        return [task["title"] for task in response.json()]


def token(sub: object = "someone", key: str = SECRET, **claims: object) -> str:
    return jwt.encode({"sub": sub, "exp": int(time.time()) + 3600} | claims, key, "HS256")


# For a first test you have read enough. What follows is for single subjects: here, what a response says.


def check_error(response: Any, status: int, code: str) -> Any:
    """Every error has the one format; returns its message."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"success", "error", "detail"}
    assert body["success"] is False
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["code"] == code
    assert body["error"]["message"]
    if status == 422:
        assert all(set(item) == {"type", "loc", "msg"} for item in body["detail"])
    else:
        assert body["detail"] == body["error"]["message"]
    return body["error"]["message"]


FIELDS = {"id", "user_id", "title", "description", "completed", "created_at", "updated_at"}


def check_change(before: dict[str, Any], after: dict[str, Any], **changes: object) -> None:
    """Of the fields that the contract promises, only these have changed. Fields of your own may, too."""
    expected = before | {"updated_at": after["updated_at"]} | changes
    assert {name: after[name] for name in FIELDS} == {name: expected[name] for name in FIELDS}
    assert after["updated_at"] > before["updated_at"]


def check_refused(response: Any, message: str) -> None:
    """A 401, and why."""
    assert check_error(response, 401, "unauthorized") == message
    assert response.headers["www-authenticate"] == "Bearer"


def check_unavailable(response: Any) -> Any:
    """A 503 says when to try again: soon."""
    assert 1 <= int(response.headers["retry-after"]) <= 60
    return check_error(response, 503, "service_unavailable")


# The built-in accounts


@pytest.fixture
def ann(client: TestClient, fresh_limits: object) -> Account:
    return Account(client)


@pytest.fixture
def fresh_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[FixedWindowRateLimiter]:
    """Attempts that other tests made do not count."""
    storage = MemoryStorage()
    limiter = FixedWindowRateLimiter(storage)
    monkeypatch.setattr(settings, "rate_limit_storage", limiter)
    yield limiter
    storage.timer.join()


# Other settings


def another_app() -> FastAPI:
    """A whole app more; the start and the end, for which there is one database, are the shared app's."""
    app = main.create_app()
    app.router.lifespan_context = lambda _app: nullcontext()
    return app


@contextmanager
def app_with(**variables: str) -> Iterator[TestClient]:
    """The whole app with other settings, as in a .env. Until it ends, the shared app has them too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in Settings.model_validate(SETTINGS | variables):
            patch.setattr(settings, name, value)
        patch.setattr(auth, "key_ring", KeyRing(settings.better_auth_url))
        patch.setattr(turns, "all_turns", asyncio.Semaphore(10))  # one belongs to one event loop
        with TestClient(another_app()) as client:
            yield client


@pytest.fixture
def fresh_health(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What /health said a moment ago is forgotten."""
    monkeypatch.setattr(database_health, "valid_until", 0.0)


def watched_client(look: Callable[[], object]) -> TestClient:
    """Calls this whenever a response is about to be sent."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def look_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                look()
            await send(message)

        await main.app(scope, receive, look_and_send)

    return TestClient(watched)


def served(user: UserClient) -> UserClient:
    """The same user, before a server: it logs the exceptions that reach it, as uvicorn does."""

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await main.app(scope, receive, send)
        except Exception:  # noqa: BLE001  (any, like a server)
            logger.exception("Exception in ASGI application")

    return UserClient(TestClient(server), user.user_id)


@pytest.fixture
def the_wire() -> Wire:
    """What is between the app and PostgreSQL."""
    assert wire is not None
    return wire


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the project, for a real server."""
    return copy_project(tmp_path)


# Starts that are refused

Refusal = Callable[..., str]


@pytest.fixture
def refusal(caplog: pytest.LogCaptureFixture) -> Iterator[Refusal]:
    """Calls what must refuse to start; returns the one line that says why."""

    def call(start: Callable[..., object], *arguments: object) -> str:
        caplog.clear()
        with pytest.raises(SystemExit) as end:
            start(*arguments)
        assert end.value.code == 3
        assert "Traceback" not in "".join(traceback.format_exception(end.value))
        (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
        assert line.startswith("Not started: ")
        assert "\n" not in line
        return line

    yield call
    if hasattr(sys, "tracebacklimit"):  # a refusal hides tracebacks for the rest of the process
        del sys.tracebacklimit


# Time


@pytest.fixture
def patient(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Many requests at once can take long on a busy machine: our own time limits must not end them."""
    for module, name in (
        (turns, "RESPONSE_TIMEOUT"),
        (watchdog, "RESPONSE_TIMEOUT"),
        (database, "STATEMENT_TIMEOUT"),
    ):
        monkeypatch.setattr(module, name, 60.0)
    db.engine.dispose()  # SQLite's connections have been told the limit
    yield
    db.engine.dispose()


class Clock:
    """A clock that a test can put forward."""

    ahead = 0.0

    def forward(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of day, which stands still."""
    clock, start = Clock(), time.time()
    monkeypatch.setattr(time, "time", lambda: start + clock.ahead)
    return clock


monotonic, UPTIME = time.monotonic, Clock()
time.monotonic = lambda: monotonic() + UPTIME.ahead


@pytest.fixture
def uptime() -> Clock:
    """The monotonic clock, which goes on, and never back: the event loop and the watchdog read it too."""
    return UPTIME


def until(done: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} seconds"
        time.sleep(0.01)


def pytest_unconfigure() -> None:
    db.engine.dispose()
    end()
