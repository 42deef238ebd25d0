"""How Alembic reaches the database: by the app's own engine, one process at a time, in one transaction."""

from alembic import context
from sqlmodel import SQLModel

import models  # noqa: F401  (fills the metadata)
from db import engine

LOCK = 7_061_746  # any number, as long as every process asks for the same


def ours(name: str | None, kind: str, _parents: object) -> bool:
    """Other tables in the database, such as Better Auth's, are none of our business."""
    return kind != "table" or name in SQLModel.metadata.tables


with engine.connect() as connection:
    connection.detach()  # so that it is closed afterwards, and with it whatever a failure leaves open
    with connection.begin():
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        context.configure(
            connection=connection,
            target_metadata=SQLModel.metadata,
            include_name=ours,
            render_as_batch=True,  # SQLite cannot alter a table in place
        )
        context.run_migrations()
        connection.exec_driver_sql("COMMIT")
