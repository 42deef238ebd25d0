"""A deleted account leaves no row behind, not even one that another request is just creating.

A foreign key would see to that, but accounts may be on another server. For those of the built-in login, a new
row does what a foreign key does: it locks the account's row in `users`, and fails if that is gone. A deletion
locks it first: so it waits for rows that are being created, and later ones fail. It costs no round trip."""

from typing import Any

from sqlalchemy import Connection, Engine, column, event, select, table
from sqlalchemy.orm import Mapper, Session, attributes, object_session

users = table("users", column("id"))


# Until the end of the request.
def need_account(session: Session, account_id: str) -> None:
    session.info["account"] = account_id


@event.listens_for(Mapper, "before_insert")
def name_account(mapper: Mapper[Any], connection: Connection, row: Any) -> None:
    account = account_for(mapper, row)
    if account and connection.dialect.name == "postgresql":
        connection.execution_options(account=account)
    elif account:  # NULL if the account is gone, which the column refuses. (On SQLite, only one can write.)
        row.user_id = select(users.c.id).where(users.c.id == account).scalar_subquery()


@event.listens_for(Mapper, "after_insert")
def remember_user_id(mapper: Mapper[Any], _connection: Connection, row: Any) -> None:
    if account := account_for(mapper, row):
        attributes.set_committed_value(row, "user_id", account)


def account_for(mapper: Mapper[Any], row: object) -> str | None:
    session = object_session(row)
    return session.info.get("account") if session and "user_id" in mapper.columns else None


# PostgreSQL takes several statements in one message, and treats them as one transaction. (A subquery as the
# value, as on SQLite, would take one statement for each row, and Citus refuses it.)
@event.listens_for(Engine, "before_cursor_execute", retval=True)
def lock_account(
    _connection: Connection, _cursor: object, sql: str, values: Any, context: Any, _: object
) -> tuple[str, Any]:
    account = context.execution_options.get("account")
    if account and context.isinsert:
        locked = "SELECT FROM users WHERE id = %(__account)s FOR KEY SHARE"
        # A division by zero if the account is gone.
        sql = f"SELECT 1 / count(*) FROM ({locked}) AS locked; {sql}"  # noqa: S608  (no input)
        values |= {"__account": account}  # no column has this name
    return sql, values
