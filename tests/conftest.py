"""The app under test, on SQLite, or with TEST_DATABASE_URL on PostgreSQL, in a database of its own."""

import logging
import os
import secrets
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

import jwt
import psycopg2
import pytest
from fastapi.testclient import TestClient
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import event, make_url
from sqlmodel import Session, select
from starlette.types import Message, Receive, Scope, Send

from tests.wire import Wire

SECRET = secrets.token_hex(32)
POSTGRES = os.environ.get("TEST_DATABASE_URL")
ORIGIN = "http://localhost:3000"
NAME = f"todo_test_{secrets.token_hex(4)}"
wire: Wire | None = None

on_postgres = pytest.mark.skipif(not POSTGRES, reason="needs a server: set TEST_DATABASE_URL")
on_sqlite = pytest.mark.skipif(bool(POSTGRES), reason="is about SQLite: unset TEST_DATABASE_URL")


def administer(sql: str) -> None:
    """Run a statement on the server of TEST_DATABASE_URL, past the app and its wire."""
    connection = psycopg2.connect(POSTGRES)
    connection.autocommit = True
    connection.cursor().execute(sql)
    connection.close()


if POSTGRES:
    administer(f"CREATE DATABASE {NAME}")
    server = make_url(POSTGRES)
    wire = Wire(server.host or "127.0.0.1", server.port or 5432)
    url = server.set(host="127.0.0.1", port=wire.port, database=NAME)
else:
    url = make_url(f"sqlite:///{mkdtemp()}/test.db")

# The app reads its settings when it is imported; these win over a developer's own .env.
os.environ |= {
    "DATABASE_URL": url.render_as_string(hide_password=False),
    "BETTER_AUTH_SECRET": SECRET,
    "BETTER_AUTH_URL": "",
    "CORS_ORIGINS": ORIGIN,
    "ENVIRONMENT": "development",
    "AUTH_RATE_LIMIT": "",
    "RATE_LIMIT_STORAGE": "",
}

import db  # noqa: E402
import main  # noqa: E402
from models import User  # noqa: E402
from routes import auth as accounts  # noqa: E402
from tests.server import copy_project  # noqa: E402

statements: list[str] = []  # all that SQLite was given to run

if not POSTGRES:

    @event.listens_for(db.engine, "connect")
    def listen(connection: Any, _record: object) -> None:
        connection.set_trace_callback(statements.append)


def pytest_unconfigure() -> None:
    db.engine.dispose()
    if wire:
        wire.cut()
        administer(f"DROP DATABASE {NAME} WITH (FORCE)")
    else:
        for file in (path := Path(str(url.database))).parent.iterdir():
            file.unlink()
        path.parent.rmdir()


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    with TestClient(main.app) as client:
        yield client


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Count what the database is asked: round trips on the wire of PostgreSQL, statements in SQLite."""

    def count() -> int:
        return wire.trips if wire else len(statements)

    before = count()
    yield lambda: count() - before


@contextmanager
def sent_statements() -> Iterator[list[tuple[str, Any]]]:
    """What the app sends to the database: each statement with its parameters."""
    sent: list[tuple[str, Any]] = []

    def remember(_connection: object, _cursor: object, sql: str, parameters: object, *_rest: object) -> None:
        sent.append((sql, parameters))

    event.listen(db.engine, "before_cursor_execute", remember)
    try:
        yield sent
    finally:
        event.remove(db.engine, "before_cursor_execute", remember)


def until(done: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} seconds"
        time.sleep(0.01)


def token(sub: object = "someone", key: str = SECRET, **claims: object) -> str:
    return jwt.encode({"sub": sub, "exp": int(time.time()) + 3600} | claims, key, "HS256")


class Caller:
    """A user with a token, and what this user asks for."""

    def __init__(self, client: TestClient, user_id: str) -> None:
        self.client, self.user_id = client, user_id
        self.path = f"/api/{quote(user_id, safe='')}/tasks"
        self.headers = {"Authorization": f"Bearer {token(user_id)}"}

    def __call__(self, method: str, path: str = "", **options: Any) -> Any:
        headers = self.headers | options.pop("headers", {})
        return self.client.request(method, self.path + path, headers=headers, **options)

    def make(self, title: str = "Water the plants", **fields: object) -> dict[str, Any]:
        response = self("POST", json={"title": title, **fields})
        assert response.status_code == 201, response.text
        return dict(response.json())

    def titles(self, query: str = "") -> list[str]:
        response = self("GET", query)
        assert response.status_code == 200, response.text
        return [task["title"] for task in response.json()]


@pytest.fixture
def user(client: TestClient) -> Caller:
    return Caller(client, uuid.uuid4().hex)


@pytest.fixture
def stranger(client: TestClient) -> Caller:
    return Caller(client, uuid.uuid4().hex)


PASSWORD = "correct horse battery staple"


def new_email() -> str:
    return f"{secrets.token_hex(8)}@example.com"


def post(client: TestClient, path: str, email: str, password: str = PASSWORD) -> Any:
    return client.post(f"/api/auth/{path}", json={"email": email, "password": password})


class Account:
    """A user of the built-in accounts, and what this user asks for."""

    def __init__(self, client: TestClient, password: str = PASSWORD) -> None:
        self.client, self.email, self.password = client, new_email(), password
        response = post(client, "register", self.email, password)
        assert response.status_code == 201, response.text
        self.id = response.json()["id"]

    def login(self) -> str:
        response = post(self.client, "login", self.email, self.password)
        assert response.status_code == 200, response.text
        return str(response.json()["access_token"])

    def get(self, bearer: str, path: str = "/api/auth/me") -> Any:
        return self.client.get(path, headers={"Authorization": f"Bearer {bearer}"})

    def logout(self, bearer: str) -> Any:
        return self.client.post("/api/auth/logout", headers={"Authorization": f"Bearer {bearer}"})

    def row(self) -> User:
        with Session(db.engine) as session:
            return session.exec(select(User).where(User.id == self.id)).one()


@pytest.fixture
def ann(client: TestClient, fresh_limits: object) -> Account:
    return Account(client)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the project, for a real server."""
    return copy_project(tmp_path)


