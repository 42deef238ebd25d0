"""What the database is asked, and how often."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

import db
from tests.support.environment import POSTGRES, wire

statements: list[str] = []  # all that SQLite was given to run

if not POSTGRES:

    @event.listens_for(db.engine, "connect")
    def listen(connection: Any, _record: object) -> None:
        connection.set_trace_callback(statements.append)


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Count what the database is asked: round trips on the wire of PostgreSQL, statements in SQLite."""

    def count() -> int:
        return wire.trips if wire else len(statements)

    before = count()
    yield lambda: count() - before


@contextmanager
def sent_statements() -> Iterator[list[tuple[str, Any]]]:
    """What the app sends to the database: each statement with its parameters."""
    sent: list[tuple[str, Any]] = []

    def remember(_connection: object, _cursor: object, sql: str, parameters: object, *_rest: object) -> None:
        sent.append((sql, parameters))

    event.listen(db.engine, "before_cursor_execute", remember)
    try:
        yield sent
    finally:
        event.remove(db.engine, "before_cursor_execute", remember)
