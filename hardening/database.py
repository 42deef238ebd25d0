"""A database that is slow, frozen, restarted or gone holds up a request for seconds, never for longer."""

import math
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from alembic import command, config, util
from sqlalchemy import Connection, Engine, ExceptionContext, event, exc, pool

from hardening.settings import ROOT, refuse_to_start

POOL_SIZE = 10  # connections to the database, in each worker
STATEMENT_TIMEOUT = 4.0  # seconds until the database gives up a statement
RESPONSE_TIMEOUT = 5.0  # seconds until we give up a database that does not respond


def protect(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", prepare_sqlite)
        event.listen(engine, "before_cursor_execute", start_clock)
    else:
        event.listen(engine, "before_cursor_execute", add_time_limit, retval=True)
        event.listen(engine, "after_cursor_execute", stop_clock)
        event.listen(engine, "handle_error", stop_clock_of_failure)
        event.listen(engine, "commit", start_clock_of_end)
        event.listen(engine, "rollback", start_clock_of_end)
        event.listen(engine, "connect", take_socket)
        event.listen(engine, "checkout", look_at_socket)
        event.listen(engine, "checkin", forget_clock)
        event.listen(engine, "close", give_socket_back)
        event.listen(engine, "close_detached", give_socket_back)


# PostgreSQL gives up a slow statement by itself, if it is told to. That stands in the same message, which is
# one transaction: so it costs no round trip, and holds for this statement alone.
def add_time_limit(_connection: object, cursor: Any, sql: str, values: Any, *_: object) -> tuple[str, Any]:
    waiting_since[cursor.connection] = time.monotonic()
    return f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT * 1000:.0f}; {sql}", values


# A server that is frozen gives up nothing, and does not even close connections. A watchdog hangs up on it.

waiting_since: dict[Any, float] = {}  # connection: when something was sent that has no answer yet


def stop_clock(_connection: object, cursor: Any, *_: object) -> None:
    forget_clock(cursor.connection)


def stop_clock_of_failure(failure: ExceptionContext) -> None:
    cursor = getattr(failure.execution_context, "cursor", None)
    if cursor:  # else it could not even connect
        forget_clock(cursor.connection)


# A commit or rollback says nothing when it is done, but the connection soon goes back to the pool.
def start_clock_of_end(connection: Connection) -> None:
    if not connection.invalidated:
        waiting_since[connection.connection.dbapi_connection] = time.monotonic()


def forget_clock(connection: Any, *_: object) -> None:
    waiting_since.pop(connection, None)


@contextmanager
def watchdog() -> Iterator[None]:
    end = threading.Event()
    # A thread: it works although somebody's code blocks the event loop.
    threading.Thread(target=hang_up_on_frozen_servers, args=(end,), daemon=True).start()
    try:
        yield
    finally:
        end.set()


def hang_up_on_frozen_servers(end: threading.Event) -> None:
    while not end.wait(0.5):
        for connection, since in waiting_since.copy().items():
            if time.monotonic() > since + RESPONSE_TIMEOUT:
                with closing, suppress(KeyError, OSError):  # it has been closed meanwhile
                    sockets[connection].shutdown(socket.SHUT_RDWR)


# Of each connection a second handle on its socket. We alone close it, so it can never be another's by now.
sockets: dict[Any, socket.socket] = {}
closing = threading.RLock()  # of one thread, which may collect garbage that closes connections


def take_socket(connection: Any, *_: object) -> None:
    sockets[connection] = socket.socket(fileno=socket.dup(connection.fileno()))


def give_socket_back(connection: Any, *_: object) -> None:
    forget_clock(connection)
    with closing:
        sockets.pop(connection).close()


# A server that was restarted has closed our idle connections. Else there is nothing to read on one.
def look_at_socket(connection: Any, entry: pool.ConnectionPoolEntry, _proxy: object) -> None:
    if entry.info.get("was_used") and has_something_to_read(sockets[connection]):
        raise exc.InvalidatePoolError  # upon which SQLAlchemy connects anew
    entry.info["was_used"] = True


def has_something_to_read(handle: socket.socket) -> bool:
    try:
        handle.recv(1, socket.MSG_PEEK)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


# SQLite, which keeps the time by itself.


def prepare_sqlite(connection: sqlite3.Connection, entry: pool.ConnectionPoolEntry) -> None:
    connection.execute(f"PRAGMA busy_timeout = {STATEMENT_TIMEOUT * 1000:.0f}")
    connection.execute("PRAGMA foreign_keys = ON")
    # SQLite's own lower() knows ASCII only, and search is for everybody.
    connection.create_function("lower", 1, lambda text: text and text.lower())
    # Called again and again while a statement runs; true ends it.
    connection.set_progress_handler(lambda: time.monotonic() > entry.info.get("deadline", math.inf), 10_000)


def start_clock(connection: Connection, *_: object) -> None:
    connection.info["deadline"] = time.monotonic() + STATEMENT_TIMEOUT


# What went wrong, without the excerpt of the statement that PostgreSQL adds: data may stand in it.
def one_line(error: Exception) -> str:
    cause = getattr(error, "orig", error)
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return " ".join((primary or str(cause)).split())


# Workers that start together do it one after the other, see migrations/env.py.
def migrate(engine: Engine) -> None:
    try:
        command.upgrade(config.Config(toml_file=ROOT / "pyproject.toml"), "head")
        engine.connect().close()  # SQLAlchemy asks a server some questions at first: not during a request
    except (exc.SQLAlchemyError, util.CommandError, ValueError, OSError) as error:
        refuse_to_start(f"the database cannot be used: {one_line(error)}")
