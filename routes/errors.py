"""The error format: how an error looks, how it is documented, and what happens to each exception."""

import errno
import sqlite3
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from limits.errors import StorageError
from sqlalchemy import exc
from sqlmodel import SQLModel
from starlette.exceptions import HTTPException

from hardening.database import summary
from hardening.isolation import OwnerMissingError
from hardening.settings import logger, warn_once

# The `code` of an error. All others are HTTP's names, such as not_found.
CODES = {413: "body_too_large", 422: "validation_error", 500: "internal_error"}


class ErrorInfo(SQLModel):
    code: str
    message: str


class ErrorDetail(SQLModel):
    type: str
    loc: list[str | int]
    msg: str


class ErrorResponse(SQLModel):
    success: Literal[False]
    error: ErrorInfo
    detail: str | list[ErrorDetail]


# For `responses=`: how an endpoint can fail, in its documentation.
def can_fail(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorResponse, "description": HTTPStatus(code).phrase} for code in statuses}


def error_response(
    status: int,
    message: str = "Something went wrong on our side",
    headers: Mapping[str, str] | None = None,
    detail: list[dict[str, Any]] | None = None,
) -> JSONResponse:
    error = {"code": CODES.get(status) or HTTPStatus(status).name.lower(), "message": message}
    return JSONResponse({"success": False, "error": error, "detail": detail or message}, status, headers)


async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
    if error.status_code == 401:  # many frontends go to their login page and do not show the message
        warn_once("A request was refused with 401: %s", error.detail)
    return error_response(error.status_code, error.detail, error.headers)


async def invalid_request(_request: Request, error: RequestValidationError) -> JSONResponse:
    # Without the input itself: it may be secret, huge or no JSON at all.
    detail = [{key: e[key] for key in ("type", "loc", "msg")} for e in error.errors()]
    first = error.errors()[0]
    # ("body", "title") or ("query", "completed", "bool"), but ("body", 17) for invalid JSON
    where = first["loc"]
    field = where[1] if len(where) > 1 and isinstance(where[1], str) else where[0]
    message = first["msg"]
    if first["type"] == "string_pattern_mismatch" and "\0" in first["input"]:
        message = "Text cannot contain the NUL character"
    if first["type"] == "model_attributes_type":
        message = "Send a JSON object, with Content-Type: application/json"
    return error_response(422, f"{field}: {message}", detail=detail)


# For what FastAPI cannot check: two values that contradict each other.
def invalid(place: str, field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": (place, field), "msg": message}])


async def unavailable(_request: Request, error: Exception) -> JSONResponse:
    logger.error(describe(error))
    message = "The service is not available at the moment, try again soon"
    return error_response(503, message, {"Retry-After": "5"})


class StatementRefusedError(Exception):
    pass


async def database_error(request: Request, error: exc.DBAPIError) -> JSONResponse:
    if not is_bug(error):
        return await unavailable(request, error)
    # Raised, so that it becomes a 500 in main.py. `from None`: the database's message may quote a user's
    # data, and stays out of the log.
    raise StatementRefusedError(describe(error)).with_traceback(error.__traceback__) from None


async def os_error(request: Request, error: OSError) -> JSONResponse:
    if error.errno not in (errno.EMFILE, errno.ENFILE):  # too many open files (a connection counts as one)
        raise error
    return await unavailable(request, error)


async def owner_missing(request: Request, error: OwnerMissingError) -> JSONResponse:
    endpoint = request.scope["endpoint"]
    logger.error("%s.%s: %s", endpoint.__module__, endpoint.__name__, describe(error))
    return error_response(500)


# Is it a bug in our code? If not, the database is down, overloaded or read-only for now.
def is_bug(error: Exception) -> bool:
    ours = exc.DataError | exc.IntegrityError | exc.NotSupportedError
    return isinstance(error, ours) or is_wrong_statement(error)


def is_wrong_statement(error: Exception) -> bool:
    # SQLITE_ERROR is SQLite's code for a wrong statement, such as one that names a missing table.
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return isinstance(error, exc.ProgrammingError) or code == sqlite3.SQLITE_ERROR


def describe(error: Exception) -> str:
    hint = ". Do the tables differ from models.py? Make a migration, or: alembic upgrade head"
    return f"{type(error).__name__}: {summary(error)}{hint if is_wrong_statement(error) else ''}"


# Any other exception is a bug, see main.py.
HANDLERS: dict[Any, Any] = {
    HTTPException: http_error,
    RequestValidationError: invalid_request,
    OwnerMissingError: owner_missing,
    exc.DBAPIError: database_error,
    exc.TimeoutError: unavailable,
    StorageError: unavailable,
    OSError: os_error,
}
