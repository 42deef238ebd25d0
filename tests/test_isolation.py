"""Nobody can forget the owner: a statement of a request says whose rows it means, or it is not sent."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any

import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from sqlalchemy import bindparam, exists, insert, join, lambda_stmt, lateral, literal_column
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import (
    Query,
    aliased,
    contains_eager,
    joinedload,
    raiseload,
    registry,
    selectinload,
    with_loader_criteria,
)
from sqlmodel import (
    Field,
    Relationship,
    Session,
    SQLModel,
    StaticPool,
    and_,
    col,
    create_engine,
    delete,
    func,
    literal,
    not_,
    or_,
    select,
    text,
    union,
    update,
)

from hardening.isolation import OwnerMissingError, require_owner


class Model(SQLModel, registry=registry()):
    """Has a metadata of its own, so that the app's holds the app's tables alone."""


class Person(Model, table=True):
    id: str = Field(primary_key=True)


class Task(Model, table=True):
    __tablename__ = "tasks"

    id: int | None = Field(default=None, primary_key=True)
    user_id: str = Field(foreign_key="person.id")
    title: str
    tags: list["Tag"] = Relationship(back_populates="task", sa_relationship_kwargs={"passive_deletes": "all"})
    person: Person = Relationship()


class Tag(Model, table=True):
    __tablename__ = "tags"

    id: int | None = Field(default=None, primary_key=True)
    user_id: str
    task_id: int = Field(foreign_key="tasks.id")
    name: str
    task: Task = Relationship(back_populates="tags")


class Pin(Model, table=True):
    """Has no user_id, but brings a task along whenever it is loaded."""

    id: int | None = Field(default=None, primary_key=True)
    task_id: int = Field(foreign_key="tasks.id")
    task: Task = Relationship(sa_relationship_kwargs={"lazy": "joined"})


class Star(Model, table=True):
    """The same, as old code says it."""

    id: int | None = Field(default=None, primary_key=True)
    task_id: int = Field(foreign_key="tasks.id")
    task: Task = Relationship(sa_relationship_kwargs={"lazy": False})


pytestmark = pytest.mark.filterwarnings("ignore:.*cartesian product")
ANN, BOB = "ann", "bob"
TASKS: sa.Table = Task.__table__  # type: ignore[attr-defined]  # SQLModel makes it
TAGS: sa.Table = Tag.__table__  # type: ignore[attr-defined]  # SQLModel makes it
Other = aliased(Task)
task_tags: Any = Task.tags


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    """A database in which Ann and Bob have a task each, with a tag and a pin."""
    engine = create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        for number, owner in ((1, ANN), (2, BOB)):
            session.add(Person(id=owner))
            session.add(Task(id=number, user_id=owner, title=f"{owner}'s task"))
            session.add(Tag(id=number, user_id=owner, task_id=number, name=f"{owner}'s tag"))
            session.add(Pin(id=number, task_id=number))
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def sent(engine: sa.Engine) -> list[str]:
    """The statements that have reached the database."""
    statements: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    return statements


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    """A session of a request, before anybody knows who is calling."""
    with Session(engine, expire_on_commit=False, info={"owner": None}) as session:
        yield session


@pytest.fixture
def anns(session: Session) -> Iterator[Session]:
    """The same, once it is known that Ann is."""
    with require_owner(session, ANN):
        yield session


Case = Callable[[Any], Any]


def table_of_cases(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("execute", cases.values(), ids=cases.keys())


def rows_of(result: Any) -> Any:
    with suppress(sa.exc.ResourceClosedError):  # there are none
        return result.all() if isinstance(result, sa.Result | sa.ScalarResult) else result


def what_bob_has(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return [connection.execute(sa.select(t).where(t.c.user_id == BOB)).all() for t in (TASKS, TAGS)]


mine = col(Task.user_id) == ANN
my_tags = col(Tag.user_id) == ANN
my_tasks = select(Task.id).where(mine)


def nested(depth: int) -> Any:
    statement: Any = sa.select(TASKS).where(TASKS.c.user_id == ANN)
    for _ in range(depth):
        statement = sa.select(*statement.subquery().c)
    return statement


def recursive() -> Any:
    tree = select(Task.id).where(mine).cte(recursive=True)
    return tree.union_all(select(Task.id).where(mine, col(Task.id) == tree.c.id + 1))


MAY: dict[str, Case] = {
    "equal": lambda s: s.exec(select(Task).where(Task.user_id == ANN)),
    "reversed": lambda s: s.exec(select(Task).where(ANN == Task.user_id)),  # noqa: SIM300
    "literal first": lambda s: s.exec(select(Task).where(literal(ANN) == col(Task.user_id))),
    "col": lambda s: s.exec(select(Task).where(col(Task.user_id) == ANN)),
    "one of several": lambda s: s.exec(select(Task).where(Task.id == 1, mine)),
    "second where": lambda s: s.exec(select(Task).where(Task.id == 1).where(mine)),
    "nested and_": lambda s: s.exec(select(Task).where(and_(Task.id == 1, and_(mine, Task.title != "")))),
    "beside or_": lambda s: s.exec(select(Task).where(mine, or_(Task.id == 1, Task.id == 2))),
    "filter_by": lambda s: s.exec(select(Task).filter_by(user_id=ANN, id=1)),
    "anonymous bindparam": lambda s: s.exec(
        select(Task).where(col(Task.user_id) == bindparam("owner", ANN, unique=True))
    ),
    "one column": lambda s: s.exec(select(Task.title).where(mine)),
    "count": lambda s: s.exec(select(func.count()).select_from(Task).where(mine)),
    "page": lambda s: s.exec(select(Task).where(mine).order_by(Task.title).offset(0).limit(9)),
    "group": lambda s: s.exec(select(Task.title, func.count()).where(mine).group_by(Task.title)),
    "locked": lambda s: s.exec(select(Task).where(mine).with_for_update()),
    "Table": lambda s: s.execute(sa.select(TASKS).where(TASKS.c.user_id == ANN)),
    "alias": lambda s: s.exec(select(Other).where(Other.user_id == ANN)),
    "table and alias": lambda s: s.exec(
        select(Task, Other).where(mine, Other.id == Task.id, Other.user_id == ANN)
    ),
    "join": lambda s: s.exec(select(Task, Tag).join(Tag).where(mine, my_tags)),
    "join of a relationship": lambda s: s.exec(select(Task).join(task_tags).where(mine, my_tags)),
    "join, with the owner in ON": lambda s: s.exec(
        select(Task, Tag).join(Tag, and_(Tag.task_id == Task.id, my_tags)).where(mine)
    ),
    "outer join, with the owner in ON": lambda s: s.exec(
        select(Task, Tag).outerjoin(Tag, and_(Tag.task_id == Task.id, my_tags)).where(mine)
    ),
    "join()": lambda s: s.exec(select(Task).select_from(join(Task, Tag)).where(mine, my_tags)),
    "contains_eager": lambda s: s.exec(
        select(Task).join(task_tags).options(contains_eager(task_tags)).where(mine, my_tags)
    ).unique(),
    "options": lambda s: s.exec(select(Task).options(raiseload("*")).where(mine)),
    "in a subquery": lambda s: s.exec(
        select(Task).where(mine, col(Task.id).in_(select(Tag.task_id).where(my_tags)))
    ),
    "exists": lambda s: s.exec(
        select(Task).where(mine, exists().where(col(Tag.task_id) == Task.id, my_tags, mine))
    ),
    "scalar subquery": lambda s: s.exec(
        select(Task.title, select(func.count(col(Tag.id))).where(my_tags).scalar_subquery()).where(mine)
    ),
    "from a subquery": lambda s: s.exec(sa.select(my_tasks.subquery())),
    "from fifteen subqueries in each other": lambda s: s.execute(nested(15)),
    "from a CTE": lambda s: s.exec(select(my_tasks.cte().c.id)),
    "alias of a subquery": lambda s: s.exec(select(aliased(Task, select(Task).where(mine).subquery()))),
    "union": lambda s: s.exec(select(Task.title).where(mine).union(select(Tag.name).where(my_tags))),
    "ordered union": lambda s: s.exec(union(my_tasks, my_tasks).order_by(col(Task.id))),
    "from an ordered union": lambda s: s.exec(
        sa.select(union(my_tasks, my_tasks).order_by(col(Task.id)).subquery())
    ),
    "from_statement": lambda s: s.execute(select(Task).from_statement(select(Task).where(mine))),
    "from_statement of an insert": lambda s: s.execute(
        select(Task).from_statement(insert(Task).values(user_id=ANN, title="new").returning(Task))
    ),
    "from_statement of an update": lambda s: s.execute(
        select(Task).from_statement(update(Task).where(mine).values(title="new").returning(Task))
    ),
    "from_statement of a delete": lambda s: s.execute(
        select(Task).from_statement(delete(Task).where(mine).returning(Task))
    ),
    "from_statement of a union": lambda s: s.execute(
        select(Task).from_statement(union(select(Task).where(mine), select(Task).where(mine)))
    ),
    "query": lambda s: Query(Task, s).filter(mine).all(),
    "count of a query": lambda s: Query(Task, s).filter(mine).count(),
    "update of a query": lambda s: Query(Task, s).filter(mine).update({"title": "new"}),
    "named bindparam": lambda s: s.exec(select(Task).where(col(Task.user_id) == bindparam("owner", ANN))),
    "callable": lambda s: s.exec(
        select(Task).where(col(Task.user_id) == bindparam("x", callable_=lambda: ANN, unique=True))
    ),
    "with_loader_criteria": lambda s: s.exec(select(Task).options(with_loader_criteria(Task, mine))),
    "recursive CTE": lambda s: s.execute(select(recursive().c.id)),
    "lambda": lambda s: s.execute(lambda_stmt(lambda: select(Task).where(Task.user_id == ANN))),
    "order by text": lambda s: s.exec(select(Task).where(mine).order_by(text("title"))),
    "update": lambda s: s.exec(update(Task).where(mine, col(Task.id) == 1).values(title="new")),
    "update to the same owner": lambda s: s.exec(update(Task).where(mine).values(user_id=ANN)),
    "update returning": lambda s: s.exec(update(Task).where(mine).values(title="new").returning(Task)),
    "update with a subquery": lambda s: s.exec(
        update(Task).where(mine).values(title=select(func.max(Tag.name)).where(my_tags).scalar_subquery())
    ),
    "update from": lambda s: s.exec(
        update(Task).where(mine, col(Tag.task_id) == Task.id, my_tags).values(title=Tag.name)
    ),
    "delete": lambda s: s.exec(delete(Task).where(mine, col(Task.id) == 1)),
    "delete of a Table": lambda s: s.execute(sa.delete(TASKS).where(TASKS.c.user_id == ANN)),
    "insert": lambda s: s.exec(insert(Task).values(user_id=ANN, title="new")),
    "insert of a column": lambda s: s.exec(insert(Task).values({Task.user_id: ANN, "title": "new"})),
    "insert returning": lambda s: s.exec(insert(Task).values(user_id=ANN, title="new").returning(Task)),
    "insert into a Table": lambda s: s.execute(sa.insert(TASKS).values(user_id=ANN, title="new")),
    "insert of a row": lambda s: s.execute(insert(Task), {"user_id": ANN, "title": "new"}),
    "insert of rows": lambda s: s.execute(insert(Task), [{"user_id": ANN, "title": t} for t in "ab"]),
    "insert elsewhere from select": lambda s: s.execute(
        insert(Person).from_select(["id"], select(Task.title).where(mine))
    ),
}

# These name no table with a user_id, or say that they are about all users.
WITHOUT_OWNER: dict[str, Case] = {
    "table without user_id": lambda s: s.exec(select(Person.id).where(Person.id != BOB)),
    "get from it": lambda s: s.get(Person, ANN),
    "parameter for it": lambda s: s.execute(
        select(Person).where(col(Person.id) == bindparam("id")), {"id": ANN}
    ),
    "all users": lambda s: s.exec(select(func.count(col(Task.id))), execution_options={"all_users": True}),
    "all users, said by the statement": lambda s: s.exec(
        select(func.count(col(Task.id))).execution_options(all_users=True)
    ),
    "text": lambda s: s.execute(text("SELECT 1")),
}

MUST_NOT: dict[str, Case] = {
    "no condition": lambda s: s.exec(select(Task)),
    "another condition": lambda s: s.exec(select(Task).where(Task.id == 2)),
    "get": lambda s: s.get(Task, 2),
    "merge": lambda s: s.merge(Task(id=2, user_id=ANN, title="new")),
    "count": lambda s: s.exec(select(func.count()).select_from(Task)),
    "function": lambda s: s.execute(func.max(Task.title)),
    "one column": lambda s: s.exec(select(Task.title)),
    "not equal": lambda s: s.exec(select(Task).where(Task.user_id != ANN)),
    "another user": lambda s: s.exec(select(Task).where(Task.user_id == BOB)),
    "a number": lambda s: s.exec(select(Task).where(col(Task.user_id) == 0)),
    "nobody": lambda s: s.exec(select(Task).where(col(Task.user_id) == None)),  # noqa: E711
    "or_": lambda s: s.exec(select(Task).where(or_(mine, Task.id == 2))),
    "or_ in and_": lambda s: s.exec(select(Task).where(and_(or_(mine, Task.id == 2), Task.title != ""))),
    "not_": lambda s: s.exec(select(Task).where(not_(mine))),
    "not_ of and_": lambda s: s.exec(select(Task).where(not_(and_(mine, Task.id == 1)))),
    "equal to itself": lambda s: s.exec(select(Task).where(Task.user_id == Task.user_id)),
    "less or equal": lambda s: s.exec(select(Task).where(Task.user_id <= ANN)),
    "in_": lambda s: s.exec(select(Task).where(col(Task.user_id).in_([ANN, BOB]))),
    "like": lambda s: s.exec(select(Task).where(col(Task.user_id).like(ANN))),
    "function of the column": lambda s: s.exec(select(Task).where(func.lower(Task.user_id) == ANN)),
    "collation": lambda s: s.exec(select(Task).where(col(Task.user_id).collate("NOCASE") == ANN)),
    "another column": lambda s: s.exec(select(Task).where(Task.title == ANN)),
    "order by alone": lambda s: s.exec(select(Task).order_by(mine)),
    "having alone": lambda s: s.exec(select(Task.user_id).group_by(Task.user_id).having(mine)),
    "text": lambda s: s.exec(select(Task).where(text("user_id = 'ann'"))),
    "literal_column": lambda s: s.exec(select(Task).where(literal_column("user_id") == ANN)),
    "OR in a text": lambda s: s.exec(select(Task).where(mine, text("id = 1 OR title LIKE '%'"))),
    "OR in a text that comes first": lambda s: s.exec(select(Task).where(text("title LIKE '%' OR 1"), mine)),
    "OR in a text in and_": lambda s: s.exec(
        select(Task).where(mine, and_(Task.title != "", text("id = 1 OR title LIKE '%'")))
    ),
    "OR in a text, in ON": lambda s: s.exec(
        select(Task, Tag).join(Tag, and_(my_tags, text("tags.id = 1 OR tags.name LIKE '%'"))).where(mine)
    ),
    "named twice": lambda s: s.exec(
        select(Task).where(col(Task.user_id) == bindparam("x", ANN), col(Task.title) != bindparam("x", BOB))
    ),
    "callable beside a value": lambda s: s.exec(
        select(Task).where(col(Task.user_id) == bindparam("x", ANN, callable_=lambda: BOB, unique=True))
    ),
    "replaced by a parameter": lambda s: s.execute(select(Task).where(mine), {"user_id_1": BOB}),
    "replaced by params()": lambda s: s.exec(select(Task).where(mine).params(user_id_1=BOB)),
    "replaced by params() of a subquery": lambda s: s.exec(
        select(Task).where(mine, exists(select(Person.id).params(user_id_1=BOB)))
    ),
    "replaced in a union": lambda s: s.execute(union(my_tasks, my_tasks), {"user_id_1": BOB}),
    "Table": lambda s: s.execute(sa.select(TASKS)),
    "alias": lambda s: s.exec(select(Other)),
    "condition on the table, not on its alias": lambda s: s.exec(select(Other).where(mine)),
    "condition on one of two aliases": lambda s: s.exec(
        select(Other, aliased(Task)).where(Other.user_id == ANN)
    ),
    "alias of an alias": lambda s: s.execute(sa.select(TASKS.alias().alias())),
    "condition on what it is an alias of": lambda s: s.execute(
        sa.select((alias := TASKS.alias()).alias()).where(alias.c.user_id == ANN)
    ),
    "tablesample": lambda s: s.execute(sa.select(sa.tablesample(TASKS, 50))),
    "lateral": lambda s: s.execute(sa.select(lateral(TASKS)).where(mine)),
    "lightweight table": lambda s: s.execute(sa.select(sa.table("tasks", sa.column("user_id")))),
    "join": lambda s: s.exec(select(Task).join(Tag).where(mine)),
    "join of a relationship": lambda s: s.exec(select(Task).join(task_tags).where(mine)),
    "join of a forgotten table": lambda s: s.exec(
        select(Task).join(Tag).with_only_columns(col(Task.id)).where(mine)
    ),
    "equal to another table's": lambda s: s.exec(select(Task, Tag).where(Task.user_id == Tag.user_id)),
    "join()": lambda s: s.exec(select(Task).select_from(join(Task, Tag)).where(mine)),
    "left of an outer join, in its ON": lambda s: s.exec(
        select(Task, Tag).outerjoin(Tag, and_(Tag.task_id == Task.id, my_tags, mine))
    ),
    "full join, with the owner in ON": lambda s: s.exec(select(Person, Tag).join(Tag, my_tags, full=True)),
    "joinedload": lambda s: s.exec(select(Task).options(joinedload(task_tags)).where(mine)).unique(),
    "lazy='joined'": lambda s: s.exec(select(Pin)),
    "lazy=False": lambda s: s.exec(select(Star)),
    "in a subquery": lambda s: s.exec(select(Task).where(mine, col(Task.id).in_(select(Tag.task_id)))),
    "exists": lambda s: s.exec(select(Task).where(mine, exists().where(col(Tag.task_id) == Task.id))),
    "scalar subquery": lambda s: s.exec(
        select(Task, select(func.max(Tag.name)).scalar_subquery()).where(mine)
    ),
    "subquery in ORDER BY": lambda s: s.exec(
        select(Task).where(mine).order_by(select(func.max(Tag.name)).scalar_subquery())
    ),
    "subquery in LIMIT": lambda s: s.exec(
        select(Task).where(mine).limit(select(func.count(col(Tag.id))).scalar_subquery())
    ),
    "condition outside of the subquery": lambda s: s.exec(
        sa.select(sub := select(Task).subquery()).where(sub.c.user_id == ANN)
    ),
    "condition inside, table outside": lambda s: s.exec(select(Task).where(exists(my_tasks))),
    "CTE": lambda s: s.exec(sa.select(select(Task.title).cte())),
    "unused CTE": lambda s: s.exec(select(Person).add_cte(delete(Task).cte())),
    "union": lambda s: s.exec(select(Task.title).where(mine).union(select(Tag.name))),
    "from_statement": lambda s: s.execute(select(Task).from_statement(select(Task))),
    "from_statement of a delete": lambda s: s.execute(
        select(Task).from_statement(delete(Task).returning(Task))
    ),
    "query": lambda s: Query(Task, s).all(),
    "count of a query": lambda s: Query(Task, s).count(),
    "lambda": lambda s: s.execute(lambda_stmt(lambda: select(Task))),
    "update": lambda s: s.exec(update(Task).values(title="new")),
    "update of another user": lambda s: s.exec(update(Task).where(col(Task.id) == 2).values(title="new")),
    "update with rows": lambda s: s.execute(update(Task), [{"id": 2, "title": "new"}]),
    "update that gives away": lambda s: s.exec(update(Task).where(mine).values(user_id=BOB)),
    "update that gives away, by column": lambda s: s.exec(
        update(Task).where(mine).values({Task.user_id: BOB})
    ),
    "update that gives away, by parameter": lambda s: s.execute(update(Task).where(mine), {"user_id": BOB}),
    "update that gives away, by SQL": lambda s: s.exec(
        update(Task).where(mine).values(user_id=func.lower("BOB"))
    ),
    "update from": lambda s: s.exec(update(Task).where(mine).values(title=Tag.name)),
    "update with a subquery": lambda s: s.exec(
        update(Task).where(mine).values(title=select(func.max(Tag.name)).scalar_subquery())
    ),
    "delete": lambda s: s.exec(delete(Task)),
    "delete of a Table": lambda s: s.execute(sa.delete(TASKS)),
    "insert": lambda s: s.exec(insert(Task).values(title="new", user_id=BOB)),
    "insert without owner": lambda s: s.exec(insert(Tag).values(task_id=1, name="new")),
    "insert of SQL": lambda s: s.exec(insert(Task).values(title="new", user_id=func.lower("BOB"))),
    "insert of SQL, and rows": lambda s: s.execute(
        insert(Task).values(user_id=func.lower("BOB")), [{"user_id": ANN, "title": "new"}]
    ),
    "insert of two owners": lambda s: s.execute(
        sa.insert(TASKS).values({"user_id": BOB, TASKS.c.user_id: ANN, "title": "new"})
    ),
    "insert of values, and rows": lambda s: s.execute(
        insert(Task).values(user_id=ANN), [{"user_id": BOB, "title": "new"}]
    ),
    "insert of rows": lambda s: s.execute(
        insert(Task), [{"user_id": ANN, "title": "a"}, {"user_id": BOB, "title": "b"}]
    ),
    "insert of values in a list": lambda s: s.exec(insert(Task).values([{"user_id": BOB, "title": "b"}])),
    "insert of values in a list, replaced": lambda s: s.execute(
        sa.insert(TASKS).values([{"user_id": ANN, "title": "a"}]), {"user_id": ANN, "user_id_m0": BOB}
    ),
    "insert of a subquery in a list": lambda s: s.exec(
        insert(Person).values([{"id": select(func.max(Task.title)).scalar_subquery()}])
    ),
    "insert from select": lambda s: s.exec(
        insert(Task).from_select(["user_id", "title"], select(Task.user_id, Task.title).where(mine))
    ),
    "insert from select, and a row": lambda s: s.execute(
        sa.insert(TASKS).from_select(["user_id", "title"], select(literal(BOB), Person.id)), {"user_id": ANN}
    ),
    "insert elsewhere from select": lambda s: s.exec(insert(Person).from_select(["id"], select(Task.title))),
    "insert or replace": lambda s: s.exec(
        insert(Task).prefix_with("OR REPLACE").values(id=2, user_id=ANN, title="new")
    ),
    "upsert": lambda s: s.exec(
        sqlite.insert(Task)
        .values(id=2, user_id=ANN, title="new")
        .on_conflict_do_update(index_elements=["id"], set_={"title": "new"})
    ),
}


@table_of_cases(MAY | WITHOUT_OWNER)
def test_sent(anns: Session, engine: sa.Engine, sent: list[str], execute: Case) -> None:
    before = what_bob_has(engine)
    sent.clear()
    rows = rows_of(execute(anns))
    anns.commit()
    assert sent
    assert BOB not in str(rows)
    assert what_bob_has(engine) == before


@table_of_cases(MUST_NOT)
def test_refused(anns: Session, sent: list[str], execute: Case) -> None:
    with pytest.raises(OwnerMissingError):
        execute(anns)
    assert sent == []


@table_of_cases(MAY | MUST_NOT)
def test_refused_while_nobody_is_known(session: Session, sent: list[str], execute: Case) -> None:
    with pytest.raises(OwnerMissingError):
        execute(session)
    assert sent == []


@table_of_cases(WITHOUT_OWNER)
def test_sent_while_nobody_is_known(session: Session, sent: list[str], execute: Case) -> None:
    execute(session)
    assert len(sent) == 1


@table_of_cases(MAY | MUST_NOT)
def test_sent_in_a_session_of_a_script(engine: sa.Engine, sent: list[str], execute: Case) -> None:
    with Session(engine) as session, suppress(sa.exc.DBAPIError):  # SQLite does not know all of them
        execute(session)
    assert sent


def test_line_in_the_log_names_the_table_and_the_remedy(anns: Session) -> None:
    with pytest.raises(OwnerMissingError) as refusal:
        anns.execute(select(Tag.name))
    assert str(refusal.value) == (
        "tags: the statement does not say whose: "
        "add .where(... .user_id == owner), or give a new row user_id=owner"
    )


# What a flush writes


def task_of(owner: Any) -> Task:
    return Task(user_id=owner, title="new")


def anns_task(session: Session) -> Task:
    return session.exec(select(Task).where(mine)).one()


def bobs_task(session: Session) -> Task:
    statement = select(Task).where(Task.user_id == BOB)
    return session.exec(statement, execution_options={"all_users": True}).one()


def refused(session: Session, sent: list[str]) -> bool:
    sent.clear()
    with pytest.raises(OwnerMissingError, match=r"^tasks: "):
        session.commit()
    return sent == []


def test_a_task_is_added_changed_and_deleted_as_tutorials_do(anns: Session, engine: sa.Engine) -> None:
    task = task_of(ANN)
    anns.add(task)
    anns.commit()
    anns.refresh(task)
    task.title = "newer"
    anns.add(task)
    anns.commit()
    anns.refresh(task)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(TASKS.c.title).where(TASKS.c.id == task.id)) == "newer"
    anns.delete(task)
    anns.commit()
    with engine.connect() as connection:
        assert connection.scalar(sa.select(TASKS.c.title).where(TASKS.c.id == task.id)) is None


def test_a_change_after_everything_has_expired(engine: sa.Engine) -> None:
    with Session(engine) as session, require_owner(session, ANN):
        task = anns_task(session)
        session.commit()  # expires the task: this session is a plain one
        task.title = "new"
        session.commit()
        assert task.title == "new"


@pytest.mark.parametrize("owner", [BOB, None, "", 0])
def test_a_new_task_of_another_is_refused(anns: Session, sent: list[str], owner: str | None) -> None:
    anns.add_all([task_of(ANN), task_of(owner)])
    assert refused(anns, sent)


@pytest.mark.parametrize("owner", [ANN, None])
def test_no_task_is_added_while_nobody_is_known(session: Session, sent: list[str], owner: str | None) -> None:
    session.add(task_of(owner))
    assert refused(session, sent)


def test_a_task_is_not_given_away(anns: Session, sent: list[str]) -> None:
    anns_task(anns).user_id = BOB
    assert refused(anns, sent)


def test_a_task_is_not_taken(anns: Session, sent: list[str]) -> None:
    bobs_task(anns).user_id = ANN
    assert refused(anns, sent)


def test_a_task_of_another_is_not_changed(anns: Session, sent: list[str]) -> None:
    bobs_task(anns).title = "new"
    assert refused(anns, sent)


def test_a_task_of_another_is_not_deleted(anns: Session, sent: list[str]) -> None:
    anns.delete(bobs_task(anns))
    assert refused(anns, sent)


def test_a_relationship_does_not_give_a_new_task_away(anns: Session, sent: list[str]) -> None:
    anns.add(Task(user_id=ANN, title="new", person=anns.get_one(Person, BOB)))
    assert refused(anns, sent)


def test_a_relationship_does_not_give_a_task_away(anns: Session, sent: list[str]) -> None:
    task = anns_task(anns)
    assert task.person.id == ANN
    task.person = anns.get_one(Person, BOB)
    assert refused(anns, sent)


def test_a_relationship_may_say_whose_a_task_is(anns: Session) -> None:
    task = Task(user_id="", title="new", person=anns.get_one(Person, ANN))
    anns.add(task)
    anns.commit()
    assert task.user_id == ANN


def test_a_flush_of_other_tables_and_of_scripts_is_free(session: Session, engine: sa.Engine) -> None:
    session.add(Person(id="eve"))
    session.commit()
    with Session(engine) as script:
        script.add(task_of(BOB))
        script.delete(script.get_one(Task, 1))
        script.commit()


# What the ORM loads by itself


LOADS: dict[str, Case] = {
    "lazy": lambda s: anns_task(s).tags,
    "selectin": lambda s: s.exec(select(Task).where(mine).options(selectinload(task_tags))).all(),
    "refresh": lambda s: s.refresh(anns_task(s), ["tags"]),
}


@table_of_cases(LOADS)
def test_a_relationship_is_not_loaded(anns: Session, sent: list[str], execute: Case) -> None:
    with pytest.raises(OwnerMissingError, match=r"^tags: "):
        execute(anns)
    assert "tags" not in str(sent)


def test_a_relationship_to_a_table_without_user_id_is_loaded(anns: Session) -> None:
    assert anns_task(anns).person.id == ANN


EAGER: dict[str, Case] = {
    "refresh": lambda s: s.refresh(s.get_one(Pin, 2)),
    "expired": lambda s: s.expire(pin := s.get_one(Pin, 2)) or pin.task_id,
}


@table_of_cases(EAGER)
def test_a_refresh_brings_nothing_of_another_along(engine: sa.Engine, sent: list[str], execute: Case) -> None:
    """A mapper adds its joined relationships to a refresh, too."""
    with Session(engine) as session:
        session.get_one(Pin, 2)
        with require_owner(session, ANN), pytest.raises(OwnerMissingError):
            execute(session)


def test_an_expired_task_is_loaded_again(anns: Session) -> None:
    task = anns_task(anns)
    anns.expire(task)
    assert task.title == "ann's task"


# Who the owner is


@pytest.mark.parametrize("before", [{}, {"owner": None}, {"owner": BOB}, {"other": 1}])
@pytest.mark.parametrize("fails", [False, True])
def test_the_owner_is_known_for_a_while(engine: sa.Engine, before: dict[str, Any], fails: bool) -> None:
    with Session(engine, info=before) as session:
        with suppress(ZeroDivisionError), require_owner(session, ANN):
            assert session.info == before | {"owner": ANN}
            anns_task(session)
            if fails:
                _ = 1 / 0
        assert session.info == before


def test_all_users_is_said_with_true(anns: Session) -> None:
    with pytest.raises(OwnerMissingError):
        anns.exec(select(Task), execution_options={"all_users": "ann"})


# Through HTTP, as db.py and auth.py do it

app = FastAPI()


def get_session(request: Request) -> Iterator[Session]:
    with Session(request.app.state.engine, expire_on_commit=False, info={"owner": None}) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]


def get_owner(session: SessionDep) -> Iterator[str]:
    with require_owner(session, ANN):
        yield ANN


Owner = Annotated[str, Depends(get_owner)]


@app.get("/mine")
def read_mine(owner: Owner, session: SessionDep) -> list[str]:
    return list(session.exec(select(Task.title).where(Task.user_id == owner)))


@app.get("/forgotten")
def forget_the_owner(_owner: Owner, session: SessionDep) -> list[str]:
    return list(session.exec(select(Task.title)))


@app.get("/unasked")
def forget_to_ask_who_calls(session: SessionDep) -> list[str]:
    return list(session.exec(select(Task.title).where(Task.user_id == ANN)))


def test_requests(engine: sa.Engine, sent: list[str]) -> None:
    app.state.engine = engine
    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/mine").json() == ["ann's task"]
    sent.clear()
    assert client.get("/forgotten").status_code == 500
    assert client.get("/unasked").status_code == 500
    assert sent == []


def test_requests_that_share_a_session_of_a_test(engine: sa.Engine) -> None:
    with Session(engine) as session:
        app.dependency_overrides[get_session] = lambda: session
        client = TestClient(app, raise_server_exceptions=False)
        assert client.get("/mine").json() == ["ann's task"]
        assert client.get("/forgotten").status_code == 500
        assert session.exec(select(Task.title)).all() == ["ann's task", "bob's task"]
    app.dependency_overrides.clear()


def test_every_table_of_the_app_says_whose_its_rows_are() -> None:
    """Else nothing would protect them: isolation.py looks at tables with a user_id."""
    tables = SQLModel.metadata.tables.values()
    assert [table.name for table in tables if "user_id" not in table.columns] == ["users"]
