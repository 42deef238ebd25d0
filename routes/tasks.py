"""The task endpoints. Each runs one statement, and a statement reaches the tasks of one user only."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import UpdateBase
from sqlmodel import Session, and_, bindparam, col, delete, func, not_, or_, select, update

from auth import CurrentOwner
from db import SessionDep
from models import NO_NUL, Task, TaskCreate, TaskPublic, TaskUpdate, now
from routes.errors import can_fail

router = APIRouter(prefix="/api/{user_id}/tasks", tags=["tasks"], responses=can_fail(401, 403, 422, 500, 503))

# 2**63 - 1 is the largest integer that both databases store.
TaskId = Annotated[int, Path(ge=1, le=2**63 - 1, description="The task's `id`", examples=[1])]

# The one place that says which tasks a statement may reach. bindparam("owner") is a placeholder, whose value
# comes in params: so the statements below are built once, at import. (No placeholder may have the name of a
# column: in params, those are the columns that an update sets.)
own_tasks = col(Task.user_id) == bindparam("owner")
own_task_with_id = and_(own_tasks, col(Task.id) == bindparam("task_id"))

Skip = Annotated[int, Query(ge=0, le=2**63 - 1, description="How many tasks to leave out")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many tasks to list at most")]
# SkipJsonSchema: there is nothing to send for null; leave it out.
Completed = Annotated[bool | SkipJsonSchema[None], Query(description="Completed tasks only, or open ones")]
Search = Annotated[str | None, Query(max_length=200, pattern=NO_NUL, description="Text in a task")]
Sort = Literal["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"]
TASKS = select(Task).where(own_tasks).offset(bindparam("skip")).limit(bindparam("limit"))
by_id = col(Task.id)
SORTED_TASKS = {
    "created_at": TASKS.order_by(col(Task.created_at), by_id),
    "-created_at": TASKS.order_by(col(Task.created_at).desc(), by_id.desc()),
    "updated_at": TASKS.order_by(col(Task.updated_at), by_id),
    "-updated_at": TASKS.order_by(col(Task.updated_at).desc(), by_id.desc()),
    "title": TASKS.order_by(func.lower(Task.title), by_id),
    "-title": TASKS.order_by(func.lower(Task.title).desc(), by_id.desc()),
}


@router.get("", response_model=list[TaskPublic], summary="List your tasks")
def list_tasks(
    user: CurrentOwner,
    session: SessionDep,
    request: Request,
    response: Response,
    skip: Skip = 0,
    limit: Limit = 100,
    completed: Completed = None,
    search: Search = None,
    sort: Sort = "-created_at",
) -> Sequence[Task]:
    """Your tasks, newest first unless sort says otherwise. The header Link leads to the pages around it."""
    statement = SORTED_TASKS[sort]
    if completed is not None:
        statement = statement.where(Task.completed == completed)
    if search:
        in_title = col(Task.title).icontains(search, autoescape=True)
        in_description = col(Task.description).icontains(search, autoescape=True)
        statement = statement.where(or_(in_title, in_description))
    params = {"owner": user, "skip": skip, "limit": limit + 1}  # one more tells whether there is a next page
    tasks = session.exec(statement, params=params).all()
    if len(tasks) > limit:
        response.headers.append("Link", page_link(request, skip + limit, "next"))
    if skip > 0:
        response.headers.append("Link", page_link(request, max(0, skip - limit), "prev"))
    return tasks[:limit]


def page_link(request: Request, skip: int, rel: str) -> str:
    query = request.url.include_query_params(skip=skip).query
    # The server has decoded the path, and a header takes ASCII alone.
    return f'<{quote(request.scope["path"])}?{query}>; rel="{rel}"'


@router.post("", response_model=TaskPublic, status_code=201, responses=can_fail(400, 413), summary="Add one")
def create_task(
    user: CurrentOwner, session: SessionDep, new: TaskCreate, request: Request, response: Response
) -> Task:
    """Make a task. The `Location` header is its URL."""
    time = now()
    task = Task(user_id=user, created_at=time, updated_at=time, **new.model_dump())
    session.add(task)
    session.commit()  # one INSERT ... RETURNING id; no refresh(), since our commit expires nothing, see db.py
    response.headers["Location"] = f"{quote(request.scope['path'])}/{task.id}"
    return task


def task_or_404(task: Task | None) -> Task:
    if task is None:
        raise HTTPException(404, "Task not found")
    return task


GET_TASK = select(Task).where(own_task_with_id)


@router.get("/{task_id}", response_model=TaskPublic, responses=can_fail(404), summary="Read one")
def get_task(user: CurrentOwner, session: SessionDep, task_id: TaskId) -> Task:
    return task_or_404(session.exec(GET_TASK, params={"owner": user, "task_id": task_id}).first())


def write_task(session: Session, statement: UpdateBase, params: dict[str, Any]) -> Task:
    options = {"synchronize_session": False}  # the session is new, and holds no task that could be outdated
    task = session.exec(statement, params=params, execution_options=options).scalar_one_or_none()
    session.commit()  # nothing is left to do for our engine in autocommit, but for others, as in tests
    return task_or_404(task)


# It sets each column that params names, such as title. The next constant, TOGGLE_TASK, sets one more.
UPDATE_TASK = update(Task).where(own_task_with_id).returning(Task)
# Two routes of one function need two names, for generated clients.
CHANGE: dict[str, Any] = {"response_model": TaskPublic, "responses": can_fail(400, 404, 413)}


@router.patch("/{task_id}", **CHANGE, summary="Change one, as PUT does", name="patch_task")
@router.put("/{task_id}", **CHANGE, summary="Change one")
def update_task(user: CurrentOwner, session: SessionDep, task_id: TaskId, changes: TaskUpdate) -> Task:
    """Change a task. Fields that you leave out stay as they are; `"description": null` clears it."""
    columns = changes.model_dump(exclude_unset=True) | {"updated_at": now()}
    return write_task(session, UPDATE_TASK, {"owner": user, "task_id": task_id, **columns})


TOGGLE_TASK = UPDATE_TASK.values(completed=not_(col(Task.completed)))


@router.patch("/{task_id}/complete", response_model=TaskPublic, responses=can_fail(404), summary="Toggle one")
def toggle_task(user: CurrentOwner, session: SessionDep, task_id: TaskId) -> Task:
    """Mark a task as completed, or as not completed if it was."""
    return write_task(session, TOGGLE_TASK, {"owner": user, "task_id": task_id, "updated_at": now()})


DELETE_TASK = delete(Task).where(own_task_with_id).returning(Task)


@router.delete("/{task_id}", status_code=204, responses=can_fail(404), summary="Delete one")
def delete_task(user: CurrentOwner, session: SessionDep, task_id: TaskId) -> None:
    write_task(session, DELETE_TASK, {"owner": user, "task_id": task_id})
