"""The tables, each with its request and response models."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import email_validator
from pydantic import MISSING, EmailStr, Secret, StrictBool, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import BigInteger, Index, Integer
from sqlmodel import Field, SQLModel

BIG_INTEGER = BigInteger().with_variant(Integer, "sqlite")  # SQLite needs INTEGER for its ids
# Migrations need names for indexes and constraints. PostgreSQL gives names, such as users_email_key; SQLite
# gives none. So we do, in PostgreSQL's way.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(column_0_label)s",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
}


def now() -> datetime:
    return datetime.now(UTC)


class Task(SQLModel, table=True):
    __tablename__ = "tasks"
    __table_args__ = (
        # Lists are newest first by default. The database reads these indexes backwards, and need not sort.
        Index("ix_tasks_user_created", "user_id", "created_at", "id"),
        Index("ix_tasks_user_completed_created", "user_id", "completed", "created_at", "id"),
        # For tables of yours, such as comments (docs/learn.md, exercise 4): their foreign key has these two
        # columns, so nobody can comment on the task of another user.
        Index("uq_tasks_user_id_id", "user_id", "id", unique=True),
        # Without this, SQLite may give the id of a deleted task to a new one.
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BIG_INTEGER)
    user_id: str = Field(max_length=255)  # no foreign key: the accounts may be in Better Auth
    title: str = Field(max_length=200)
    description: str | None = Field(default=None, max_length=1000)
    completed: bool = False
    created_at: datetime = Field(default_factory=now)
    updated_at: datetime = Field(default_factory=now)


# PostgreSQL cannot store the NUL character, so the API accepts it for neither database.
NO_NUL = r"^[^\x00]*$"
# Nor only spaces. (The API strips titles, and then checks min_length; this tells generated clients.)
NOT_BLANK = r"^[^\x00]*[^\x00\s][^\x00]*$"
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=NOT_BLANK),
    Field(schema_extra={"examples": ["Water the plants"]}),
]
Description = Annotated[
    str,
    StringConstraints(max_length=1000, pattern=NO_NUL),
    Field(schema_extra={"examples": ["The fern likes it wet."]}),
]


# MISSING means "not sent": model_dump() leaves it out, and /openapi.json shows no default.
class TaskCreate(SQLModel):
    title: Title
    description: Description | MISSING | None = MISSING
    completed: Annotated[StrictBool, Field(schema_extra={"examples": [False]})] | MISSING = MISSING


class TaskUpdate(TaskCreate):
    title: Title | MISSING = MISSING  # type: ignore[assignment]

    # Unknown fields are ignored (in development, the log names them), so that a client can send back a whole
    # task. A body that has nothing but unknown fields is a 422. (An empty one only sets updated_at.)
    @model_validator(mode="before")
    @classmethod
    def has_a_known_field(cls, body: object) -> object:
        if isinstance(body, dict) and body and cls.model_fields.keys().isdisjoint(body):
            known = {"known": ", ".join(cls.model_fields)}
            raise PydanticCustomError("unknown_fields", "Send at least one of: {known}", known)
        return body


class TaskPublic(SQLModel):
    id: int
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: datetime
    updated_at: datetime


# An account of the built-in login. Better Auth has its own accounts, in a table called `user`.
class User(SQLModel, table=True):
    __tablename__ = "users"

    id: str = Field(primary_key=True, max_length=32)
    email: str = Field(max_length=254, unique=True)  # in lower case
    password_hash: str = Field(max_length=255)
    token_generation: int = 0  # tokens of earlier generations are revoked
    created_at: datetime = Field(default_factory=now)


# Addresses such as ann@app.test are fine for a demo, and no mail is ever sent.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()
Email = Annotated[
    EmailStr,
    StringConstraints(max_length=254, strip_whitespace=True, to_lower=True),
    Field(schema_extra={"examples": ["ann@example.com"]}),
]


PASSWORD = Field(schema_extra={"examples": ["correct horse"], "json_schema_extra": {"format": "password"}})


# Passwords are used as typed, spaces included. Once accepted, a Secret never shows in a log or traceback.
# (Pydantic's SecretStr would do the same, but complain that a short one "should have at least 8 items".)
Password = Annotated[Secret[Annotated[str, StringConstraints(max_length=1000)]], PASSWORD]
NewPassword = Annotated[Secret[Annotated[str, StringConstraints(min_length=8, max_length=128)]], PASSWORD]


class Credentials(SQLModel):
    email: Email
    password: Password


class NewAccount(Credentials):
    password: NewPassword


class AccountDeletion(SQLModel):
    password: Password


class PasswordChange(SQLModel):
    password: Password
    new_password: NewPassword


class UserPublic(SQLModel):
    id: str
    email: str | None  # other servers' tokens may lack it
    created_at: datetime | None  # only the built-in accounts know it


class Login(SQLModel):
    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
    expires_in: int
    user: UserPublic


class Registered(UserPublic, Login):  # registering also logs in
    pass
