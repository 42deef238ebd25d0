"""Alembic runs this file: it brings the tables up to date, one process at a time, in one transaction."""

import ipaddress
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from alembic import context
from alembic.ddl.sqlite import SQLiteImpl
from sqlalchemy import Connection, NullPool, Table, create_engine, exc
from sqlmodel import SQLModel

import models  # noqa: F401  (fills the metadata)
from hardening.settings import logger, settings

LOCK = 7_061_746  # any number, as long as every process asks for the same
url = settings.database_url
on_sqlite = url.drivername == "sqlite"
# Not the engine of db.py, whose time limits are for requests.
engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True)


# Other tables in the database, such as Better Auth's, are left alone.
def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in SQLModel.metadata.tables


# Whether others could read the traffic: unencrypted, and beyond this machine and private networks.
def can_be_read(connection: Any) -> bool:
    if connection.info.ssl_in_use:
        return False
    with socket.socket(fileno=socket.dup(connection.fileno())) as peer:
        if peer.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        return ipaddress.ip_address(peer.getpeername()[0]).is_global


# Write-ahead logging, so that readers and a writer do not wait for each other. It is a property of the file.
# While another process switches it on or migrates, SQLite says "database is locked" at once, however long it
# may wait: so we try again.
def write_ahead(connection: Connection) -> None:
    for _ in range(100):
        with suppress(exc.OperationalError):
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        time.sleep(0.05)


# SQLite cannot alter a table: Alembic creates a copy with the change, fills it, and drops the original. The
# copy must not give the ids of deleted rows to new ones either.
class SQLite(SQLiteImpl):
    __dialect__ = "sqlite"

    def create_table(self, table: Table, **options: Any) -> None:
        execute = context.get_bind().exec_driver_sql
        find = (
            "SELECT name FROM sqlite_master WHERE substr('_alembic_tmp_' || name, 1, 50) = ? AND sql LIKE ?"
        )
        if original := execute(find, (table.name, "%AUTOINCREMENT%")).scalar():
            table.dialect_options["sqlite"]["autoincrement"] = True
            last_id = "SELECT ?, seq FROM sqlite_sequence WHERE name = ?"
            execute(f"INSERT INTO sqlite_sequence {last_id}", (table.name, original))
        super().create_table(table, **options)


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        include_name=is_ours,
        render_as_batch=True,  # see SQLite above
    )
    context.run_migrations()


if on_sqlite:
    Path(str(url.database)).touch(0o600)  # nobody else on this machine may read it

# begin() sends nothing in autocommit, hence BEGIN and COMMIT below.
with engine.connect() as connection, connection.begin():
    if on_sqlite:
        write_ahead(connection)
        connection.exec_driver_sql(
            "PRAGMA foreign_keys = OFF"
        )  # else rows go with the original of their parent
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        if settings.environment != "development" and can_be_read(connection.connection.dbapi_connection):
            logger.warning("The connection to the database is not encrypted: add ?sslmode=require to its URL")
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
    migrate(connection)
    connection.exec_driver_sql("COMMIT")
