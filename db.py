"""Settings, the engine, a session for each request, and migrations at start."""

import asyncio
import logging
import os
import re
import secrets
import selectors
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, NoReturn
from weakref import WeakValueDictionary

import psycopg2
from alembic import command, config, util
from dotenv import dotenv_values, load_dotenv
from fastapi import Depends, Request
from psycopg2 import extensions
from sqlalchemy import URL, Connection, create_engine, event, exc, make_url, pool
from sqlmodel import Session

ROOT = Path(__file__).parent
POOL_SIZE = 10  # connections to the database, in each worker
STATEMENT_TIMEOUT = 4.0  # seconds until the database gives up a statement
RESPONSE_TIMEOUT = 5.0  # seconds until we give up a database that does not respond

logger = logging.getLogger("uvicorn.error")  # the one that uvicorn shows without further settings


def refuse_to_start(reason: str) -> NoReturn:
    logger.critical("Not started: %s", reason)
    sys.tracebacklimit = 0  # that line says it all
    raise SystemExit(3) from None  # on any other code uvicorn's supervisor would try again for ever


# Read .env, where the environment wins. In development the first start creates it.
def load_settings() -> str:
    file = ROOT / ".env"
    try:
        load_dotenv(file)
    except UnicodeDecodeError:
        refuse_to_start(".env is not UTF-8 text (PowerShell's > writes UTF-16)")
    environment = os.environ.get("ENVIRONMENT") or "development"
    if environment not in ("development", "staging", "production"):
        refuse_to_start(f"ENVIRONMENT is {environment!r}, not development, staging or production.")
    is_set_up = os.environ.get("BETTER_AUTH_URL") or os.environ.get("BETTER_AUTH_SECRET")
    if environment == "development" and not is_set_up:
        make_env_file(file)
        os.environ["BETTER_AUTH_SECRET"] = dotenv_values(file).get("BETTER_AUTH_SECRET") or ""
    return environment


# Copy .env.example with a fresh secret in it, unless there is a .env.
def make_env_file(file: Path) -> None:
    try:
        text = (ROOT / ".env.example").read_text()
        text = text.replace("BETTER_AUTH_SECRET=", f"BETTER_AUTH_SECRET={secrets.token_hex(32)}")
        # Workers may start together: one of them links a complete .env into place, and all read that.
        with tempfile.NamedTemporaryFile("w", dir=ROOT, prefix=".env.") as draft:  # readable by us alone
            draft.write(text)
            draft.flush()
            os.link(draft.name, file)
        logger.info("Made .env from .env.example, with a fresh BETTER_AUTH_SECRET.")
    except FileExistsError:
        pass
    except OSError as error:
        refuse_to_start(f"BETTER_AUTH_SECRET is not set, and .env cannot be made: {error}")


ENVIRONMENT = load_settings()


# The URL as people paste it, made fit for SQLAlchemy and psycopg2.
def database_url() -> URL:
    text = os.environ.get("DATABASE_URL") or ("sqlite:///todo.db" if ENVIRONMENT == "development" else "")
    if not text:
        refuse_to_start(f"DATABASE_URL is not set, and ENVIRONMENT is {ENVIRONMENT}.")
    # postgresql://user:password@a:5432,b:5432/name has several hosts; SQLAlchemy wants each in the query.
    host = r"[\w.-]+(?::\d+)?"
    several = re.search(rf"^[\w+]+://(?:[^@]*@)?({host}(?:,{host})+)(?=[/?]|$)", text)
    try:
        url = make_url(text[: several.start(1)] + text[several.end(1) :] if several else text)
    except (exc.ArgumentError, ValueError):
        refuse_to_start("DATABASE_URL is not a database URL: postgresql://user:password@host/name")
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        if not url.database or url.database.startswith((":memory:", "file:")):
            refuse_to_start("DATABASE_URL names no file; in memory, each connection has tasks of its own.")
        return url.set(drivername="sqlite")
    if backend not in ("postgres", "postgresql"):
        refuse_to_start(f"DATABASE_URL names {backend!r}; only PostgreSQL and SQLite are supported.")
    if "@" in (url.host or ""):
        refuse_to_start("DATABASE_URL has two @; the one in the password is written %40.")
    url = url.update_query_pairs([("host", each) for each in several[1].split(",")] if several else [])
    # connect_timeout is for the start; while requests wait, wait_for_postgres minds the time.
    libpq = {"client_encoding": "utf8", "connect_timeout": "10", "keepalives_idle": "30"}
    libpq["tcp_user_timeout"] = "3000"  # milliseconds until a host without power is given up for the next one
    return url.set(drivername="postgresql+psycopg2").update_query_dict({**libpq, **url.query})


DATABASE_URL = database_url()
ON_SQLITE = DATABASE_URL.drivername == "sqlite"
# Every statement commits by itself, and a task endpoint runs only one. So a request is atomic, costs one
# round trip to the database (two with a token of our own login, see auth.py), and works behind a transaction
# pooler such as Neon's.
engine = create_engine(
    DATABASE_URL,
    isolation_level="AUTOCOMMIT",
    hide_parameters=True,  # no user data in logs
    pool_size=POOL_SIZE,
    max_overflow=1,  # for /health, which must not queue behind the tasks
    pool_pre_ping=not ON_SQLITE,
)


