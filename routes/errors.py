"""The one shape of every error: how it looks, how it is documented, and what becomes of each exception."""

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

# The stable words for programs, where they are not HTTP's own.
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
    if error.status_code == 401:  # many frontends leave the page before anybody reads our message
        warn_once("A request was refused with 401: %s", error.detail)
    return error_response(error.status_code, error.detail, error.headers)


async def invalid_request(_request: Request, error: RequestValidationError) -> JSONResponse:
    # Without the input itself: it may be secret, huge or no JSON at all.
    detail = [{key: e[key] for key in ("type", "loc", "msg")} for e in error.errors()]
    first = error.errors()[0]
    # ("body", "title") or ("query", "completed", "bool"), but ("body", 17) where JSON breaks off
    where = first["loc"]
    field = where[1] if len(where) > 1 and isinstance(where[1], str) else where[0]
    message = first["msg"]
    if first["type"] == "string_pattern_mismatch" and "\0" in first["input"]:
        message = "Text cannot contain the NUL character"
    if first["type"] == "model_attributes_type":
        message = "Send a JSON object, with Content-Type: application/json"
    return error_response(422, f"{field}: {message}", detail=detail)


# 503: the database is away, overloaded, read-only or the like, but not for ever. 500: the mistake is ours.
def status_of(error: Exception) -> int:
    no_files_left = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    expected = exc.DBAPIError | exc.TimeoutError | StorageError | OwnerMissingError
    known = isinstance(error, expected) or no_files_left
    logger.error("%s: %s", type(error).__name__, summary(error), exc_info=None if known else error)
    # SQLITE_ERROR is SQLite's word for a wrong statement, such as one that names a missing table.
    wrong_on_sqlite = getattr(getattr(error, "orig", None), "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    if wrong_on_sqlite or isinstance(error, exc.ProgrammingError):
        logger.error("Do the tables differ from models.py? Make a migration, or: alembic upgrade head")
        return 500
    ours = isinstance(error, exc.DataError | exc.IntegrityError | exc.NotSupportedError | OwnerMissingError)
    return 503 if known and not ours else 500


async def failure(_request: Request, error: Exception) -> JSONResponse:
    if status_of(error) == 500:
        return error_response(500)
    message = "The service is not available at the moment, try again soon"
    return error_response(503, message, {"Retry-After": "5"})


HANDLERS: dict[Any, Any] = {HTTPException: http_error, RequestValidationError: invalid_request}
