"""The database: one engine, a session for each request, and transactions of several statements."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends
from sqlalchemy import Connection
from sqlmodel import Session, create_engine

from hardening.database import POOL_SIZE, protect
from hardening.settings import settings

# AUTOCOMMIT: each statement is a transaction of its own. A task endpoint runs just one: so it is atomic, is
# one round trip to the database, and works behind a pooler such as Neon's. Two statements are two
# transactions: if the second one fails, the first one stays, and rollback() does not undo it. For both or
# neither, see transaction() below.
engine = create_engine(
    settings.database_url,
    isolation_level="AUTOCOMMIT",
    hide_parameters=True,  # no user data in logs
    pool_size=POOL_SIZE,
    max_overflow=5,  # for /health, which must not wait; if the database is frozen, its checks hold some
)
protect(engine)  # from slow statements, and from servers that are frozen or down


# async def runs in the one thread that serves all requests. That is fine here: nothing waits, as a session
# connects at its first statement. An endpoint that uses the session must be a plain def: FastAPI runs it in
# another thread, so that other requests need not wait.
async def get_session() -> AsyncIterator[Session]:
    # expire_on_commit: a task can still be read after the commit. owner: None refuses every statement on a
    # table with a user_id, until get_current_user sets the owner.
    with Session(engine, expire_on_commit=False, info={"owner": None}) as session:
        yield session


# scope: the session ends before the response is sent, even to a slow client.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


# For an endpoint that needs two statements: all or nothing. An exception undoes them, an HTTPException too.
# Meanwhile, commit() sends what was added, but does not end the transaction.
@contextmanager
def transaction(session: Session) -> Iterator[None]:
    session.commit()  # returns the connection that the check of the token may have used
    bind = session.get_bind()
    if isinstance(bind, Connection):  # a transaction in a transaction
        with bind.begin_nested():
            try:
                yield
                session.commit()
            finally:
                session.rollback()  # what the session has begun ends first
        return
    with bind.connect() as connection:
        if bind.dialect.name == "postgresql":
            connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            if bind.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # until the end, nobody else writes
            session.bind = connection
            try:
                yield
                session.commit()
            finally:
                session.rollback()
                session.bind = bind
