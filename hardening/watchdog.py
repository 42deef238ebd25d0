"""A PostgreSQL server that freezes blocks a request for seconds, not forever: a watchdog closes connections.

A frozen server cancels no statement and closes no connection, and psycopg2 waits as long as it takes. So each
wait is noted while it lasts, and a thread ends those that last too long."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, TypeVar

from psycopg2 import extensions

RESPONSE_TIMEOUT = 5.0  # seconds without a response until the connection is closed

waiting_since: dict[socket.socket, float] = {}  # the connections that wait for the server right now
# While the watchdog holds this lock, no wait can end: so it never closes a connection that just became idle.
# An RLock, since a garbage collection in the same thread may close other connections meanwhile.
lock = threading.RLock()


@contextmanager
def watchdog() -> Iterator[None]:
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.5):
            close_frozen_connections()

    # A thread: it works even if an endpoint blocks the event loop.
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        end.set()


def close_frozen_connections() -> None:
    with lock:
        for handle, since in waiting_since.copy().items():
            if time.monotonic() > since + RESPONSE_TIMEOUT:
                with suppress(OSError):  # the server has closed it in this very moment
                    handle.shutdown(socket.SHUT_RDWR)  # so the wait ends with an OperationalError


# psycopg2's own connection and cursor, with a clock on each method that waits for the server.

Result = TypeVar("Result")


def timed(method: Callable[..., Result]) -> Callable[..., Result]:
    @wraps(method)
    def wait(self: "Connection | Cursor", *args: object, **kwargs: object) -> Result:
        waiting_since[self.handle] = time.monotonic()
        try:
            return method(self, *args, **kwargs)
        finally:
            with lock:
                waiting_since.pop(self.handle, None)

    return wait


class Connection(extensions.connection):
    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        # A second handle on the socket. Only we close it, so its number is not reused before that. (libpq may
        # close its own handle while it waits.)
        self.handle = socket.socket(fileno=socket.dup(self.fileno()))

    def close(self) -> None:
        super().close()
        with lock:
            self.handle.close()

    commit = timed(extensions.connection.commit)
    rollback = timed(extensions.connection.rollback)


class Cursor(extensions.cursor):
    def __init__(self, connection: Connection, name: str | None = None) -> None:
        # A named cursor, whose rows come in parts, lives until the end of its transaction. In autocommit that
        # would be at once, so all rows come together.
        super().__init__(connection, None if connection.autocommit else name)
        self.handle = connection.handle

    execute = timed(extensions.cursor.execute)
    fetchone = timed(extensions.cursor.fetchone)
    fetchmany = timed(extensions.cursor.fetchmany)
    fetchall = timed(extensions.cursor.fetchall)
    close = timed(extensions.cursor.close)

    @timed
    def executemany(self, sql: str, rows: Iterable[Any]) -> None:
        super().executemany(sql, map(self.restart_clock, rows))  # each row is a round trip

    def restart_clock(self, row: Any) -> Any:
        waiting_since[self.handle] = time.monotonic()
        return row
