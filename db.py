"""The database: one engine, a session for each request, and transactions of several statements."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends
from sqlalchemy import Connection
from sqlmodel import Session, create_engine

from hardening.database import POOL_SIZE, protect
from hardening.settings import settings

# AUTOCOMMIT: each statement is saved at once. A task endpoint runs just one: so it is atomic, is one round
# trip to the database, and works behind a pooler such as Neon's. One commit() can be several statements, such
# as two rows that you added: if the second one fails, the first one may stay, and rollback() does not undo
# it. For all or nothing, see transaction() below.
engine = create_engine(
    settings.database_url,
    isolation_level="AUTOCOMMIT",
    hide_parameters=True,  # no user data in logs
    pool_size=POOL_SIZE,
    max_overflow=5,  # for /health, which must not wait, even while its earlier checks hang
)
protect(engine)  # from slow statements, and from servers that are frozen or down


# An endpoint that uses the session must be a plain def: FastAPI runs it in a thread of its own. An async def
# would stop all other requests while it waits for the database. (This one may be async: a session connects at
# its first statement, so nothing waits here.)
async def get_session() -> AsyncIterator[Session]:
    # expire_on_commit: a task can still be read after the commit. owner: until get_current_user sets it, the
    # guard (hardening/isolation.py) refuses select(Task) and all else on a table with a user_id. (It cannot
    # see into text().)
    with Session(engine, expire_on_commit=False, info={"owner": None}) as session:
        yield session


# scope: the session ends before the response is sent, even to a slow client.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


# For an endpoint that needs two statements: all or nothing. An exception undoes them, an HTTPException too;
# do not call rollback(). For a part that may fail, use another transaction() inside. Meanwhile, commit()
# sends what was added, but does not end the transaction.
@contextmanager
def transaction(session: Session) -> Iterator[None]:
    session.commit()  # sends what was added before, and gives back the connection that it used
    bind = session.get_bind()
    if isinstance(bind, Connection):  # a transaction in a transaction
        with bind.begin_nested(), all_or_nothing(session):
            yield
        return
    with bind.connect() as connection:
        if bind.dialect.name == "postgresql":
            connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():  # a real transaction, in place of AUTOCOMMIT
            if bind.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # until the end, nobody else writes
            session.bind = connection  # all its statements now go through this connection
            try:
                with all_or_nothing(session):
                    yield
            finally:
                session.bind = bind


@contextmanager
def all_or_nothing(session: Session) -> Iterator[None]:
    try:
        yield
        session.commit()
    except BaseException:
        session.rollback()
        session.expire_all()  # what was loaded may be undone: it is loaded again when it is read
        raise
