"""The error format, and what happens to exceptions that no endpoint handles."""

import asyncio
import errno
import logging
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from limits.errors import StorageError
from sqlalchemy import exc
from sqlmodel import select
from starlette.types import Message

import main
from db import SessionDep, get_session
from models import Task
from tests.conftest import UserClient, another_app, check_error, check_unavailable, served
from tests.support.environment import ORIGIN

SECRET_WORDS = "the client must not see this"


def test_unknown_paths_and_methods_have_the_error_format(client: TestClient) -> None:
    check_error(client.get("/nowhere"), 404, "not_found")
    check_error(client.get("/api/x/tasks/1/2/3"), 404, "not_found")
    response = client.delete("/health")
    check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] in ("GET", "HEAD")


Fail = Callable[[Exception], None]


@pytest.fixture
def fail() -> Iterator[Fail]:
    """Every use of the database raises this."""

    def fail(error: Exception) -> None:
        class Session:
            info: ClassVar[dict[str, object]] = {}

            def exec(self, *_arguments: object, **_options: object) -> None:
                raise error

        main.app.dependency_overrides[get_session] = Session

    yield fail
    main.app.dependency_overrides.clear()


def original() -> Any:
    return "SELECT", {}, Exception(SECRET_WORDS)


OUTAGES = {
    "interface": exc.InterfaceError(*original()),
    "internal": exc.InternalError(*original()),
    "another of the driver": exc.DatabaseError(*original()),
    "no connection": exc.TimeoutError(SECRET_WORDS),
    "limits": StorageError(Exception(SECRET_WORDS)),
    "files of this process": OSError(errno.EMFILE, SECRET_WORDS),
    "files of this machine": OSError(errno.ENFILE, SECRET_WORDS),
}


@pytest.mark.parametrize("error", OUTAGES.values(), ids=OUTAGES)
def test_outages_are_a_503(
    user: UserClient, fail: Fail, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    fail(error)
    response = user("GET", headers={"Origin": ORIGIN})
    check_unavailable(response)
    assert SECRET_WORDS not in response.text
    assert SECRET_WORDS in caplog.text
    assert response.headers["access-control-allow-origin"] == ORIGIN


BUGS = {
    "statement": exc.ProgrammingError(*original()),
    "value": exc.DataError(*original()),
    "constraint": exc.IntegrityError(*original()),
    "not supported": exc.NotSupportedError(*original()),
    "file": OSError(errno.ENOENT, SECRET_WORDS),
    "anything": RuntimeError(SECRET_WORDS),
}


@pytest.mark.parametrize("error", BUGS.values(), ids=BUGS)
def test_our_bugs_are_a_500_and_one_traceback(
    user: UserClient, fail: Fail, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    fail(error)
    response = served(user)("GET", headers={"Origin": ORIGIN})
    check_error(response, 500, "internal_error")
    assert "retry-after" not in response.headers
    assert SECRET_WORDS not in response.text
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["x-content-type-options"] == "nosniff"
    (record,) = caplog.records
    assert record.exc_text
    assert record.exc_text.count("Traceback") == 1
    assert "in list_tasks" in record.exc_text  # where it was
    assert SECRET_WORDS in record.exc_text.splitlines()[-1]


@pytest.mark.usefixtures("client")
def test_missing_owner_is_a_500_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    app = another_app()

    @app.get("/all")
    def everybodys_tasks(session: SessionDep) -> None:
        session.exec(select(Task)).all()

    with TestClient(app) as client:
        check_error(client.get("/all"), 500, "internal_error")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("tests.test_errors.everybodys_tasks: OwnerMissingError: tasks")
    assert "\n" not in record.getMessage()
    assert record.exc_info is None


def ask_for_broken(app: FastAPI) -> list[Message]:
    """GET /broken; returns what the app sends before it raises a RuntimeError."""
    messages: list[Message] = []

    async def ask() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": "/broken", "root_path": "", "headers": []}
        await app(scope | {"query_string": b"", "asgi": {"spec_version": "2.4"}}, receive, send)

    with pytest.raises(RuntimeError, match=SECRET_WORDS):
        asyncio.run(ask())
    return messages


def test_unexpected_exception_is_raised_again_after_the_whole_response() -> None:
    app = another_app()

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError(SECRET_WORDS)

    start, body = ask_for_broken(app)
    assert start["status"] == 500
    assert b"internal_error" in body["body"]
    assert not body.get("more_body")


def test_late_failure_sends_no_second_response() -> None:
    app = another_app()

    @app.get("/broken")
    def half() -> StreamingResponse:
        def pieces() -> Iterator[str]:
            yield "first"
            raise RuntimeError(SECRET_WORDS)

        return StreamingResponse(pieces())

    start, first = ask_for_broken(app)
    assert start["status"] == 200
    assert first["body"] == b"first"
    assert first["more_body"]  # so the server knows that this is not all
