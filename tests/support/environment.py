"""The settings under test, and the database: SQLite, or with TEST_DATABASE_URL PostgreSQL, one of its own.

Imported before the app, which reads its settings when it is imported.
"""

import os
import secrets
from pathlib import Path
from tempfile import mkdtemp

import psycopg2
import pytest
from sqlalchemy import make_url

from tests.support.wire import Wire

SECRET = secrets.token_hex(32)
ORIGIN = "http://localhost:3000"
POSTGRES = os.environ.get("TEST_DATABASE_URL")
NAME = f"todo_test_{secrets.token_hex(4)}"
wire: Wire | None = None

on_postgres = pytest.mark.skipif(not POSTGRES, reason="needs a server: set TEST_DATABASE_URL")
on_sqlite = pytest.mark.skipif(bool(POSTGRES), reason="is about SQLite: unset TEST_DATABASE_URL")


def administer(sql: str) -> None:
    """Run a statement on the server of TEST_DATABASE_URL, past the app and its wire."""
    connection = psycopg2.connect(POSTGRES)
    connection.autocommit = True
    connection.cursor().execute(sql)
    connection.close()


if POSTGRES:
    administer(f"CREATE DATABASE {NAME}")
    server = make_url(POSTGRES)
    wire = Wire(server.host or "127.0.0.1", server.port or 5432)
    url = server.set(host="127.0.0.1", port=wire.port, database=NAME)
else:
    url = make_url(f"sqlite:///{mkdtemp()}/test.db")

# They win over a developer's own .env.
SETTINGS = {
    "DATABASE_URL": url.render_as_string(hide_password=False),
    "BETTER_AUTH_SECRET": SECRET,
    "BETTER_AUTH_URL": "",
    "CORS_ORIGINS": ORIGIN,
    "ENVIRONMENT": "development",
    "AUTH_RATE_LIMIT": "",
    "RATE_LIMIT_STORAGE": "",
}
os.environ |= SETTINGS


def end() -> None:
    """Leave nothing behind."""
    if wire:
        wire.cut()
        administer(f"DROP DATABASE {NAME} WITH (FORCE)")
    else:
        folder = Path(str(url.database)).parent
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
