"""The Todo API. Start it with `uvicorn main:app`, and read on in models.py and routes/tasks.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.exceptions import ExceptionMiddleware

from db import engine
from hardening.database import migrate
from hardening.middleware import CORS, BodyLimit, SecurityHeaders, TrailingSlash
from hardening.settings import logger, settings
from hardening.watchdog import watchdog
from routes import accounts, errors, service, tasks

DESCRIPTION = """Tasks of many users, each of whom reaches only their own. First steps, right here:
1. {where_tokens_are}
2. **Authorize**, on this page, takes the token.
3. *Whose token is this?* tells your user's id. Put it into the field user_id.
"""


# Before the yield: at the start. After it: at the end.
@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    migrate(engine)
    issuer = settings.better_auth_origin
    logger.info("Tokens: %s", f"of {issuer}" if issuer else "signed with BETTER_AUTH_SECRET. Try it: /demo")
    with watchdog():
        yield
    engine.dispose()


def create_app() -> FastAPI:
    where_tokens_are = "*Make an account* or *Log in*: the response has an access_token."
    if url := settings.better_auth_url:
        where_tokens_are = f"Sign in at <{settings.better_auth_origin}>; then <{url}/token> shows your token."
    app = FastAPIOffline(  # FastAPI, whose /docs need no other server
        title="Todo API",
        version="1.0.0",
        description=DESCRIPTION.format(where_tokens_are=where_tokens_are),
        swagger_ui_parameters={"persistAuthorization": True},  # the token survives a reload
        lifespan=lifespan,
        exception_handlers=errors.HANDLERS,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call the endpoint
    )
    app.include_router(tasks.router)
    app.include_router(accounts.router)
    app.include_router(service.router)
    if not settings.better_auth_url:  # without Better Auth, accounts of our own
        app.include_router(accounts.built_in)
        app.include_router(service.demo)

    # A request passes the last one first: CORS, headers, slash, body limit, then an endpoint. Its response
    # goes the other way. Exception is handled inside of CORS: else a browser would report an error of CORS.
    app.add_middleware(ExceptionMiddleware, handlers={Exception: errors.failure})
    app.add_middleware(BodyLimit)
    app.add_middleware(TrailingSlash)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(
        CORS,
        allow_origins=settings.cors_origins,
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Link", "Location", "Retry-After"],
    )
    return app


app = create_app()
