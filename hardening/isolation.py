"""Nobody can forget the owner: a statement must name one, and then reaches no rows of others.

Name the owner once, as in `.where(Task.user_id == owner)`. The guard adds the same condition for every other
table in the statement that has a `user_id`, and to what SQLAlchemy sends by itself: session.get(), refresh(),
relationships. A new row needs `user_id=owner`. For the rows of all users, say so:
`execution_options={"all_users": True}`.

Refused on tables with a `user_id`: insert() and upserts, a new user_id in an UPDATE, and SQL in strings, such
as text(), beside them. Not checked: a statement that is all text(), a Session(engine) of your own,
session.connection(), bulk_ methods, DDL, new rows of a class that calls its user_id something else, and a row
that all_users has loaded, until you change it."""

# ruff: noqa: SLF001  (some parts of SQLAlchemy have no public name; without them nothing is sent)

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, mapperlib, with_loader_criteria
from sqlalchemy.sql import operators, selectable, visitors

# The database gets the owner as a parameter of each statement. The variable is for SQLAlchemy itself, which
# checks in Python which of the loaded rows an update() changes.
current_owner: ContextVar[str | None] = ContextVar("current_owner", default=None)
OWNER = sa.bindparam("__owner", callable_=current_owner.get, type_=sa.String())


class OwnerMissingError(Exception):
    pass


# While a request runs. Other sessions, such as a Session(engine) in a script, are not checked.
@contextmanager
def require_owner(session: Session, owner: str) -> Iterator[None]:
    before = session.info.copy()
    session.info["owner"] = owner
    try:
        yield
    finally:
        session.info.clear()
        session.info.update(before)


# 1. Before a statement becomes SQL: it must name the owner. Then each class in it gets the condition.

# SQLAlchemy writes the SQL of a statement once, and then takes it from a cache. This one is only for SQL that
# has passed part 2.
guarded_sql: sa.util.LRUCache[Any, Any] = sa.util.LRUCache(1000)


@sa.event.listens_for(Session, "do_orm_execute")
def add_conditions(state: ORMExecuteState) -> None:
    statement: Any = state.statement
    parameters = state.parameters or {}
    if "owner" not in state.session.info or state.execution_options.get("all_users") is True:
        return
    owner = state.session.info["owner"]
    is_named = state.is_insert or is_sent_by_sqlalchemy(state) or names_owner(owner, statement, parameters)
    if owner is None or not is_named:
        for table in owned_tables(statement):
            columns = classes().get(table.name, f"{table}.c")
            remedy = f"add .where({columns}.user_id == owner), or, of an outer join, to its ON"
            raise OwnerMissingError(f"{table}: the statement names no owner: {remedy}")
    if isinstance(parameters, list) and not state.is_insert and owned_tables(statement):
        raise OwnerMissingError("update() with a list finds rows by id alone: use update() with a where()")
    if isinstance(parameters, dict) and not state.is_insert:  # an insert() would take it for a column
        state.parameters = {**parameters, OWNER.key: owner}
    state.statement = with_condition(statement).execution_options(is_guarded=True)
    state.update_execution_options(compiled_cache=guarded_sql)
    current_owner.set(owner)


def with_condition(statement: Any) -> Any:
    given = statement._with_options  # a relationship gets those with which its parent was loaded
    return statement.options(*(option for option in conditions() if option not in given))


# For refresh(), for relationships, and for get(), whose parameters are the columns of the primary key.
def is_sent_by_sqlalchemy(state: ORMExecuteState) -> bool:
    parameters = state.parameters or {}
    is_get = bool(parameters) and all(str(name).startswith("pk_") for name in parameters)
    return state.is_column_load or state.is_relationship_load or is_get


# Does it compare a user_id with the owner? Where, does not matter: the conditions are added in any case.
def names_owner(owner: str, statement: Any, parameters: Any) -> bool:
    for part in visitors.iterate(statement):
        if isinstance(part, sa.BinaryExpression) and part.operator in (operators.eq, operators.in_op):
            for column, value in ((part.left, part.right), (part.right, part.left)):
                if getattr(column, "key", "") == "user_id" and isinstance(value, sa.BindParameter):
                    given = parameters.get(value.key) if value.key in parameters else value.effective_value
                    if given in (owner, [owner]):
                        return True
    return False


def owned_tables(statement: Any) -> list[Any]:
    tables = [getattr(part, "table", part) for part in visitors.iterate(statement)]
    return [table for table in tables if isinstance(table, sa.TableClause) and is_owned(table)]


# By its name, too: a table may be described a second time, without its user_id.
def is_owned(table: Any) -> bool:
    return "user_id" in table.c or table.name in classes()


@lru_cache
def owned_mappers() -> list[Mapper[Any]]:
    mappers = [mapper for registry in mapperlib._all_registries() for mapper in registry.mappers]
    return [mapper for mapper in mappers if "user_id" in mapper.columns]


@lru_cache
def classes() -> dict[str, str]:
    mappers = [mapper for mapper in owned_mappers() if not mapper.single]  # those with a table of their own
    return {mapper.local_table.description: mapper.class_.__name__ for mapper in mappers}


@lru_cache
def conditions() -> list[Any]:
    # A function, since a table that is joined to itself needs the condition for each side.
    def condition(entity: Any) -> Any:
        return entity.user_id == OWNER

    options = {"include_aliases": True, "track_closure_variables": False}
    top = [mapper for mapper in owned_mappers() if mapper.inherits not in owned_mappers()]
    return [with_loader_criteria(mapper, condition, **options) for mapper in top]


@sa.event.listens_for(Mapper, "after_mapper_constructed")
def forget_mappers(*_: object) -> None:
    for remembered in (owned_mappers, classes, conditions):
        remembered.cache_clear()


