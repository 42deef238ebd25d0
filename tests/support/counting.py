"""What the app sends to the database, and how often."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

import db
from tests.support.environment import wire


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


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Count round trips on the wire of PostgreSQL, and statements sent to SQLite."""
    with sent_statements() as sent:
        before = wire.trips if wire else 0
        yield lambda: wire.trips - before if wire else len(sent)