# The cheapest where there is one; select() fails on file descriptors over 1023.
Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


# An idle connection has nothing to read, unless the server has closed it.
def is_open(connection: Any) -> bool:
    with Selector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return not selector.select(0)


# SQLAlchemy asks this before it uses an idle connection, and replaces those that are closed.
# Its own way is to send a query, which would cost each request a second round trip.
engine.dialect.do_ping = is_open  # type: ignore[method-assign, assignment]  # (it passes no self)

# A circuit breaker: until then, a database that did not respond is not asked.
responds_again_at = 0.0


# psycopg2 calls this whenever it waits for the server (migrate() says so). Not for ever: a frozen server does
# not even close its connections.
def wait_for_postgres(connection: Any) -> None:
    deadline = time.monotonic() + RESPONSE_TIMEOUT
    while (state := connection.poll()) != extensions.POLL_OK:
        with Selector() as selector:
            reading = state == extensions.POLL_READ
            selector.register(connection, selectors.EVENT_READ if reading else selectors.EVENT_WRITE)
            if not selector.select(deadline - time.monotonic()):
                global responds_again_at  # noqa: PLW0603
                responds_again_at = time.monotonic() + 1
                raise psycopg2.OperationalError(f"no response within {RESPONSE_TIMEOUT:g} seconds")


# SQLAlchemy calls this before each statement (migrate() says so), and sends what it returns: so the database
# gives up a slow statement, before we give up on the database.
def limit_time(connection: Connection, _cursor: object, sql: str, values: Any, *_: object) -> tuple[str, Any]:
    connection.info["deadline"] = time.monotonic() + STATEMENT_TIMEOUT  # for SQLite, see below
    if ON_SQLITE:
        return sql, values
    # In the same message, which PostgreSQL runs as one transaction: so it costs no round trip, and holds for
    # this statement alone.
    return f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT * 1000:.0f}; {sql}", values


def prepare_sqlite(connection: sqlite3.Connection, record: pool.ConnectionPoolEntry) -> None:
    connection.execute(f"PRAGMA busy_timeout = {STATEMENT_TIMEOUT * 1000:.0f}")
    connection.execute("PRAGMA journal_mode = WAL")  # readers and a writer do not wait for each other
    connection.execute("PRAGMA foreign_keys = ON")
    # SQLite's own lower() knows ASCII only, and search is for everybody.
    connection.create_function("lower", 1, lambda text: text and text.lower())
    # Called again and again while a statement runs; true ends it.
    connection.set_progress_handler(lambda: time.monotonic() > record.info.get("deadline", 1e12), 10_000)


if ON_SQLITE:
    event.listen(engine, "connect", prepare_sqlite)


# What went wrong, without the excerpt of the statement that PostgreSQL adds: data may stand in it.
def one_line(error: Exception) -> str:
    cause = getattr(error, "orig", error)
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return " ".join((primary or str(cause)).split())


# Bring the tables up to date. Workers that start together do it one after the other, see migrations/env.py.
def migrate() -> None:
    try:
        command.upgrade(config.Config(toml_file=ROOT / "pyproject.toml"), "head")
    except (exc.SQLAlchemyError, util.CommandError, ValueError, OSError) as error:
        refuse_to_start(f"the database cannot be used: {one_line(error)}")
    # Only now, since a migration may take longer than a request.
    event.listen(engine, "before_cursor_execute", limit_time, retval=True)
    if not ON_SQLITE:
        extensions.set_wait_callback(wait_for_postgres)


# A slot is the right to one of the connections. FastAPI's max_concurrency would not do: a request that still
# waits for others of its own user would hold a slot meanwhile.
slots = asyncio.Semaphore(POOL_SIZE)
# For each user with requests under way; an entry disappears with the last of them.
user_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()


async def get_session(request: Request) -> AsyncIterator[Session]:
    # A flood of requests waits here, where waiting holds neither a thread nor a connection. A user has a
    # third of the slots at most, so that a flood of one user holds up nobody else.
    began = time.monotonic()
    # get_token left this here: endpoints name the user before the session, and FastAPI resolves parameters in
    # order. Without a token, as in register and login, all share "".
    user_id = getattr(request.state, "user_id", "")
    own_slots = user_slots.setdefault(user_id, asyncio.Semaphore(POOL_SIZE // 3))
    async with own_slots, slots:
        if time.monotonic() < responds_again_at or time.monotonic() > began + RESPONSE_TIMEOUT:
            raise exc.TimeoutError("the database is too slow for all who ask")
        # This opens no connection yet, and so needs no thread. A task stays readable after its commit.
        with Session(engine, expire_on_commit=False) as session:
            yield session


# scope: the session ends before the response is sent, however slowly the client reads it.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
