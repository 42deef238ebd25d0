"""transaction(session): several statements, all or nothing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from fastapi import APIRouter, HTTPException
from fastapi.testclient import TestClient
from sqlalchemy import exc
from sqlmodel import Session, col, select, update

import db
from auth import CurrentOwner
from db import SessionDep, transaction
from models import Task
from routes.tasks import TaskId, get_task, toggle_task
from tests.conftest import UserClient, another_app, check_error

router = APIRouter(prefix="/api/{user_id}/tasks")


@router.post("/{task_id}/repeat", status_code=204)
def repeat(owner: CurrentOwner, session: SessionDep, task_id: TaskId) -> None:
    """Complete a task that repeats itself, once: then it is due again."""
    with transaction(session):
        mine = select(Task).where(Task.user_id == owner, Task.id == task_id)
        task = session.exec(mine.with_for_update()).one()
        if not task.completed:
            task.completed = True
            session.add(Task(user_id=owner, title=task.title))


@router.post("/{task_id}/refuse")
def refuse(owner: CurrentOwner, session: SessionDep, task_id: TaskId) -> None:
    with transaction(session):
        session.add(Task(user_id=owner, title="undone"))
        assert toggle_task(owner, session, task_id).completed
        assert get_task(owner, session, task_id).completed
        raise HTTPException(409, "No")


@pytest.fixture
def user(user: UserClient) -> Iterator[UserClient]:
    app = another_app()
    app.include_router(router)
    with TestClient(app) as user.client:
        yield user


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(db.engine, expire_on_commit=False) as session:
        yield session


def rename(session: Session, task_id: int, title: str) -> None:
    session.exec(update(Task).where(col(Task.id) == task_id).values(title=title))


def test_simultaneous_clicks_have_one_effect_and_none_fails(user: UserClient) -> None:
    """What was read does not change: PostgreSQL locks the row, and SQLite blocks other writers."""
    path = f"/{user.create('Milk')['id']}/repeat"
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: user("POST", path).status_code, range(8)))
    assert codes == [204] * 8
    assert user.titles() == ["Milk", "Milk"]


def test_exception_undoes_all_statements(user: UserClient) -> None:
    task = user.create()
    check_error(user("POST", f"/{task['id']}/refuse"), 409, "conflict")
    assert user("GET").json() == [task]


def test_session_is_as_before_afterwards(user: UserClient, session: Session) -> None:
    task_id = user.create("first")["id"]
    with transaction(session):
        rename(session, task_id, "second")
    assert user.titles() == ["second"]
    rename(session, task_id, "third")
    session.rollback()  # undoes nothing: each statement is a transaction of its own again
    assert user.titles() == ["third"]
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a QueuePool has it


def fail() -> None:
    raise RuntimeError


def test_session_is_as_before_after_an_exception(user: UserClient, session: Session) -> None:
    task_id = user.create("first")["id"]
    with suppress(RuntimeError), transaction(session):
        rename(session, task_id, "second")
        fail()
    assert user.titles() == ["first"]
    rename(session, task_id, "third")
    assert user.titles() == ["third"]


@pytest.mark.parametrize(
    ("outer_fails", "inner_fails", "titles"),
    [
        (False, False, ["A", "B"]),
        (False, True, ["A", "b"]),
        (True, False, ["a", "b"]),
        (True, True, ["a", "b"]),
    ],
)
def test_nested_transaction_can_be_undone_without_the_outer_one(
    user: UserClient, session: Session, outer_fails: bool, inner_fails: bool, titles: list[str]
) -> None:
    outer, inner = user.create("a")["id"], user.create("b")["id"]
    with suppress(RuntimeError), transaction(session):
        rename(session, outer, "A")
        with suppress(RuntimeError), transaction(session):
            rename(session, inner, "B")
            if inner_fails:
                fail()
        if outer_fails:
            fail()
    assert user.titles("?sort=created_at") == titles


def test_part_that_fails_in_the_database_can_be_undone_alone(user: UserClient, session: Session) -> None:
    task = user.create("a")
    with transaction(session):
        rename(session, task["id"], "b")
        with suppress(exc.IntegrityError), transaction(session):
            session.add(Task(id=task["id"], user_id=user.user_id, title="the same id"))
        session.add(Task(user_id=user.user_id, title="c"))
    assert user.titles("?sort=title") == ["b", "c"]


def test_object_shows_what_is_saved_after_an_exception(user: UserClient, session: Session) -> None:
    task = session.get_one(Task, user.create("first")["id"])
    with suppress(RuntimeError), transaction(session):
        task.title = "second"
        session.commit()
        fail()
    assert task.title == "first"
