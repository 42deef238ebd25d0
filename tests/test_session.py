"""The session of a request: a plain one, which a test may replace; and which requests wait for one."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, exc
from sqlmodel import Session, SQLModel, StaticPool, create_engine, select

import db
import main
from auth import CurrentOwner
from db import SessionDep
from hardening import turns
from models import Task
from tests.conftest import Clock, UserClient, another_app, check_change, check_error, until, watched_client
from tests.support.counting import counted
from tests.support.environment import POSTGRES

# The two overrides that FastAPI's and SQLModel's documentation show


@pytest.fixture
def shared_session() -> Iterator[Session]:
    """One session for all requests, on a database in memory."""
    engine = create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        main.app.dependency_overrides[db.get_session] = lambda: session
        yield session
    main.app.dependency_overrides.clear()
    engine.dispose()


@contextmanager
def each_request_has_a_session_of(engine: Engine) -> Iterator[Session]:
    """Yields one more session, to look at what the requests have done."""

    def get_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    main.app.dependency_overrides[db.get_session] = get_session
    with Session(engine) as session:
        yield session
    main.app.dependency_overrides.clear()
    engine.dispose()


@pytest.fixture
def session_of_another_engine(tmp_path: Path) -> Iterator[Session]:
    """A session for each request, on an engine of the test."""
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")
    SQLModel.metadata.create_all(engine)
    with each_request_has_a_session_of(engine) as session:
        yield session


@pytest.fixture
def session_of_a_plain_engine(client: TestClient) -> Iterator[Session]:
    """The same on our database, with transactions as SQLAlchemy has them by default."""
    with each_request_has_a_session_of(create_engine(db.engine.url)) as session:
        yield session


@pytest.mark.parametrize(
    "override", ["shared_session", "session_of_another_engine", "session_of_a_plain_engine"]
)
def test_every_task_endpoint_works_with_your_own_session(
    user: UserClient, another_user: UserClient, override: str, request: pytest.FixtureRequest
) -> None:
    session: Session = request.getfixturevalue(override)
    milk, bread = user.create("Milk", description="two"), user.create("Bread")
    path = f"/{milk['id']}"
    assert user("GET").json() == [bread, milk]
    assert user("GET", path).json() == milk

    renamed = user("PUT", path, json={"title": "Oat milk"}).json()
    check_change(milk, renamed, title="Oat milk")
    assert user("GET", path).json() == renamed
    task = user("PATCH", path, json={"description": None}).json()
    check_change(renamed, task, description=None)
    for completed in (True, False, True):
        toggled = user("PATCH", f"{path}/complete").json()
        check_change(task, toggled, completed=completed)
        task = toggled
    assert user.titles("?completed=true&search=OAT&sort=title&limit=1") == ["Oat milk"]

    for method, suffix, body in (
        ("GET", "", None),
        ("PUT", "", {"title": "x"}),
        ("PATCH", "/complete", None),
        ("DELETE", "", None),
    ):
        check_error(another_user(method, path + suffix, json=body), 404, "not_found")
    mine = select(Task).where(Task.user_id == user.user_id).order_by(Task.id)  # type: ignore[arg-type]  # a column
    assert [task.title for task in session.exec(mine)] == ["Oat milk", "Bread"]

    assert user("DELETE", path).status_code == 204
    check_error(user("DELETE", path), 404, "not_found")
    assert user("GET").json() == [bread]
    session.expire_all()
    session.rollback()
    assert [task.title for task in session.exec(mine)] == ["Bread"]


@pytest.mark.parametrize("override", ["shared_session", "session_of_another_engine"])
def test_accounts_work_with_your_own_session(
    client: TestClient, fresh_limits: object, override: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(override)
    body = {"email": "ann@example.com", "password": "correct horse"}
    assert client.post("/api/auth/register", json=body).status_code == 201
    check_error(client.post("/api/auth/register", json=body), 409, "conflict")
    bearer = client.post("/api/auth/login", json=body).json()["access_token"]
    headers = {"Authorization": f"Bearer {bearer}"}
    assert client.get("/api/auth/me", headers=headers).json()["email"] == "ann@example.com"
    assert client.post("/api/auth/logout", headers=headers).status_code == 204
    check_error(client.get("/api/auth/me", headers=headers), 401, "unauthorized")


# Which requests wait for a session


@contextmanager
def locked() -> Iterator[None]:
    """Blocks every write to the existing tasks."""
    with db.engine.connect() as connection:
        connection.detach()  # takes no place in the pool
        if POSTGRES:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("SELECT 1 FROM tasks FOR UPDATE")
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield
        connection.exec_driver_sql("ROLLBACK")
        connection.close()


class Crowd:
    """Users whose requests wait for a lock."""

    def __init__(self, client: TestClient, pool: ThreadPoolExecutor) -> None:
        self.client, self.pool = client, pool
        self.waiting: list[Future[Any]] = []

    def user(self, name: str, requests: int) -> Callable[[], None]:
        user = UserClient(self.client, name)
        path = f"/{user.create()['id']}/complete"

        def send() -> None:
            self.waiting += [self.pool.submit(user, "PATCH", path) for _ in range(requests)]

        return send


@pytest.fixture
def crowd(client: TestClient, patient: None) -> Iterator[Crowd]:
    with ThreadPoolExecutor(50) as pool:
        crowd = Crowd(client, pool)
        yield crowd
        assert {request.result().status_code for request in crowd.waiting} <= {200}


def in_use() -> int:
    return int(db.engine.pool.checkedout())  # type: ignore[attr-defined]  # of a QueuePool, which ours is


def test_flooding_user_delays_no_one_else(crowd: Crowd, another_user: UserClient) -> None:
    """Three of the ten connections at most, so that two thirds are for the others."""
    send = crowd.user("flood", 20)
    with locked():
        send()
        until(lambda: in_use() == 3)
        for _ in range(10):
            assert another_user("GET").status_code == 200
        assert in_use() == 3
        assert not any(request.done() for request in crowd.waiting)


@pytest.mark.usefixtures("patient")
def test_order_of_parameters_does_not_matter(
    client: TestClient, user: UserClient, another_user: UserClient
) -> None:
    """The session comes first here. Still, a user has three connections at most, and the path is checked."""
    app = another_app()

    @app.post("/api/{user_id}/slow")
    def slow(session: SessionDep, owner: CurrentOwner) -> None:
        assert session.exec(select(Task).where(Task.user_id == owner)).all()
        held.append(owner)
        release.wait(10)

    held: list[str] = []
    release = Event()
    user.create()
    with TestClient(app) as other, ThreadPoolExecutor(20) as pool:
        path = f"/api/{user.user_id}/slow"
        waiting = [pool.submit(other.post, path, headers=user.headers) for _ in range(20)]
        until(lambda: len(held) == 3)
        check_error(other.post(path, headers=another_user.headers), 403, "forbidden")
        assert in_use() == 3
        assert UserClient(other, another_user.user_id).titles() == []
        assert len(held) == 3
        release.set()
        assert {request.result().status_code for request in waiting} == {200}


def test_health_does_not_wait_for_a_connection(crowd: Crowd, client: TestClient, fresh_health: None) -> None:
    sends = [crowd.user(f"user {number}", 3) for number in range(4)]
    with locked():
        for send in sends:
            send()
        until(lambda: in_use() == 10)
        with counted() as cost:
            assert client.get("/health").status_code == 200
        assert cost() >= 1
        assert not any(request.done() for request in crowd.waiting)


def test_session_ends_before_the_response_is_sent(user: UserClient) -> None:
    """Otherwise a client that reads slowly would keep a connection of the pool."""
    seen: list[int] = []
    watched = UserClient(watched_client(lambda: seen.append(in_use())), user.user_id)
    watched.create()
    watched("GET")
    assert seen == [0, 0]


def test_users_without_requests_are_forgotten(user: UserClient, another_user: UserClient) -> None:
    for each in (user, another_user):
        each.create()
    gc.collect()
    assert dict(turns.each_user) == {}


def test_waiting_for_a_turn_times_out_after_five_seconds(
    uptime: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "all_turns", asyncio.Semaphore(10))  # one belongs to one event loop

    async def wait() -> None:
        served = [turns.take_turn(f"user {number}") for number in range(10)]
        for turn in served:
            await turn.__aenter__()
        last = asyncio.ensure_future(turns.take_turn("the eleventh").__aenter__())
        await asyncio.sleep(0)  # now it waits
        assert not last.done()
        uptime.forward(5.1)
        await served[0].__aexit__(None, None, None)
        with pytest.raises(exc.TimeoutError):
            await last
        async with turns.take_turn("another user"):
            pass

    asyncio.run(wait())
