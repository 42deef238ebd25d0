"""Nobody can forget the owner: a statement that does not say whose rows it means is refused, and not sent.

Each select, update and delete says it of each table with a column `user_id`, and so does each subquery:
`.where(Tag.user_id == owner)`, or the ON of a join, of the table that it adds. A new row has `user_id=owner`.
Who means the rows of all users says that: `execution_options={"all_users": True}`.
Not seen: a Session(engine) of your own, text() and table(), what runs on session.connection() itself, bulk_
methods, a select in a column_property, and a column `user_id` whose attribute has another name."""

# ruff: noqa: SLF001  (the values of an INSERT or UPDATE have no public names)

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, ORMExecuteState, Session
from sqlalchemy.sql import operators


class OwnerMissingError(Exception):
    def __init__(self, table: str) -> None:
        remedy = "add .where(... .user_id == owner), or give a new row user_id=owner"
        super().__init__(f"{table}: the statement does not say whose: {remedy}")


# While a request runs. A session of which nobody says so, such as a Session(engine) in a script, is free.
@contextmanager
def require_owner(session: Session, owner: str) -> Iterator[None]:
    before = session.info.copy()
    session.info["owner"] = owner
    try:
        yield
    finally:
        session.info.clear()
        session.info.update(before)


@sa.event.listens_for(Session, "do_orm_execute")
def hand_on_the_owner(state: ORMExecuteState) -> None:
    if "owner" not in state.session.info:
        return
    owner, statement, mapper = state.session.info["owner"], state.statement, state.bind_mapper
    columns: Any = mapper.persist_selectable.c if mapper else ()
    if state.is_column_load and "user_id" in columns and isinstance(statement, sa.Select):
        state.statement = statement.where(columns["user_id"] == owner)  # refresh() names the id alone
    if state.is_update and state.parameters:  # an UPDATE for each of them, by its id alone
        raise OwnerMissingError("update() with parameters")
    state.update_execution_options(owner=owner)


@sa.event.listens_for(Mapper, "before_insert")
@sa.event.listens_for(Mapper, "before_update")
@sa.event.listens_for(Mapper, "before_delete")
def check_row(mapper: Mapper[Any], _connection: object, row: Any) -> None:
    state = sa.inspect(row)
    if "owner" in state.session.info and "user_id" in mapper.columns:
        owner, given_away_or_taken = state.session.info["owner"], state.attrs.user_id.history.deleted
        if owner is None or row.user_id != owner or given_away_or_taken:
            raise OwnerMissingError(str(mapper.local_table))


@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def check_statement(_connection: Any, _cursor: Any, _sql: Any, _values: Any, context: Any, _: Any) -> None:
    options = context.execution_options
    is_statement = context.compiled and not context.isddl
    if "owner" in options and is_statement and options.get("all_users") is not True:
        owner = options["owner"]
        for table, placeholders in owned_tables(context.compiled):
            for values in context.compiled_parameters:  # what is really sent
                if owner is None or all(values.get(name) != owner for name in placeholders):
                    raise OwnerMissingError(table)


# Each table with a user_id in a statement, and the placeholders of which one must stand for the owner.
# SQLAlchemy compiles a statement once, with all that a mapper adds to it: so this is found once.
@lru_cache(maxsize=1000)
def owned_tables(compiled: Any) -> list[tuple[str, set[str]]]:
    names = {key: compiled.bind_names[value] for key, value in compiled.binds.items()}
    found = tables_in(getattr(compiled.compile_state, "statement", compiled.statement), set())
    return [(table, {names[key] for key in keys & names.keys()}) for table, keys in found]


STATEMENTS = (sa.Select, sa.CompoundSelect, sa.Insert, sa.Update, sa.Delete)


def tables_in(statement: Any, seen: set[Any]) -> Iterator[tuple[str, set[str]]]:
    parts = list(parts_of(statement))
    compared = list(comparisons(getattr(statement, "whereclause", None)))
    for part in parts:
        if isinstance(part, STATEMENTS) and part not in seen:
            seen.add(part)
            yield from tables_in(part, seen)  # each speaks for itself
        elif isinstance(part, sa.Join) and not part.full:
            compared += [pair for pair in comparisons(part.onclause) if is_same(pair[0], part.right)]
    if isinstance(statement, sa.CompoundSelect):
        return  # its selects have spoken
    if isinstance(statement, sa.Insert):
        if is_plain(statement):
            compared.append((statement.table, "user_id"))
        elif statement._multi_values:  # what stands in these cannot be seen
            yield statement.table.name, set()
    elif any(
        getattr(column, "key", column) == "user_id" for column in getattr(statement, "_values", None) or ()
    ):
        yield table_of(statement.table).name, {"user_id"}  # of an UPDATE, which gives no row away
    for table in {part for part in parts if table_of(part) is not None}:
        yield table_of(table).name, {key for other, key in compared if is_same(other, table)}


# All that a statement is made of, down to tables and subqueries.
def parts_of(statement: Any) -> Iterator[Any]:
    todo, seen = list(statement.get_children()), set()
    while todo:
        part = todo.pop()
        if part in seen:
            continue
        seen.add(part)
        yield part
        if isinstance(part, sa.ColumnClause) and part.table is not None:
            todo.append(part.table)
        elif table_of(part) is None and not isinstance(part, STATEMENTS):
            todo += part.get_children()


# The table with a user_id that this is, or is an alias of.
def table_of(part: Any) -> Any:
    if isinstance(part, sa.AliasedReturnsRows):
        return table_of(part.element)
    return part if isinstance(part, sa.TableClause) and "user_id" in part.c else None


def is_same(table: Any, other: Any) -> bool:
    return hash(table) == hash(other)  # SQLAlchemy annotates copies of tables, which have the same hash


# What stands in a condition, or in its AND, as the value of a user_id.
def comparisons(condition: Any) -> Iterator[tuple[Any, str]]:
    if isinstance(condition, sa.BooleanClauseList) and condition.operator is operators.and_:
        if not any(map(is_raw_sql, parts_of(condition))):  # which may hold an OR
            for part in condition.clauses:
                yield from comparisons(part)
    elif isinstance(condition, sa.BinaryExpression) and condition.operator is operators.eq:
        for side, value in ((condition.left, condition.right), (condition.right, condition.left)):
            if isinstance(value, sa.BindParameter) and getattr(side, "name", "") == "user_id":
                yield getattr(side, "table", None), value.key


# Not from a select, and no upsert or REPLACE, which may meet the row of another.
def is_plain(insert: Any) -> bool:
    return (
        insert.select is None
        and insert._post_values_clause is None
        and not insert._prefixes + insert._multi_values
    )


def is_raw_sql(part: Any) -> bool:
    return isinstance(part, sa.TextClause) or getattr(part, "is_literal", False)
