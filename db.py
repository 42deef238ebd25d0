"""The database: one engine, and a session for each request."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlmodel import Session, create_engine

from hardening.database import POOL_SIZE, protect
from hardening.settings import settings

# AUTOCOMMIT: every statement is a transaction of its own. A task endpoint runs just one: so it is atomic, is
# one round trip to the database, and works behind a pooler like Neon's. Two statements are two transactions,
# and so are rows of two tables that one commit() sends, as in add(task), add(tag), commit(): the first one
# stays if the second one fails, and rollback() undoes nothing.
engine = create_engine(
    settings.database_url,
    isolation_level="AUTOCOMMIT",
    hide_parameters=True,  # no user data in logs
    pool_size=POOL_SIZE,
    max_overflow=5,  # for /health, which must not wait; if the database is frozen, its checks hold some
)
protect(engine)  # from slow statements, and from servers that are frozen or gone


# async def runs in the one thread that serves everybody. This may, since it never waits: a session takes its
# connection at its first statement, not here. An endpoint that uses the session is a plain def, which FastAPI
# runs in another thread: else all others would wait with it.
async def get_session() -> AsyncIterator[Session]:
    # expire_on_commit: a task can still be read after the commit. owner: None refuses every statement on a
    # table with a user_id, until get_current_user says who is calling.
    with Session(engine, expire_on_commit=False, info={"owner": None}) as session:
        yield session


# scope: the session ends before the response is sent, however slowly the client reads that.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
