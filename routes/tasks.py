"""The task endpoints. Each runs one statement, and each statement names the owner."""

from collections.abc import Sequence
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import UpdateBase
from sqlmodel import Session, col, delete, func, not_, or_, select, update

from auth import CurrentOwner
from db import SessionDep
from hardening.routes import OneThread
from models import NO_NUL, Task, TaskCreate, TaskPublic, TaskUpdate, now
from routes.errors import can_fail, invalid

router = APIRouter(
    prefix="/api/{user_id}/tasks",
    tags=["tasks"],
    responses=can_fail(401, 403, 422, 500, 503),
    route_class=OneThread,  # runs the endpoint and checks its response in the same thread
)

MAX_INTEGER = 2**63 - 1  # in both databases
TaskId = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="The task's `id`", examples=[1])]


@router.get("/{task_id}", response_model=TaskPublic, responses=can_fail(404), summary="Read one")
def get_task(owner: CurrentOwner, session: SessionDep, task_id: TaskId) -> Task:
    task = session.exec(select(Task).where(Task.user_id == owner, Task.id == task_id)).first()
    return task_or_404(task)


def task_or_404(task: Task | None) -> Task:
    if task is None:
        raise HTTPException(404, "Task not found")
    return task


@router.post(
    "", response_model=TaskPublic, status_code=201, responses=can_fail(400, 413), summary="Create one"
)
def create_task(
    owner: CurrentOwner, session: SessionDep, new: TaskCreate, request: Request, response: Response
) -> Task:
    """Create a task. The `Location` header is its URL."""
    task = Task(**new.model_dump(), user_id=owner)
    task.updated_at = task.created_at
    session.add(task)
    session.commit()  # INSERT ... RETURNING id; no refresh(): the task can still be read
    response.headers["Location"] = f"{quote(request.scope['path'])}/{task.id}"
    return task


# Tutorials get a task, change it and save it. Here the database does all of that in one statement, UPDATE or
# DELETE ... RETURNING, and nothing can happen in between.
def write(session: Session, statement: UpdateBase) -> Task:
    options = {
        "populate_existing": True,  # a task that was loaded before gets the new values from RETURNING,
        "synchronize_session": False,  # so SQLAlchemy need not look for the tasks that have changed
    }
    task = session.exec(statement.returning(Task), execution_options=options).scalar_one_or_none()
    session.commit()  # AUTOCOMMIT has saved it already, but a test may bring a plain session
    return task_or_404(task)


@router.patch(
    "/{task_id}",
    response_model=TaskPublic,
    responses=can_fail(400, 404, 413),
    summary="Change one, as PUT does",
    name="patch_task",  # generated clients need a name for each route
)
@router.put("/{task_id}", response_model=TaskPublic, responses=can_fail(400, 404, 413), summary="Change one")
def update_task(owner: CurrentOwner, session: SessionDep, task_id: TaskId, changes: TaskUpdate) -> Task:
    """Change a task. Fields that you leave out stay as they are; `"description": null` clears it."""
    statement = update(Task).where(col(Task.user_id) == owner, col(Task.id) == task_id)
    return write(session, statement.values(**changes.model_dump(), updated_at=now()))


@router.patch("/{task_id}/complete", response_model=TaskPublic, responses=can_fail(404), summary="Toggle one")
def toggle_task(owner: CurrentOwner, session: SessionDep, task_id: TaskId) -> Task:
    """Mark a task as completed, or as not completed if it was."""
    statement = update(Task).where(col(Task.user_id) == owner, col(Task.id) == task_id)
    return write(session, statement.values(completed=not_(col(Task.completed)), updated_at=now()))


@router.delete("/{task_id}", status_code=204, responses=can_fail(404), summary="Delete one")
def delete_task(owner: CurrentOwner, session: SessionDep, task_id: TaskId) -> None:
    write(session, delete(Task).where(col(Task.user_id) == owner, col(Task.id) == task_id))


Skip = Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Number of tasks to leave out")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Maximum number of tasks")]
# SkipJsonSchema: a query cannot send null, so /openapi.json does not offer it.
Completed = Annotated[bool | SkipJsonSchema[None], Query(description="true: completed; false: pending")]
Status = Annotated[Literal["all", "pending", "completed"], Query(description="The same filter, in words")]
Search = Annotated[str | None, Query(max_length=200, pattern=NO_NUL, description="Text to find")]
Sort = Literal["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"]
SORTED_BY = {  # col() only tells type checkers that this is a column, not a value
    "created_at": col(Task.created_at),
    "updated_at": col(Task.updated_at),
    "title": func.lower(Task.title),
}


@router.get("", response_model=list[TaskPublic], summary="List your tasks")
def list_tasks(
    owner: CurrentOwner,
    session: SessionDep,
    request: Request,
    response: Response,
    skip: Skip = 0,
    limit: Limit = 100,
    completed: Completed = None,
    status: Status = "all",
    search: Search = None,
    sort: Sort = "-created_at",
) -> Sequence[Task]:
    """Your tasks, newest first unless you sort them. The `Link` header has the next and the previous page."""
    statement = select(Task).where(Task.user_id == owner)
    if status != "all":
        wanted = status == "completed"
        if completed not in (None, wanted):
            raise invalid("query", "status", "Status contradicts completed")
        completed = wanted
    if completed is not None:
        statement = statement.where(Task.completed == completed)
    if search:
        in_title = col(Task.title).icontains(search, autoescape=True)
        in_description = col(Task.description).icontains(search, autoescape=True)
        statement = statement.where(or_(in_title, in_description))
    order = [SORTED_BY[sort.removeprefix("-")], col(Task.id)]
    if sort.startswith("-"):
        order = [column.desc() for column in order]
    # One more than asked for shows whether there is a next page.
    tasks = session.exec(statement.order_by(*order).offset(skip).limit(limit + 1)).all()
    if len(tasks) > limit:
        response.headers.append("Link", page_link(request, skip + limit, "next"))
    if skip > 0:
        response.headers.append("Link", page_link(request, max(0, skip - limit), "prev"))
    return tasks[:limit]


def page_link(request: Request, skip: int, rel: str) -> str:
    query = request.url.include_query_params(skip=skip).query
    # The path is decoded, and headers are ASCII only.
    return f'<{quote(request.scope["path"])}?{query}>; rel="{rel}"'
