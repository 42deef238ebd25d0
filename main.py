"""The Todo API. Start it with `uvicorn main:app`, and read on in routes/tasks.py."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache

import anyio
from fastapi import FastAPI, HTTPException, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, select
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from auth import CORS_ORIGINS, ORIGIN, WHERE_TOKENS_ARE
from db import engine, logger, migrate, one_line
from models import Task
from routes import auth, tasks
from routes.errors import HANDLERS, can_fail, error_response


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    migrate()
    logger.info("Tokens: %s", f"of {ORIGIN}" if ORIGIN else "signed with BETTER_AUTH_SECRET")
    yield
    engine.dispose()


app = FastAPIOffline(  # FastAPI, whose /docs need no other server
    title="Todo API",
    version="1.0.0",
    description=f"""Tasks of many users, each of whom reaches only their own. First steps, right here:
1. {WHERE_TOKENS_ARE}
2. **Authorize**, on this page, takes the token.
3. *Whose token is this?* tells your user's id. Put it into the field user_id.
""",
    swagger_ui_parameters={"persistAuthorization": True},  # the token survives a reload
    lifespan=lifespan,
    exception_handlers=HANDLERS,
    generate_unique_id_function=lambda route: route.name,  # what generated clients call the endpoint
)
app.include_router(tasks.router)
app.include_router(auth.router)  # /me, whoever issued the token
if not ORIGIN:  # without Better Auth, accounts of our own
    app.include_router(auth.accounts)


@app.get("/", tags=["service"], summary="Is it running?")
async def root() -> dict[str, str]:
    return {"message": "Todo API is running", "docs": "/docs"}


def ask_database() -> None:
    with Session(engine) as session:
        session.exec(select(Task.id).limit(1)).first()


class Health:  # the last result, shared by all who ask
    checking = anyio.Lock()
    known_until = 0.0
    good = False


@app.head("/health", include_in_schema=False)  # what uptime monitors like to send
@app.get("/health", tags=["service"], summary="Can it serve?", responses=can_fail(503))
async def health() -> dict[str, str]:
    """Asks the database, so 200 means that tasks can be read. The response may be a second old."""
    async with Health.checking:  # whoever waits here finds the result of who came first
        if time.monotonic() > Health.known_until:
            Health.good = False
            try:
                with anyio.move_on_after(1.5):
                    await anyio.to_thread.run_sync(ask_database, abandon_on_cancel=True)
                    Health.good = True
            except SQLAlchemyError as error:
                logger.error("Not healthy: %s", one_line(error))
            Health.known_until = time.monotonic() + 1
        if Health.good:
            return {"status": "ok"}
    raise HTTPException(503, "The database does not respond", {"Retry-After": "5"})


# Refuses large bodies (FastAPI's max_body_size would do so without our shape of errors and CORS headers), and
# treats /tasks/ as /tasks (FastAPI would redirect). In ASGI, scope describes the request, receive() brings
# its body in pieces, and send() takes the response.
class LimitRequests:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > 65536:
                raise HTTPException(413, "The request body is larger than 65536 bytes")
            return message

        if scope["type"] == "http" and scope["path"] != scope["root_path"] + "/":
            scope["path"] = scope["path"].removesuffix("/")
        await self.app(scope, receive_within_limit, send)


# Adds headers, and responds to unexpected failures.
class SecureResponses:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                content_type = headers.get("Content-Type", "")
                if content_type.startswith("application/json"):
                    headers["Cache-Control"] = "no-store"
                elif content_type.startswith("text/html"):
                    # /docs and /redoc talk to nobody else: ReDoc would fetch a logo from its maker.
                    headers["Content-Security-Policy"] = "default-src 'self' 'unsafe-inline' data: blob:"
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:  # noqa: BLE001  (it is logged, and becomes a response)
            logger.exception("Unexpected error")
            # Starlette would respond outside of the CORS middleware, and a browser would show a CORS error.
            response = error_response(500)
            await response(scope, receive, send_with_headers)


warn_once = lru_cache(maxsize=100)(logger.warning)  # so a repeated call does nothing


class CORS(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        origin = request_headers["Origin"][:100]
        if not self.is_allowed_origin(origin):
            warn_once("A browser at %r was refused: CORS_ORIGINS does not list it", origin)
        return super().preflight_response(request_headers)


# The one that is added last is the outermost.
app.add_middleware(LimitRequests)
app.add_middleware(SecureResponses)
app.add_middleware(
    CORS,
    allow_origins=CORS_ORIGINS,
    allow_credentials=True,
    allow_methods=["*"],
    allow_headers=["*"],
    expose_headers=["Link", "Location", "Retry-After"],
)
