"""The task endpoints. Each is one statement, and each statement touches the caller's own tasks only."""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from sqlalchemy import Row, asc, bindparam, case, delete, desc, func, insert, not_, or_, update
from sqlmodel import SQLModel, select

from auth import CurrentOwner
from db import SessionDep
from models import MAX_INTEGER, TaskCreate, TaskPublic, TaskUpdate, errors, now

router = APIRouter(prefix="/api/{user_id}/tasks", tags=["tasks"], responses=errors(401, 403, 422, 500, 503))

# The statements are built once: building one costs as much as running it.
# They name the table rather than the model, because rows answer as well as objects and cost less.
tasks = SQLModel.metadata.tables["tasks"]
columns = tasks.c

# The one place that says whose tasks a statement may touch.
own_tasks = columns.user_id == bindparam("owner")
own_task = own_tasks & (columns.id == bindparam("task_id"))

# What an update leaves in each column: what was sent, or else what was there.
updated = {
    "title": func.coalesce(bindparam("new_title", type_=columns.title.type), columns.title),
    "description": case(
        (bindparam("keeps_description"), columns.description),
        else_=bindparam("new_description", type_=columns.description.type),
    ),
    "completed": func.coalesce(bindparam("new_completed", type_=columns.completed.type), columns.completed),
}
differs = or_(*(columns[name].is_distinct_from(value) for name, value in updated.items()))
update_time = bindparam("now", type_=columns.updated_at.type)

CREATE = insert(tasks).returning(*columns)
GET = select(*columns).where(own_task)
# An update that changes nothing leaves the time as well, so that repeating one is no change.
UPDATE = (
    update(tasks)
    .where(own_task)
    .values(**updated, updated_at=case((differs, update_time), else_=columns.updated_at))
    .returning(*columns)
)
TOGGLE = (
    update(tasks)
    .where(own_task)
    .values(completed=not_(columns.completed), updated_at=update_time)
    .returning(*columns)
)
DELETE = delete(tasks).where(own_task).returning(*columns)

Sort = Literal["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"]


@cache
def list_statement(sort: Sort, filtered: bool, searched: bool) -> Any:
    key = sort.removeprefix("-")
    direction = desc if sort.startswith("-") else asc
    statement = select(*columns).where(own_tasks)
    if filtered:
        statement = statement.where(columns.completed == bindparam("only_completed"))
    if searched:
        texts = (columns.title, columns.description)
        statement = statement.where(or_(*(t.ilike(bindparam("pattern"), escape="\\") for t in texts)))
    by = func.lower(columns.title) if key == "title" else columns[key]
    statement = statement.order_by(direction(by), direction(columns.id))
    return statement.offset(bindparam("skip")).limit(bindparam("limit"))


def substring_pattern(text: str) -> str:
    for special in ("\\", "%", "_"):
        text = text.replace(special, "\\" + special)
    return f"%{text}%"


def as_task(row: Row[Any]) -> dict[str, Any]:
    return dict(zip(columns.keys(), row, strict=True))


def the_one(rows: Sequence[Row[Any]]) -> dict[str, Any]:
    if not rows:
        raise HTTPException(404, "Task not found")
    return as_task(rows[0])


TaskId = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="The task's `id`", examples=[1])]
Skip = Annotated[int, Query(ge=0, le=MAX_INTEGER, description="How many tasks to leave out")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many tasks to list at most")]
Completed = Annotated[bool | None, Query(description="Only completed tasks, or only others")]
Search = Annotated[
    str | None,
    Query(max_length=200, pattern=r"^[^\x00]*$", description="Text in the title or the description"),
]
Order = Annotated[Sort, Query(description="What to sort by; `-` for descending")]


def documented_header(name: str, description: str) -> dict[str, Any]:
    return {"headers": {name: {"description": description, "schema": {"type": "string"}}}}


LINK = documented_header("Link", 'The next and the previous page, as `rel="next"` and `rel="prev"`')
LOCATION = documented_header("Location", "Where the task is from now on")


@router.get("", response_model=list[TaskPublic], responses={200: LINK})
def list_tasks(
    user: CurrentOwner,
    session: SessionDep,
    request: Request,
    response: Response,
    skip: Skip = 0,
    limit: Limit = 100,
    completed: Completed = None,
    search: Search = None,
    sort: Order = "-created_at",
) -> Any:
    """Your tasks, newest first. A `Link` header points to the next and the previous page."""
    statement = list_statement(sort, completed is not None, bool(search))
    values = {"owner": user, "skip": skip, "limit": limit + 1}  # one more tells whether there is more
    values |= {"only_completed": completed, "pattern": substring_pattern(search or "")}
    rows = session.exec(statement, **values)
    pages = {"next": skip + limit} if len(rows) > limit else {}
    if skip:
        pages["prev"] = max(0, skip - limit)
    if pages:
        path = quote(request.scope["path"])
        response.headers["Link"] = ", ".join(
            f'<{path}?{request.url.include_query_params(skip=start).query}>; rel="{rel}"'
            for rel, start in pages.items()
        )
    return [as_task(row) for row in rows[:limit]]


@router.post("", response_model=TaskPublic, status_code=201, responses=errors(400, 413) | {201: LOCATION})
def create_task(
    user: CurrentOwner, session: SessionDep, task: TaskCreate, request: Request, response: Response
) -> Any:
    """Make a task. `Location` says where it is from now on."""
    times = dict.fromkeys(("created_at", "updated_at"), now())
    made = the_one(session.exec(CREATE, user_id=user, **task.model_dump(), **times))
    response.headers["Location"] = f"{quote(request.scope['path'])}/{made['id']}"
    return made


@router.get("/{task_id}", response_model=TaskPublic, responses=errors(404))
def get_task(user: CurrentOwner, session: SessionDep, task_id: TaskId) -> Any:
    """One of your tasks."""
    return the_one(session.exec(GET, owner=user, task_id=task_id))


@router.patch(
    "/{task_id}", response_model=TaskPublic, responses=errors(400, 404, 413), operation_id="patch_task"
)
@router.put("/{task_id}", response_model=TaskPublic, responses=errors(400, 404, 413))
def update_task(user: CurrentOwner, session: SessionDep, task_id: TaskId, task: TaskUpdate) -> Any:
    """Change a task. Fields that you leave out stay as they are; `"description": null` clears it."""
    sent = task.model_dump(exclude_unset=True)
    values = {f"new_{name}": sent.get(name) for name in updated}
    values |= {"keeps_description": "description" not in sent, "now": now()}
    return the_one(session.exec(UPDATE, owner=user, task_id=task_id, **values))


@router.delete("/{task_id}", status_code=204, responses=errors(404))
def delete_task(user: CurrentOwner, session: SessionDep, task_id: TaskId) -> None:
    """Delete a task, for good."""
    the_one(session.exec(DELETE, owner=user, task_id=task_id))


@router.patch("/{task_id}/complete", response_model=TaskPublic, responses=errors(404))
def toggle_task(user: CurrentOwner, session: SessionDep, task_id: TaskId) -> Any:
    """Mark a task as completed, or as not completed if it was."""
    return the_one(session.exec(TOGGLE, owner=user, task_id=task_id, now=now()))
