"""No statement takes longer than seconds, and no request gets a connection that is already closed."""

import math
import socket
import sqlite3
import time
from typing import Any

from alembic import command, config, util
from sqlalchemy import Connection, Engine, event, exc, pool

from hardening import watchdog
from hardening.settings import ROOT, refuse_to_start

POOL_SIZE = 10  # connections to the database, in each worker
STATEMENT_TIMEOUT = 4.0  # seconds until the database cancels a statement


def protect(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", prepare_sqlite)
        event.listen(engine, "before_cursor_execute", start_timer)
    else:
        event.listen(engine, "do_connect", use_watched_connections)
        event.listen(engine, "checkout", check_socket)
        event.listen(engine, "before_cursor_execute", add_time_limit, retval=True)


# PostgreSQL


def use_watched_connections(_dialect: object, _entry: object, _args: object, options: dict[str, Any]) -> None:
    options |= {"connection_factory": watchdog.Connection, "cursor_factory": watchdog.Cursor}


# If the server restarted, it closed our idle connections: their sockets become readable.
def check_socket(connection: watchdog.Connection, entry: pool.ConnectionPoolEntry, _proxy: object) -> None:
    if entry.info.get("was_used") and is_readable(connection.handle):
        raise exc.InvalidatePoolError  # makes SQLAlchemy reconnect
    entry.info["was_used"] = True


def is_readable(handle: socket.socket) -> bool:
    try:
        handle.recv(1, socket.MSG_PEEK)  # looks, and takes nothing
    except OSError as error:
        return not isinstance(error, BlockingIOError)  # which means: nothing to read, the connection is open
    return True


# PostgreSQL cancels a slow statement itself, if told to. We say so in the same message, which is one
# transaction: it costs no round trip and affects only this statement.
def add_time_limit(_connection: object, cursor: Any, sql: str, values: Any, *_: object) -> tuple[str, Any]:
    if sql.startswith("ROLLBACK TO"):  # a failed transaction accepts nothing else
        return sql, values
    limit = f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT * 1000:.0f}"
    if cursor.name:  # rows in parts: psycopg2 puts a DECLARE before the statement, so the limit goes ahead
        with cursor.connection.cursor() as another:
            another.execute(limit)
        return sql, values
    return f"{limit}; {sql}", values


# SQLite


def prepare_sqlite(connection: sqlite3.Connection, entry: pool.ConnectionPoolEntry) -> None:
    connection.execute(f"PRAGMA busy_timeout = {STATEMENT_TIMEOUT * 1000:.0f}")
    connection.execute("PRAGMA foreign_keys = ON")
    # SQLite's own lower() knows ASCII only, and search is for everybody.
    connection.create_function("lower", 1, lambda text: text and text.lower())
    # Called again and again while a statement runs; true ends it.
    connection.set_progress_handler(lambda: time.monotonic() > entry.info.get("deadline", math.inf), 10_000)


def start_timer(connection: Connection, *_: object) -> None:
    connection.info["deadline"] = time.monotonic() + STATEMENT_TIMEOUT


# Both


# The error, without the statement excerpt that PostgreSQL adds: it may contain user data.
def summary(error: Exception) -> str:
    cause = getattr(error, "orig", error)
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return " ".join((primary or str(cause)).split())


# Workers that start together do it one after the other, see migrations/env.py.
def migrate(engine: Engine) -> None:
    try:
        command.upgrade(config.Config(toml_file=ROOT / "pyproject.toml"), "head")
        engine.connect().close()  # SQLAlchemy's first connection runs extra queries: do it now
    except (exc.SQLAlchemyError, util.CommandError, ValueError, OSError) as error:
        refuse_to_start(f"the database cannot be used: {summary(error)}")
