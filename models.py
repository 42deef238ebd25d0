"""The tables, and beside each what the API takes in and gives out."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import email_validator
from pydantic import EmailStr, JsonValue, Secret, StrictBool, StringConstraints
from pydantic import Field as PydanticField
from sqlalchemy import BigInteger, Index, Integer
from sqlmodel import Field, SQLModel
from typing_extensions import TypedDict

MAX_INTEGER = 2**63 - 1  # as far as both databases count


def shown(example: JsonValue, **limits: JsonValue) -> Any:
    """What /docs shows of a value: an example, which can be sent as it is, and limits that always hold."""
    return PydanticField(examples=[example], json_schema_extra=dict(limits))


# PostgreSQL cannot store the NUL character, so neither database is offered it.
# A title needs one character that is not blank: said in the pattern, so that clients can know.
Title = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$"
    ),
    shown("Water the plants"),
]
Description = Annotated[
    str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$"), shown("The fern likes it wet.")
]
# Addresses such as ann@app.test are fine for a demo, and no mail is ever sent.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()
Email = Annotated[
    EmailStr,
    StringConstraints(max_length=254, strip_whitespace=True, to_lower=True),
    shown("ann@example.com"),
]
# Kept to the letter, blanks and all. A Secret shows in no log and no traceback.
Password = Annotated[
    Secret[Annotated[str, StringConstraints(min_length=8, max_length=128)]],
    shown("correct horse", format="password", writeOnly=True),
]

# What goes out is described, not checked: a task is shown even if another program wrote it.
Id = Annotated[int, shown(1, minimum=1, maximum=MAX_INTEGER)]
UserId = Annotated[str, shown("4f1c0a92d86b47e39a5d2c61f0b8e374", minLength=1, maxLength=255)]
Time = Annotated[datetime, shown("2026-11-21T09:17:45.214236Z")]


def now() -> datetime:
    return datetime.now(UTC)


class Task(SQLModel, table=True):
    __tablename__ = "tasks"
    __table_args__ = (
        # A list in its default order, with and without the filter, is a walk along an index: no sort.
        Index("ix_tasks_user_created", "user_id", "created_at", "id"),
        Index("ix_tasks_user_completed_created", "user_id", "completed", "created_at", "id"),
        # SQLite alone would give the id of a deleted task to the next one.
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(
        default=None, primary_key=True, sa_type=BigInteger().with_variant(Integer, "sqlite")
    )
    # No foreign key: the accounts may live in Better Auth.
    user_id: str = Field(max_length=255)
    title: str = Field(max_length=200)
    description: str | None = Field(default=None, max_length=1000)
    completed: bool = False
    created_at: datetime = Field(default_factory=now)
    updated_at: datetime = Field(default_factory=now)


# Fields that may be left out have factories, because a plain default would stand in the schema, and
# generated clients would take the field for one that is always there.
class TaskCreate(SQLModel):
    title: Title
    description: Description | None = Field(default_factory=lambda: None)
    completed: Annotated[StrictBool, shown(example=False)] = Field(default_factory=bool)


class TaskUpdate(TaskCreate):
    title: Title = Field(default_factory=str)


class TaskPublic(TypedDict):
    """A dictionary made of a row: cheaper than an object, which counts in a list of a thousand."""

    id: Id
    user_id: UserId
    title: Annotated[str, shown("Water the plants", minLength=1, maxLength=200)]
    description: Annotated[str | None, shown("The fern likes it wet.", maxLength=1000)]
    completed: Annotated[bool, shown(example=False)]
    created_at: Time
    updated_at: Time


class User(SQLModel, table=True):
    """An account of the built-in login. Unused with Better Auth, whose own table is called `user`."""

    __tablename__ = "users"

    id: str = Field(primary_key=True, max_length=32)
    email: str = Field(max_length=254, unique=True)  # in lower case
    password_hash: str = Field(max_length=255)
    token_generation: int = 0  # tokens of earlier generations are signed out
    created_at: datetime


class Credentials(SQLModel):
    email: Email
    password: Password


class UserPublic(SQLModel):
    id: UserId
    email: Annotated[str, shown("ann@example.com", format="email")]
    created_at: Time


class Me(SQLModel):
    """The user of a token. With a token from elsewhere, email may be null and created_at is."""

    id: UserId
    email: Annotated[str | None, shown("ann@example.com")]
    created_at: Time | None


class Login(SQLModel):
    access_token: Annotated[str, shown("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0ZjFjIn0.c2lnbmF0dXJl")]
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
    expires_in: Annotated[int, shown(3600, minimum=1)]
    user: UserPublic


class Welcome(SQLModel):
    message: Annotated[str, shown("Todo API is running")]
    docs: Annotated[str, shown("/docs")]


class Health(SQLModel):
    status: Literal["ok"]


class ErrorInfo(SQLModel):
    code: str
    message: str


class ErrorDetail(SQLModel):
    type: str
    loc: list[str | int]
    msg: str


class ErrorAnswer(SQLModel):
    """The one shape of every error."""

    success: Literal[False]
    error: ErrorInfo
    detail: str | list[ErrorDetail]


# The code of each error, and what it may say.
ERRORS = {
    400: ("bad_request", "There was an error parsing the body"),
    401: ("unauthorized", "Not authenticated"),
    403: ("forbidden", "These tasks belong to another user"),
    404: ("not_found", "Task not found"),
    405: ("method_not_allowed", "Method Not Allowed"),
    409: ("conflict", "There is already an account with this e-mail address"),
    413: ("body_too_large", "The request body is larger than 65536 bytes"),
    422: ("validation_error", "title: Field required"),
    429: ("too_many_requests", "Too many attempts, try again later"),
    500: ("internal_error", "Something went wrong on our side"),
    503: ("service_unavailable", "The service is not available at the moment, try again soon"),
}


def error_body(status: int, message: str, detail: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    code = ERRORS[status][0] if status in ERRORS else "error"
    return {"success": False, "error": {"code": code, "message": message}, "detail": detail or message}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How an endpoint can fail, for its documentation."""
    missing = [{"type": "missing", "loc": ["body", "title"], "msg": "Field required"}]
    documented: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        message = ERRORS[status][1]
        example = error_body(status, message, missing if status == 422 else None)
        content = {"application/json": {"example": example}}
        description = "The request is not valid" if status == 422 else message
        documented[status] = {"model": ErrorAnswer, "description": description, "content": content}
    return documented
