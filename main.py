"""The app: its start and stop, its health, and what all its answers have in common."""

import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from alembic.util import CommandError
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from limits.errors import StorageError
from sqlalchemy import exc, literal
from sqlmodel import select
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from auth import ORIGIN
from db import ProbeDep, engine, logger, migrate, refuse_to_start
from models import ERRORS, Health, Welcome, error_body, errors
from routes import auth as accounts
from routes import tasks

MAX_BODY = 64 * 1024
# The pages /docs and /redoc talk to nobody else: ReDoc would fetch a logo from its maker.
PAGES_POLICY = b"default-src 'self' 'unsafe-inline' data: blob:"


def cors_origins() -> list[str]:
    origins = (os.environ.get("CORS_ORIGINS") or "http://localhost:3000").split(",")
    origins = [origin.strip().rstrip("/").lower() for origin in origins if origin.strip()]
    for origin in origins:
        if not re.fullmatch(r"https?://[\w.-]+(:\d+)?|https?://\[[\da-f:]+\](:\d+)?", origin):
            refuse_to_start(f"CORS_ORIGINS has {origin!r}; it takes origins such as https://app.example.com")
    return origins


def one_line(error: Exception) -> str:
    """What went wrong, without the excerpt of the statement that PostgreSQL adds: data may stand in it."""
    cause = getattr(error, "orig", error)
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return " ".join((primary or str(cause)).split())


def take_sigterm_for_a_success() -> None:
    """uvicorn ends itself by the signal that it got, once all is finished: a crash, as its exit code says.
    Unless there is a handler already, such as the one of a worker, whose supervisor minds the exit code."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


take_sigterm_for_a_success()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    try:
        migrate()
    except (exc.SQLAlchemyError, CommandError, ValueError) as error:
        refuse_to_start(f"the database cannot be used: {one_line(error)}")
    yield
    engine.dispose()


def operation_id(route: APIRoute) -> str:
    return route.name


WHERE_TOKENS_ARE = (
    f"Sign in at {ORIGIN} and take a token from `authClient.token()`."
    if ORIGIN
    else "`POST /api/auth/register` makes an account; `POST /api/auth/login` answers with an `access_token`"
    " and your user's `id`."
)
DESCRIPTION = f"""
Tasks of many users, each of whom reaches only their own.

**First steps, right here on this page:**
1. {WHERE_TOKENS_ARE}
2. **Authorize**, at the top, takes the token.
3. Your user's `id` goes into the field `user_id`, and off you go.
"""
TAGS = [
    {"name": "accounts", "description": "Sign up, log in, log out"},
    {"name": "tasks", "description": "Make, find, change and delete your tasks"},
    {"name": "service", "description": "Is it there, and is it well?"},
]

app = FastAPIOffline(
    title="Todo API",
    version="1.0.0",
    description=DESCRIPTION,
    openapi_tags=TAGS,
    swagger_ui_parameters={"persistAuthorization": True},  # the token survives a reload
    lifespan=lifespan,
    redirect_slashes=False,
    generate_unique_id_function=operation_id,
)
for router in (tasks.router,) if ORIGIN else (tasks.router, accounts.router):
    app.include_router(router)


class CommonGround:
    """What all requests and answers have in common, wherever they go and come from."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].removesuffix("/")
        size = 0
        answered = False

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"The request body is larger than {MAX_BODY} bytes")
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                message["headers"].append((b"x-content-type-options", b"nosniff"))
                if scope["path"].startswith("/api/"):
                    message["headers"].append((b"cache-control", b"no-store"))
                else:
                    message["headers"].append((b"content-security-policy", PAGES_POLICY))
            await send(message)

        try:
            await self.app(scope, receive_within_limit, send_with_headers)
        except Exception:
            # Here rather than in a handler of the app: that would answer from outside of the CORS
            # middleware, and a browser would show the failure as a CORS error.
            if answered:
                raise
            logger.exception("Unexpected error")
            answer = error_answer(500, ERRORS[500][1])
            await answer(scope, receive, send_with_headers)


app.add_middleware(CommonGround)
app.add_middleware(
    CORSMiddleware,
    allow_origins=cors_origins(),
    allow_credentials=True,
    allow_methods=["*"],
    allow_headers=["*"],
    expose_headers=["Link", "Location", "Retry-After"],
)


def error_answer(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    detail: list[dict[str, Any]] | None = None,
) -> JSONResponse:
    return JSONResponse(error_body(status, message, detail), status, headers)


@app.exception_handler(AnyHTTPException)
async def http_error(_request: Request, error: AnyHTTPException) -> JSONResponse:
    return error_answer(error.status_code, error.detail, error.headers)


@app.exception_handler(RequestValidationError)
async def invalid_request(_request: Request, error: RequestValidationError) -> JSONResponse:
    """What is wrong and where, without the input itself: it may be secret, huge or no JSON at all."""
    detail = [{key: e[key] for key in ("type", "loc", "msg")} for e in error.errors()]
    first = detail[0]
    where = next(part for part in reversed(first["loc"]) if isinstance(part, str))
    what = "Text cannot contain the NUL character" if "pattern" in first["type"] else first["msg"]
    return error_answer(422, f"{where}: {what}", detail=detail)


@app.exception_handler(exc.DBAPIError)
@app.exception_handler(exc.TimeoutError)
@app.exception_handler(StorageError)
async def storage_error(_request: Request, error: Exception) -> JSONResponse:
    logger.error("%s: %s", type(error).__name__, one_line(error))
    if isinstance(error, exc.ProgrammingError | exc.DataError | exc.IntegrityError | exc.NotSupportedError):
        return error_answer(500, ERRORS[500][1])
    # Away, overloaded, read-only or the like: not for ever.
    return error_answer(503, ERRORS[503][1], {"Retry-After": "5"})


@app.get("/", tags=["service"], response_model=Welcome)
async def root() -> Any:
    """Where to look first."""
    return {"message": "Todo API is running", "docs": "/docs"}


@app.head("/health", include_in_schema=False)  # what uptime monitors like to send
@app.get("/health", tags=["service"], response_model=Health, responses=errors(503))
def health(session: ProbeDep) -> Any:
    """Whether the API can serve. It asks the database, so 200 means that tasks can be read."""
    session.exec(select(literal(1)))
    return {"status": "ok"}
