"""Alembic runs this file: it migrates by the app's own engine, one process at a time, in one transaction."""

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

from alembic import context
from sqlmodel import SQLModel

import models  # noqa: F401  (fills the metadata)
from db import ENVIRONMENT, ON_SQLITE, engine, logger

LOCK = 7_061_746  # any number, as long as every process asks for the same


# Other tables in the database, such as Better Auth's, are none of our business.
def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in SQLModel.metadata.tables


# Whether what we send can be read on its way: unencrypted, and beyond this machine and private networks.
def can_be_read(connection: Any) -> bool:
    if connection.info.ssl_in_use:
        return False
    with socket.socket(fileno=os.dup(connection.fileno())) as peer:
        if peer.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        return ipaddress.ip_address(peer.getpeername()[0]).is_global


if ON_SQLITE:
    Path(str(engine.url.database)).touch(0o600)  # nobody else on this machine may read it

with engine.connect() as connection:
    connection.detach()  # so that it is closed afterwards, and with it whatever a failure leaves open
    if not ON_SQLITE and ENVIRONMENT != "development" and can_be_read(connection.connection.dbapi_connection):
        logger.warning("The connection to the database is not encrypted: add ?sslmode=require to its URL")
    with connection.begin():  # which sends nothing in autocommit, hence BEGIN and COMMIT below
        if ON_SQLITE:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        context.configure(
            connection=connection,
            target_metadata=SQLModel.metadata,
            include_name=is_ours,
            render_as_batch=True,  # SQLite cannot alter a table in place
        )
        context.run_migrations()
        connection.exec_driver_sql("COMMIT")
