"""The app under test, on SQLite, or with TEST_DATABASE_URL on PostgreSQL, in a database of its own."""

import os
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

import jwt
import psycopg2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, make_url

from tests.wire import Wire

SECRET = secrets.token_hex(32)
POSTGRES = os.environ.get("TEST_DATABASE_URL")
ORIGIN = "http://localhost:3000"
NAME = f"todo_test_{secrets.token_hex(4)}"
wire: Wire | None = None


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
        answer = self("POST", json={"title": title, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def titles(self, query: str = "") -> list[str]:
        answer = self("GET", query)
        assert answer.status_code == 200, answer.text
        return [task["title"] for task in answer.json()]


@pytest.fixture
def user(client: TestClient) -> Caller:
    return Caller(client, uuid.uuid4().hex)


@pytest.fixture
def stranger(client: TestClient) -> Caller:
    return Caller(client, uuid.uuid4().hex)


def check_error(answer: Any, status: int, code: str) -> Any:
    """Every error has the one shape; returns its message."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"success", "error", "detail"}
    assert body["success"] is False
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["code"] == code
    if status == 422:
        assert all(set(item) == {"type", "loc", "msg"} for item in body["detail"])
    else:
        assert body["detail"] == body["error"]["message"]
    return body["error"]["message"]
