"""In development, the log names each field and parameter that is ignored: once, and without its value."""

import logging
from collections.abc import Iterator
from typing import Annotated

import pytest
from fastapi import APIRouter, Body, Depends, Query, WebSocket
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field

from tests.conftest import FIELDS, UserClient, another_app, app_with

Log = pytest.LogCaptureFixture


@pytest.fixture
def ann(user: UserClient, caplog: Log) -> Iterator[UserClient]:
    """A user of an app that has ignored nothing so far."""
    with TestClient(another_app()) as client, caplog.at_level(logging.WARNING):
        yield UserClient(client, user.user_id)


def test_ignored_fields_are_named_once(ann: UserClient, caplog: Log) -> None:
    for _ in range(2):
        ann.create("Water the plants", mood="s3cret", colour="s3cret")
    assert sorted(caplog.messages) == [
        'POST /api/{user_id}/tasks: "colour" is not a field and was ignored',
        'POST /api/{user_id}/tasks: "mood" is not a field and was ignored',
    ]


def test_ignored_parameters_are_named_once(ann: UserClient, caplog: Log) -> None:
    for number in range(2):
        assert ann.titles(f"?offset={number}&limit=5&sort=title") == []
    assert caplog.messages == ['GET /api/{user_id}/tasks: "offset" is not a parameter and was ignored']


def test_ignored_field_of_an_update_is_named(ann: UserClient, caplog: Log) -> None:
    path = f"/{ann.create()['id']}"
    assert ann("PUT", path, json={"title": "Water the fern", "complete": True}).status_code == 200
    assert caplog.messages == [
        'PUT /api/{user_id}/tasks/{task_id}: "complete" is not a field and was ignored'
    ]


def test_whole_task_may_be_sent_back(ann: UserClient, caplog: Log) -> None:
    task = ann.create()
    task = {name: task[name] for name in FIELDS}
    assert ann("PUT", f"/{task['id']}", json=task).status_code == 200
    assert caplog.messages == []


def test_names_are_cut_and_escaped(ann: UserClient, caplog: Log) -> None:
    ann.create("Water the plants", **{"x" * 60_000: 1, 'a"\nINFO é': 2})
    first = "POST /api/{user_id}/tasks: "
    assert sorted(caplog.messages) == [
        rf'{first}"a\"\nINFO \u00e9" is not a field and was ignored',
        f'{first}"{"x" * 50}" is not a field and was ignored',
    ]


def test_flood_of_names_is_limited_and_hides_no_other_warning(ann: UserClient, caplog: Log) -> None:
    for batch in range(3):
        ann.create("Water the plants", **{f"field {batch} {number}": 1 for number in range(100)})
    assert len(caplog.messages) == 200
    caplog.clear()
    ann.headers = {"Authorization": "Bearer undefined"}
    for _ in range(120):
        assert ann("GET").status_code == 401
    assert len(caplog.messages) <= 1  # it is logged once for all tests


@pytest.mark.usefixtures("client")
def test_nothing_is_logged_outside_development(user: UserClient, caplog: Log) -> None:
    with app_with(ENVIRONMENT="staging") as client, caplog.at_level(logging.WARNING):
        UserClient(client, user.user_id).create("Water the plants", mood=1)
    assert caplog.messages == []


class Tag(BaseModel):
    name: str
    color: str = Field(default="", alias="colour")


DEFAULT = Tag(name="home")


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Page(BaseModel):
    offset: int = 0


def has_key(key: str = "") -> str:
    return key


def test_own_endpoints_are_checked_too(caplog: Log) -> None:
    app, router = another_app(), APIRouter(prefix="/tags")

    @router.post("")
    def named(tag: Tag) -> None: ...

    @router.get("")
    def listed(page: Annotated[Page, Query()]) -> None: ...

    @router.post("/embedded")
    def embedded(tag: Tag, count: Annotated[int, Body()]) -> None: ...

    @router.post("/anything")
    def anything(body: Anything) -> None: ...

    @router.post("/dictionary")
    def dictionary(body: dict[str, int]) -> None: ...

    @router.post("/optional")
    def optional(tag: Tag = DEFAULT) -> None: ...

    @router.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    app.include_router(router, prefix="/v1", dependencies=[Depends(has_key)])
    with TestClient(app) as client, caplog.at_level(logging.WARNING):
        tag = {"name": "home", "colour": "red"}
        client.post("/v1/tags?key=1", json=tag | {"shape": "round"})
        client.get("/v1/tags?offset=1&key=1&page=2")
        client.post("/v1/tags/embedded", json={"tag": tag, "count": 1, "number": 2})
        client.post("/v1/tags/anything", json={"shape": "round"})
        client.post("/v1/tags/dictionary", json={"shape": 1})
        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/tags/optional", headers=headers).status_code == 200
        assert client.post("/v1/tags", content=b'{"no JSON type": 1}').status_code == 422
        with client.websocket_connect("/v1/tags/socket"):
            pass
    assert caplog.messages == [
        'POST /v1/tags: "shape" is not a field and was ignored',
        'GET /v1/tags: "page" is not a parameter and was ignored',
        'POST /v1/tags/embedded: "number" is not a field and was ignored',
    ]
