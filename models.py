"""The tables, and beside each what the API takes in and gives out."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import EmailStr, Secret, StrictBool, StringConstraints
from sqlalchemy import BigInteger, Index, Integer
from sqlmodel import Field, SQLModel

# PostgreSQL cannot store the NUL character, so neither database is offered it.
# A title needs one character that is not blank: said in the pattern, so that clients can know.
Title = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00]*[^\x00\s][^\x00]*$"
    ),
]
Description = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$")]
Email = Annotated[EmailStr, StringConstraints(max_length=254, strip_whitespace=True, to_lower=True)]
# Kept to the letter, blanks and all. A Secret shows in no log and no traceback.
Password = Annotated[
    Secret[Annotated[str, StringConstraints(min_length=8, max_length=128)]],
    Field(schema_extra={"json_schema_extra": {"format": "password", "writeOnly": True}}),
]


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


class TaskCreate(SQLModel):
    title: Title
    description: Description | None = None
    completed: StrictBool = False


class TaskUpdate(SQLModel):
    # Only the fields that were sent count. Factories, because a plain default would show in the
    # schema and tell generated clients that the field is always there.
    title: Title = Field(default_factory=str)
    description: Description | None = Field(default_factory=lambda: None)
    completed: StrictBool = Field(default_factory=bool)


class TaskPublic(SQLModel):
    id: int
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: datetime
    updated_at: datetime


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
    id: str
    email: str
    created_at: datetime


class Me(SQLModel):
    """The user of a token; one from elsewhere has no account here, and says what it says."""

    id: str
    email: str | None
    created_at: datetime | None


class Login(SQLModel):
    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
    expires_in: int
    user: UserPublic


class ErrorInfo(SQLModel):
    code: str
    message: str


class ErrorDetail(SQLModel):
    type: str
    loc: list[str | int]
    msg: str


class ErrorAnswer(SQLModel):
    """The one shape of every error."""

    success: Literal[False] = False
    error: ErrorInfo
    detail: str | list[ErrorDetail]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of an endpoint or a router, for its documentation."""
    return {status: {"model": ErrorAnswer} for status in statuses}