# 2. While SQLAlchemy writes the SQL: a table that no condition reached is read through a subquery with it, as
# in `FROM (SELECT * FROM tasks WHERE user_id = 'ann') AS tasks`. Such are the link table of a many-to-many
# relationship, a FULL JOIN, and a table without its class.


# SQLAlchemy calls this to write a table. compiler.stack has the statements that it is writing: the whole one
# first, and last the SELECT, UPDATE or DELETE with this table. asfrom: rows come from the table here, as they
# do not in FOR UPDATE OF. enclosing_alias: the AS around it, of the table or of a subquery that has it.
@compiles(sa.Table)
@compiles(sa.TableClause)
def write_table(table: Any, compiler: Any, **options: Any) -> str:
    sql = str(compiler.visit_table(table, **options))
    if not (compiler.execution_options.get("is_guarded") and options.get("asfrom") and is_owned(table)):
        return sql
    check_whole(compiler.stack[0]["selectable"], table)
    part = compiler.stack[-1]
    statement = part["selectable"]
    alias = options.get("enclosing_alias")
    source = alias if alias is not None and is_same(alias.element, table) else table
    is_filtered = any(is_same(column.table, source) for column in owner_columns(part))
    if isinstance(statement, sa.UpdateBase) and is_same(statement.table, source):
        check_target(statement, compiler, is_filtered=is_filtered)
        return sql
    if is_filtered:
        return sql
    sql = f"(SELECT * FROM {sql} WHERE user_id = {compiler.process(OWNER)})"  # noqa: S608  (names, no input)
    return sql if source is alias else f"{sql} AS {compiler.preparer.quote(table.name)}"


def check_whole(statement: Any, table: Any) -> None:
    if "user_id" not in table.c:  # a second description of it, or the table of a subclass
        raise OwnerMissingError(f"{table}: it needs a column user_id of its own")
    if isinstance(statement, sa.Insert):
        raise OwnerMissingError(f"{table}: in place of insert(), select first, then use session.add()")
    if any(map(is_in_a_string, visitors.iterate(statement))):
        raise OwnerMissingError(f"{table}: SQL in a string, such as text(), cannot be checked beside it")


def check_target(statement: Any, compiler: Any, *, is_filtered: bool) -> None:
    table = statement.table
    if not is_filtered:
        a_class = classes().get(table.name, "which it does not have")
        raise OwnerMissingError(f"{table}: update() and delete() need its class, {a_class}")
    if isinstance(statement, sa.Update):
        columns = [getattr(column, "key", column) for column in statement._values or ()]
        if "user_id" in [*columns, *(compiler.column_keys or ())]:
            raise OwnerMissingError(f"{table}: an update() does not set the user_id: leave it out")


@compiles(sa.Insert)
def write_insert(statement: Any, compiler: Any, **options: Any) -> str:
    if compiler.execution_options.get("is_guarded") and is_owned(statement.table):
        raise OwnerMissingError(f"{statement.table}: use session.add() in place of insert()")
    return str(compiler.visit_insert(statement, **options))


# The columns that are the owner in each row that this part reads or changes.
def owner_columns(part: Any) -> Iterator[Any]:
    yield from equal_to_owner(part["selectable"].whereclause)
    froms = list(part["compile_state"].froms) if isinstance(part["selectable"], sa.Select) else []
    for join in froms:
        if isinstance(join, sa.Join):
            froms += [join.left, join.right]
            if not join.full:  # a FULL JOIN also returns rows to which its ON does not apply
                yield from equal_to_owner(join.onclause)


def equal_to_owner(condition: Any) -> Iterator[Any]:
    if isinstance(condition, sa.BooleanClauseList) and condition.operator is operators.and_:
        for each in condition.clauses:
            yield from equal_to_owner(each)
    elif isinstance(condition, sa.BinaryExpression) and getattr(condition.right, "key", None) == OWNER.key:
        yield condition.left


# A statement holds copies of a table, with SQLAlchemy's notes in them. Their hash is the same.
def is_same(table: object, other: object) -> bool:
    return hash(table) == hash(other)


def is_in_a_string(part: Any) -> bool:
    if isinstance(part, sa.TextClause) or getattr(part, "is_literal", False):
        return not re.fullmatch(r"[\w.*]*", str(part))  # a name, a number or a star is harmless
    return (
        (isinstance(part, selectable.HasPrefixes) and bool(part._prefixes))
        or (isinstance(part, selectable.HasSuffixes) and bool(part._suffixes))
        or (isinstance(part, selectable.HasHints) and bool(part._hints or part._statement_hints))
    )


# 3. When a session writes rows that were added, changed or deleted as objects.


@sa.event.listens_for(Mapper, "before_insert")
@sa.event.listens_for(Mapper, "before_update")
@sa.event.listens_for(Mapper, "before_delete")
def check_row(mapper: Mapper[Any], _connection: object, row: Any) -> None:
    state = sa.inspect(row)
    if "owner" in state.session.info and "user_id" in mapper.columns:
        owner, history = state.session.info["owner"], state.attrs.user_id.history
        is_changed = history.added if state.key else history.deleted  # of a new row: set a second time
        if owner is None or row.user_id != owner or is_changed:
            raise OwnerMissingError(f"{mapper.local_table}: a row must have user_id=owner, and keep it")


# It may be another user's row, and say that it is the owner's.
@sa.event.listens_for(Session, "before_attach")
def check_object(session: Session, row: Any) -> None:
    state = sa.inspect(row)
    if "owner" in session.info and state.key and "user_id" in state.mapper.columns:
        raise OwnerMissingError(f"{state.mapper.local_table}: loaded by another session: use merge()")
