"""STUB"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session


class OwnerMissingError(Exception):
    pass


@contextmanager
def only_rows_of(session: Session, owner: str) -> Iterator[None]:
    yield
