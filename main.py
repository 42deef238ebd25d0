"""The Todo API. Start it with `uvicorn main:app`, and read on in models.py and routes/tasks.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from db import engine
from hardening.database import migrate
from hardening.first_start import ensure_secret
from hardening.ignored import LogIgnored
from hardening.middleware import BodyLimit, LogRefusedOrigins, OtherSlash, SecurityHeaders
from hardening.settings import logger, settings
from hardening.telemetry import TELEMETRY, RedactedQuery
from hardening.watchdog import watchdog
from routes import accounts, errors, service, tasks


def create_app() -> FastAPI:
    in_development = settings.environment == "development"
    app = FastAPIOffline(  # FastAPI, whose /docs need no other server
        title="Todo API",
        version="1.0.0",
        description=first_steps(),
        lifespan=lifespan,
        dependencies=[Depends(LogIgnored())] if in_development else [],
        exception_handlers=errors.HANDLERS,
        telemetry=TELEMETRY,
        redirect_slashes=False,
        swagger_ui_parameters={"persistAuthorization": True},  # the token survives a reload
        generate_unique_id_function=lambda route: route.name,  # what generated clients call the endpoint
    )
    app.include_router(tasks.router)
    app.include_router(accounts.router)
    app.include_router(service.router)
    if not settings.better_auth_url:  # without Better Auth, accounts of our own
        app.include_router(accounts.built_in)
        app.include_router(service.demo)
    app.router.default = OtherSlash(app.router)  # what has no route: /tasks/ is answered like /tasks

    cors = partial(  # used twice: for responses, and below for exceptions
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Link", "Location", "Retry-After"],
    )
    # Requests pass the last one first. Responses go the other way.
    app.add_middleware(BodyLimit, max_bytes=64 * 1024)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(cors)
    app.add_middleware(LogRefusedOrigins)
    app.add_middleware(RedactedQuery)  # no search words in traces

    # FastAPI sends this response past the middlewares, so it gets their headers here: without them, browsers
    # would report a CORS error. Then FastAPI raises the exception again, for the server's log and for error
    # trackers. (That ends the connection: hence `close`.)
    async def unexpected(_request: Request, _error: Exception) -> ASGIApp:
        response = errors.error_response(500, headers={"Connection": "close"})
        return cors(SecurityHeaders(response))

    app.add_exception_handler(Exception, unexpected)  # type: ignore[arg-type]  # it returns an app, as responses are
    return app


# Up to the yield: startup. After it: shutdown.
@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    ensure_secret(settings)  # the first start creates .env
    migrate(engine)
    issuer = settings.better_auth_origin
    logger.info("Tokens: %s", f"of {issuer}" if issuer else "signed with BETTER_AUTH_SECRET. Try it: /demo")
    with watchdog():  # closes connections to a frozen database
        yield
    engine.dispose()


# What /docs shows at the top.
def first_steps() -> str:
    first_step = "*Create an account* or *Log in*: the response has an access_token."
    if url := settings.better_auth_url:
        first_step = f"Sign in at <{settings.better_auth_origin}>; then <{url}/token> shows your token."
    return f"""A todo API: users see only their own tasks. First steps, on this page:
1. {first_step}
2. Click **Authorize** and paste the token.
3. *Who am I?* shows your user id: use it as user_id.
"""


app = create_app()