def check_error(response: Any, status: int, code: str) -> Any:
    """Every error has the one shape; returns its message."""
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


def check_refused(response: Any, message: str) -> None:
    """A 401, and why."""
    assert check_error(response, 401, "unauthorized") == message
    assert response.headers["www-authenticate"] == "Bearer"


def check_unavailable(response: Any) -> Any:
    """A 503 says when to try again: soon."""
    assert 1 <= int(response.headers["retry-after"]) <= 60
    return check_error(response, 503, "service_unavailable")


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


@pytest.fixture
def uptime(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The monotonic clock, which goes on; the event loop reads it too."""
    clock, monotonic = Clock(), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + clock.ahead)
    return clock


@pytest.fixture
def fresh_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[FixedWindowRateLimiter]:
    """Attempts that other tests made do not count."""
    storage = MemoryStorage()
    limiter = FixedWindowRateLimiter(storage)
    monkeypatch.setattr(accounts, "limiter", limiter)
    yield limiter
    storage.timer.join()


def fresh(path: str, folder: Path = db.ROOT) -> Any:
    """Run a module of the app anew, as at a start with today's environment; nobody else sees the result."""
    spec = spec_from_file_location(f"fresh_{Path(path).stem}", db.ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    module.__file__ = str(folder / path)  # where it looks for .env
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def already_started(_app: object) -> AsyncIterator[None]:
    """The shared app migrates at its start, and disposes of the engine at its end."""
    yield


@contextmanager
def app_with(**settings: str) -> Iterator[tuple[TestClient, Any]]:
    """The whole app with other settings: a client of it, and its module auth. (db.py stays as it is.)"""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        for name in ("main", "auth", "routes", "routes.auth", "routes.tasks"):
            patch.delitem(sys.modules, name)
        other, other_auth = import_module("main"), sys.modules["auth"]
    other.app.router.lifespan_context = already_started
    with TestClient(other.app) as client:
        yield client, other_auth


def watched_client(look: Callable[[], object]) -> TestClient:
    """Calls this whenever a response is about to be sent."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def look_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                look()
            await send(message)

        await main.app(scope, receive, look_and_send)

    return TestClient(watched)


@pytest.fixture
def fresh_client(client: TestClient) -> Iterator[TestClient]:
    """Of an app that remembers nothing, such as what /health said a moment ago."""
    with app_with() as (fresh, _auth):
        yield fresh


Refusal = Callable[..., str]


@pytest.fixture
def refusal(caplog: pytest.LogCaptureFixture) -> Iterator[Refusal]:
    """Calls what must refuse to start; returns the one line that says why."""

    def call(start: Callable[..., object], *arguments: object) -> str:
        caplog.clear()
        with pytest.raises(SystemExit) as end:
            start(*arguments)
        assert end.value.code == 3
        (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
        assert line.startswith("Not started: ")
        assert "\n" not in line
        return line

    yield call
    if hasattr(sys, "tracebacklimit"):  # a refusal hides tracebacks for the rest of the process
        del sys.tracebacklimit
