"""The one shape of every error: how it looks, how it is documented, and what becomes of each exception."""

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

from db import logger, one_line

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
    return error_response(error.status_code, error.detail, error.headers)


async def invalid_request(_request: Request, error: RequestValidationError) -> JSONResponse:
    # Without the input itself: it may be secret, huge or no JSON at all.
    detail = [{key: e[key] for key in ("type", "loc", "msg")} for e in error.errors()]
    first = detail[0]  # its loc is ("body", "title"), or ("body", 17) where JSON breaks off
    field = next(part for part in reversed(first["loc"]) if isinstance(part, str))
    # Pydantic's own words for these two are for programmers. All patterns refuse NUL, and a blank title has
    # failed min_length before.
    messages = {
        "string_pattern_mismatch": "Text cannot contain the NUL character",
        "model_attributes_type": "Send a JSON object, with Content-Type: application/json",
    }
    return error_response(422, f"{field}: {messages.get(first['type'], first['msg'])}", detail=detail)


async def storage_error(_request: Request, error: Exception) -> JSONResponse:
    logger.error("%s: %s", type(error).__name__, one_line(error))
    if isinstance(error, exc.ProgrammingError | exc.DataError | exc.IntegrityError | exc.NotSupportedError):
        return error_response(500)
    # Away, overloaded, read-only or the like: not for ever.
    message = "The service is not available at the moment, try again soon"
    return error_response(503, message, {"Retry-After": "5"})


HANDLERS: dict[Any, Any] = {
    HTTPException: http_error,
    RequestValidationError: invalid_request,
    exc.DBAPIError: storage_error,
    exc.TimeoutError: storage_error,
    StorageError: storage_error,
}
