"""The one shape of every error, and what becomes of failures that no endpoint foresees."""

import asyncio
import errno
import logging
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from limits.errors import StorageError
from sqlalchemy import exc
from starlette.types import Message

import main
from db import get_session
from tests.conftest import Caller, check_error, check_unavailable
from tests.support.environment import ORIGIN

SECRET_WORDS = "the client must not see this"


def test_unknown_paths_and_methods_have_the_one_shape(client: TestClient) -> None:
    check_error(client.get("/nowhere"), 404, "not_found")
    check_error(client.get("/api/x/tasks/1/2/3"), 404, "not_found")
    response = client.delete("/health")
    check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] in ("GET", "HEAD")


Fail = Callable[[Exception], None]


@pytest.fixture
def fail() -> Iterator[Fail]:
    """Lets every use of the database raise this."""

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


NOT_FOR_EVER = {
    "operational": exc.OperationalError(*original()),
    "interface": exc.InterfaceError(*original()),
    "internal": exc.InternalError(*original()),
    "another of the driver": exc.DatabaseError(*original()),
    "no connection": exc.TimeoutError(SECRET_WORDS),
    "limits": StorageError(Exception(SECRET_WORDS)),
    "files of this process": OSError(errno.EMFILE, SECRET_WORDS),
    "files of this machine": OSError(errno.ENFILE, SECRET_WORDS),
}


@pytest.mark.parametrize("error", NOT_FOR_EVER.values(), ids=NOT_FOR_EVER)
def test_outages_are_a_503(
    user: Caller, fail: Fail, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    fail(error)
    response = user("GET", headers={"Origin": ORIGIN})
    check_unavailable(response)
    assert SECRET_WORDS not in response.text
    assert SECRET_WORDS in caplog.text
    assert response.headers["access-control-allow-origin"] == ORIGIN


OURS = {
    "statement": exc.ProgrammingError(*original()),
    "value": exc.DataError(*original()),
    "constraint": exc.IntegrityError(*original()),
    "not supported": exc.NotSupportedError(*original()),
    "file": OSError(errno.ENOENT, SECRET_WORDS),
    "anything": RuntimeError(SECRET_WORDS),
}


@pytest.mark.parametrize("error", OURS.values(), ids=OURS)
def test_mistakes_of_ours_are_a_500(
    user: Caller, fail: Fail, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    fail(error)
    with caplog.at_level(logging.ERROR):
        response = user("GET", headers={"Origin": ORIGIN})
    check_error(response, 500, "internal_error")
    assert "retry-after" not in response.headers
    assert SECRET_WORDS not in response.text
    assert SECRET_WORDS in caplog.text
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["x-content-type-options"] == "nosniff"


def test_failure_after_the_response_has_started_adds_no_second_one() -> None:
    """The server that runs the app is told instead, and cuts the connection."""
    app = main.create_app()

    @app.get("/half")
    def half() -> StreamingResponse:
        def pieces() -> Iterator[str]:
            yield "first"
            raise RuntimeError(SECRET_WORDS)

        return StreamingResponse(pieces())

    sent: list[Message] = []

    async def ask() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/half", "root_path": "", "headers": []}
        await app(scope | {"query_string": b"", "asgi": {"spec_version": "2.4"}}, receive, send)

    with pytest.raises(RuntimeError):
        asyncio.run(ask())
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert not [message for message in sent if message.get("body") and message.get("more_body") is False]
