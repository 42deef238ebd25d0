"""The database: where it is, how to reach it, and a session for each request.

Every statement commits by itself (autocommit) and is the only one of its request: one round trip,
atomic as it is, and at home behind a transaction pooler such as Neon's.
"""

import logging
import os
import selectors
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psycopg2
from alembic import command
from alembic.config import Config
from dotenv import load_dotenv
from fastapi import Depends
from psycopg2 import extensions
from sqlalchemy import URL, Executable, Row, create_engine, event, exc, make_url

ROOT = Path(__file__).parent
POOL_SIZE = 10
PATIENCE = 5.0  # seconds for the database to answer, before its user is told that it does not

# The logger that `uvicorn main:app` shows without further settings.
logger = logging.getLogger("uvicorn.error")


def refuse_to_start(reason: str) -> NoReturn:
    logger.critical("Not started: %s", reason)
    sys.tracebacklimit = 0  # that line says it all
    raise SystemExit(3) from None  # on any other code uvicorn's supervisor would try again for ever


def read_env_file() -> None:
    try:
        load_dotenv(ROOT / ".env")  # the environment wins
    except UnicodeDecodeError:
        refuse_to_start(".env is not UTF-8 text (PowerShell's > writes UTF-16)")


def environment() -> str:
    name = os.environ.get("ENVIRONMENT") or "development"
    if name not in ("development", "staging", "production"):
        refuse_to_start(f"ENVIRONMENT is {name!r}, not development, staging or production.")
    return name


read_env_file()  # here, in the module that all others import
ENVIRONMENT = environment()


def database_url() -> URL:
    """The URL as people paste it, made fit for SQLAlchemy and psycopg2."""
    text = os.environ.get("DATABASE_URL")
    if not text and ENVIRONMENT != "development":
        refuse_to_start(f"DATABASE_URL is not set, and ENVIRONMENT is {ENVIRONMENT}.")
    try:
        url = make_url(text or "sqlite:///todo.db")
    except (exc.ArgumentError, ValueError):
        refuse_to_start("DATABASE_URL is not a database URL: postgresql://user:password@host/name")
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        if url.database in (None, "", ":memory:"):
            refuse_to_start("DATABASE_URL names no file; in memory, each connection has tasks of its own.")
        return url.set(drivername="sqlite")
    if backend not in ("postgres", "postgresql"):
        refuse_to_start(f"DATABASE_URL names {backend!r}; only PostgreSQL and SQLite are supported.")
    # The time-out is for the start; while requests wait, wait_for_postgres minds the time.
    libpq = {"client_encoding": "utf8", "connect_timeout": "10", "keepalives_idle": "30"}
    return url.set(drivername="postgresql+psycopg2").update_query_dict({**libpq, **url.query})


engine = create_engine(
    database_url(),
    isolation_level="AUTOCOMMIT",
    hide_parameters=True,  # no user data in logs
    pool_size=POOL_SIZE,
    max_overflow=1,  # for /health, which must not queue behind the tasks
    pool_reset_on_return=None,  # nothing to roll back
)
# The same engine and pool for requests alone, whose statements have less time than migrations.
request_engine = engine.execution_options()

if engine.dialect.name == "sqlite":

    @event.listens_for(engine, "connect")
    def prepare_sqlite(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        # SQLite's own lower() knows ASCII only, and search is for everybody.
        connection.create_function("lower", 1, lambda text: text and text.lower(), deterministic=True)

else:
    # poll() where there is one: select() fails on file descriptors over 1023.
    Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)

    @event.listens_for(engine, "checkout")
    def replace_if_closed(connection: Any, record: Any, _proxy: object) -> None:
        """A healthy idle connection has nothing to say; one that the server closed has its end to read."""
        with Selector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            if selector.select(0) and record.info.get("was idle"):
                raise exc.DisconnectionError("closed by the server while idle")
        record.info["was idle"] = True

    @event.listens_for(request_engine, "before_cursor_execute", retval=True)
    def limit_time(
        _c: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: object
    ) -> tuple[str, Any]:
        """The server gives up a slow statement, such as one that waits for a lock, before we give up on it:
        nothing goes on behind a 503. In one message, so for this statement alone and at no round trip."""
        return f"SET LOCAL statement_timeout = {PATIENCE * 800:.0f}; {statement}", parameters


unanswered_until = 0.0


def wait_for_postgres(connection: Any) -> None:
    """Wait for the server, but not for ever: a frozen one does not even close its connections."""
    deadline = time.monotonic() + PATIENCE
    while (state := connection.poll()) != extensions.POLL_OK:
        with Selector() as selector:
            reading = state == extensions.POLL_READ
            selector.register(connection, selectors.EVENT_READ if reading else selectors.EVENT_WRITE)
            if not selector.select(deadline - time.monotonic()):
                global unanswered_until  # noqa: PLW0603  (one word of state, read in one other place)
                unanswered_until = time.monotonic() + 1
                raise psycopg2.OperationalError(f"no answer within {PATIENCE:g} seconds")


class Session:
    """Runs a statement, and has its connection back in the pool when the rows are here.

    SQLModel's own session also minds objects and transactions, of which a single statement needs neither:
    it costs an eighth of a request.
    """

    def exec(self, statement: Executable, **values: Any) -> Sequence[Row[Any]]:
        with request_engine.connect() as connection:
            return connection.execute(statement, values).all()


async def get_session() -> AsyncIterator[Session]:
    # While the database does not answer, those who queue are told at once, not one PATIENCE after the other.
    if time.monotonic() < unanswered_until:
        raise exc.TimeoutError("the database did not answer a moment ago")
    yield Session()


# A session takes no I/O to get and so no thread. max_concurrency: a flood waits here, where waiting holds
# neither a thread nor a connection. scope: a turn ends before the answer is sent, however slowly it is read.
SessionDep = Annotated[Session, Depends(get_session, scope="function", max_concurrency=POOL_SIZE)]
ProbeDep = Annotated[Session, Depends(get_session, scope="function", max_concurrency=1)]


def migrate() -> None:
    """Bring the schema up to date; workers that start together take turns (see migrations/env.py)."""
    extensions.set_wait_callback(None)  # a migration may take longer than a request
    command.upgrade(Config(toml_file=ROOT / "pyproject.toml"), "head")
    if engine.dialect.name == "postgresql":
        extensions.set_wait_callback(wait_for_postgres)
