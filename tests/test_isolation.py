"""A statement that names no owner is refused; one that does reaches only the owner's rows.

Each statement runs beside Bob's rows, and without them: Ann must see the same, and Bob's rows must stay.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any

import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from sqlalchemy import bindparam, exists, insert, join, lambda_stmt, literal_column
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import (
    Query,
    aliased,
    contains_eager,
    joinedload,
    load_only,
    make_transient_to_detached,
    raiseload,
    registry,
    selectinload,
    subqueryload,
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

import db
from hardening.isolation import OwnerMissingError, require_owner
from tests.support.environment import POSTGRES, on_sqlite


class Model(SQLModel, registry=registry()):
    """Has a metadata of its own, so that the app's holds only the app's tables."""


class Person(Model, table=True):
    id: str = Field(primary_key=True)


class TaskLabel(Model, table=True):
    """A link table as it should be: its foreign keys carry the user_id."""

    __table_args__ = (
        sa.ForeignKeyConstraint(["user_id", "task_id"], ["tasks.user_id", "tasks.id"]),
        sa.ForeignKeyConstraint(["user_id", "label_id"], ["labels.user_id", "labels.id"]),
    )

    user_id: str = Field(primary_key=True)
    task_id: int = Field(primary_key=True)
    label_id: int = Field(primary_key=True)


class Mark(Model, table=True):
    """A link table without user_id."""

    task_id: int = Field(primary_key=True, foreign_key="tasks.id")
    label_id: int = Field(primary_key=True, foreign_key="labels.id")


class Bookmark(Model, table=True):
    """A link table whose foreign keys do not carry the user_id, so that Bob's rows can refer to Ann's."""

    __tablename__ = "references"  # a reserved word

    user_id: str = Field(primary_key=True)
    task_id: int = Field(primary_key=True, foreign_key="tasks.id")
    label_id: int = Field(primary_key=True, foreign_key="labels.id")


class Task(Model, table=True):
    __tablename__ = "tasks"
    __table_args__ = (sa.UniqueConstraint("user_id", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    user_id: str = Field(foreign_key="person.id")
    title: str
    tags: list["Tag"] = Relationship(back_populates="task", cascade_delete=True)
    person: Person = Relationship()
    labels: list["Label"] = Relationship(link_model=TaskLabel)
    marks: list["Label"] = Relationship(link_model=Mark)
    bookmarks: list["Label"] = Relationship(link_model=Bookmark, sa_relationship_kwargs={"viewonly": True})


class Tag(Model, table=True):
    __tablename__ = "tags"

    id: int | None = Field(default=None, primary_key=True)
    user_id: str
    task_id: int = Field(foreign_key="tasks.id")
    name: str
    task: Task = Relationship(back_populates="tags")


class Label(Model, table=True):
    __tablename__ = "labels"
    __table_args__ = (sa.UniqueConstraint("user_id", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    user_id: str
    name: str


class Pin(Model, table=True):
    """Has no user_id, but loads its task with it."""

    id: int | None = Field(default=None, primary_key=True)
    task_id: int = Field(foreign_key="tasks.id")
    task: Task | None = Relationship(sa_relationship_kwargs={"lazy": "joined"})


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*cartesian product", "ignore:relationship 'Task.*copy column"
)
ANN, BOB = "ann", "bob"
PEOPLE: sa.Table = Person.__table__  # type: ignore[attr-defined]  # SQLModel makes it
TASKS: sa.Table = Task.__table__  # type: ignore[attr-defined]  # SQLModel makes it
Other = aliased(Task)
task_tags: Any = Task.tags
task_labels: Any = Task.labels
task_marks: Any = Task.marks
task_bookmarks: Any = Task.bookmarks
tag_task: Any = Tag.task
dialect: Any = postgresql if POSTGRES else sqlite
task_title: Any = Task.title


def rows(*, of_bob: bool) -> list[list[SQLModel]]:
    """Ann has a task with a tag and labels. Bob has the same, and some of his rows refer to Ann's task."""
    anns = [Task(id=1, user_id=ANN, title="ann's task"), Label(id=1, user_id=ANN, name="ann's label")]
    bobs = [Task(id=2, user_id=BOB, title="bob's task"), Label(id=2, user_id=BOB, name="bob's label")]
    below_anns = [
        Tag(id=1, user_id=ANN, task_id=1, name="ann's tag"),
        TaskLabel(user_id=ANN, task_id=1, label_id=1),
        Mark(task_id=1, label_id=1),
        Pin(id=1, task_id=1),
    ]
    below_bobs = [
        Tag(id=2, user_id=BOB, task_id=2, name="bob's tag"),
        Tag(id=3, user_id=BOB, task_id=1, name="bob's tag on ann's task"),
        TaskLabel(user_id=BOB, task_id=2, label_id=2),
        Mark(task_id=2, label_id=2),
        Mark(task_id=1, label_id=2),
        Bookmark(user_id=BOB, task_id=1, label_id=1),
        Bookmark(user_id=BOB, task_id=1, label_id=2),
    ]
    people: list[SQLModel] = [Person(id=ANN), Person(id=BOB)]
    if of_bob:
        return [people, [*anns, *bobs], [*below_anns, *below_bobs]]
    return [people, [*anns], [*below_anns]]


def database(*, of_bob: bool) -> sa.Engine:
    if POSTGRES:
        schema = f"isolation_{of_bob}".lower()
        with db.engine.connect() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        engine = create_engine(db.engine.url.update_query_dict({"options": f"-csearch_path={schema}"}))
    else:
        engine = create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        for together in rows(of_bob=of_bob):
            session.add_all(together)
            session.commit()
        if POSTGRES:  # the next ids
            for table in ("tasks", "tags", "labels", "pin"):
                session.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), 100)"))
            session.commit()
    return engine


@pytest.fixture(scope="module")
def engine(client: object) -> Iterator[sa.Engine]:
    """A database with the rows of Ann and of Bob."""
    yield (engine := database(of_bob=True))
    engine.dispose()


@pytest.fixture(scope="module")
def engine_without_bob(client: object) -> Iterator[sa.Engine]:
    yield (engine := database(of_bob=False))
    engine.dispose()


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    """A session of a request, before its owner is set. Its changes are undone."""
    with engine.connect() as connection, connection.begin() as transaction:
        with Session(connection, expire_on_commit=False, info={"owner": None}) as session:
            yield session
        if transaction.is_active:
            transaction.rollback()


@pytest.fixture
def anns(session: Session) -> Iterator[Session]:
    """The same, with Ann as the owner."""
    with require_owner(session, ANN):
        yield session


@pytest.fixture
def sent(engine: sa.Engine) -> Iterator[list[str]]:
    """The statements that have reached the database."""
    statements: list[str] = []

    def remember(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        statements.append(sql)

    sa.event.listen(engine, "before_cursor_execute", remember)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", remember)


Case = Callable[[Any], Any]


def table_of_cases(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("execute", cases.values(), ids=cases.keys())


def what_is_seen(result: Any) -> list[str]:
    if isinstance(result, sa.CursorResult) and not result.returns_rows:
        return []
    result = result.all() if isinstance(result, sa.Result | sa.ScalarResult) else result
    return sorted(map(str, result)) if isinstance(result, list) else [str(result)]


def rows_of(owner: str, session: Session) -> list[Any]:
    tables = [table for table in Model.metadata.sorted_tables if "user_id" in table.c]
    return [session.connection().execute(sa.select(t).where(t.c.user_id == owner)).all() for t in tables]


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


def anns_task(session: Session) -> Task:
    return session.exec(select(Task).where(mine)).one()


def every(session: Session, relationship: str, option: Any = None) -> Any:
    """What refers to Ann's task."""
    options = [option] if option else []
    return list(
        getattr(session.exec(select(Task).where(mine).options(*options)).unique().one(), relationship)
    )


# These name the owner, or are sent by SQLAlchemy itself.
SCOPED: dict[str, Case] = {
    "equal": lambda s: s.exec(select(Task).where(Task.user_id == ANN)),
    "literal first": lambda s: s.exec(select(Task).where(literal(ANN) == col(Task.user_id))),
    "one of several": lambda s: s.exec(select(Task).where(Task.id == 1, mine)),
    "beside or_": lambda s: s.exec(select(Task).where(mine, or_(Task.id == 1, Task.id == 2))),
    "filter_by": lambda s: s.exec(select(Task).filter_by(user_id=ANN, id=1)),
    "anonymous bindparam": lambda s: s.exec(
        select(Task).where(col(Task.user_id) == bindparam("owner", ANN, unique=True))
    ),
    "count": lambda s: s.exec(select(func.count()).select_from(Task).where(mine)),
    "page": lambda s: s.exec(select(Task).where(mine).order_by(Task.title).offset(0).limit(9)),
    "group": lambda s: s.exec(select(Task.title, func.count()).where(mine).group_by(Task.title)),
    "locked": lambda s: s.exec(select(Task).where(mine).with_for_update()),
    "locked, of one table": lambda s: s.execute(
        sa.select(TASKS.c.title).where(TASKS.c.user_id == ANN).with_for_update(of=TASKS)
    ),
    "Table": lambda s: s.execute(sa.select(TASKS).where(TASKS.c.user_id == ANN)),
    "alias": lambda s: s.exec(select(Other).where(Other.user_id == ANN)),
    "table and alias": lambda s: s.exec(
        select(Task, Other).where(mine, Other.id == Task.id, Other.user_id == ANN)
    ),
    "join": lambda s: s.exec(select(Task, Tag).join(Tag).where(mine, my_tags)),
    "join, with the owner in ON": lambda s: s.exec(
        select(Task, Tag).join(Tag, and_(Tag.task_id == Task.id, my_tags)).where(mine)
    ),
    "outer join, with the owner in ON": lambda s: s.exec(
        select(Task, Tag).outerjoin(Tag, and_(Tag.task_id == Task.id, my_tags)).where(mine)
    ),
    "contains_eager": lambda s: s.exec(
        select(Task).join(task_tags).options(contains_eager(task_tags)).where(mine, my_tags)
    ).unique(),
    "options": lambda s: s.exec(select(Task).options(raiseload("*")).where(mine)),
    "exists": lambda s: s.exec(
        select(Task).where(mine, exists().where(col(Tag.task_id) == Task.id, my_tags, mine))
    ),
    "scalar subquery": lambda s: s.exec(
        select(Task.title, select(func.count(col(Tag.id))).where(my_tags).scalar_subquery()).where(mine)
    ),
    "from a subquery": lambda s: s.exec(sa.select(my_tasks.subquery())),
    "from a CTE": lambda s: s.exec(select(my_tasks.cte().c.id)),
    "alias of a subquery": lambda s: s.exec(select(aliased(Task, select(Task).where(mine).subquery()))),
    "ordered union": lambda s: s.exec(union(my_tasks, my_tasks).order_by(col(Task.id))),
    "from an ordered union": lambda s: s.exec(
        sa.select(union(my_tasks, my_tasks).order_by(col(Task.id)).subquery())
    ),
    "from_statement": lambda s: s.execute(select(Task).from_statement(select(Task).where(mine))),
    "from_statement of an update": lambda s: s.execute(
        select(Task).from_statement(update(Task).where(mine).values(title="new").returning(Task))
    ),
    "from_statement of a delete": lambda s: s.execute(
        select(Tag).from_statement(delete(Tag).where(my_tags).returning(Tag))
    ),
    "from_statement of a union": lambda s: s.execute(
        select(Task).from_statement(union(select(Task).where(mine), select(Task).where(mine)))
    ),
    "query": lambda s: Query(Task, s).filter(mine).all(),
    "update of a query": lambda s: Query(Task, s).filter(mine).update({"title": "new"}),
    "named bindparam": lambda s: s.exec(select(Task).where(col(Task.user_id) == bindparam("owner", ANN))),
    "callable": lambda s: s.exec(
        select(Task).where(col(Task.user_id) == bindparam("x", callable_=lambda: ANN, unique=True))
    ),
    "recursive CTE": lambda s: s.execute(select(recursive().c.id)),
    "lambda": lambda s: s.execute(lambda_stmt(lambda: select(Task).where(Task.user_id == ANN))),
    "order by text": lambda s: s.exec(select(Task).where(mine).order_by(text("title"))),
    "update": lambda s: s.exec(update(Task).where(mine, col(Task.id) == 1).values(title="new")),
    "update returning": lambda s: s.exec(update(Task).where(mine).values(title="new").returning(Task)),
    "delete": lambda s: s.exec(delete(Tag).where(my_tags, col(Tag.id) == 1)),
    "or_": lambda s: s.exec(select(Task).where(or_(mine, Task.id == 2))),
    "not_ of and_": lambda s: s.exec(select(Task).where(not_(and_(mine, Task.id == 1)))),
    "order by alone": lambda s: s.exec(select(Task).order_by(mine)),
    "having alone": lambda s: s.exec(select(Task.user_id).group_by(Task.user_id).having(mine)),
    "literal_column": lambda s: s.exec(select(Task).where(literal_column("user_id") == ANN)),
    "named twice": lambda s: s.exec(
        select(Task).where(col(Task.user_id) == bindparam("x", ANN), col(Task.title) != bindparam("x", BOB))
    ),
    "replaced by a parameter": lambda s: s.execute(select(Task).where(mine), {"user_id_1": BOB}),
    "replaced by params()": lambda s: s.exec(select(Task).where(mine).params(user_id_1=BOB)),
    "replaced by params() of a subquery": lambda s: s.exec(
        select(Task).where(mine, exists(select(Person.id).params(user_id_1=BOB)))
    ),
    "replaced in a union": lambda s: s.execute(union(my_tasks, my_tasks), {"user_id_1": BOB}),
    "condition on the table, not on its alias": lambda s: s.exec(select(Other).where(mine)),
    "condition on one of two aliases": lambda s: s.exec(
        select(Other, aliased(Task)).where(Other.user_id == ANN)
    ),
    "condition on what it is an alias of": lambda s: s.execute(
        sa.select((alias := TASKS.alias()).alias()).where(alias.c.user_id == ANN)
    ),
    "join that names one side": lambda s: s.exec(select(Task).join(Tag).where(mine)),
    "join of a relationship that names one side": lambda s: s.exec(select(Task).join(task_tags).where(mine)),
    "join of a forgotten table": lambda s: s.exec(
        select(Task).join(Tag).with_only_columns(col(Task.id)).where(mine)
    ),
    "join() that names one side": lambda s: s.exec(select(Task).select_from(join(Task, Tag)).where(mine)),
    "left of an outer join, in its ON": lambda s: s.exec(
        select(Task, Tag).outerjoin(Tag, and_(Tag.task_id == Task.id, my_tags, mine))
    ),
    "joinedload": lambda s: s.exec(select(Task).options(joinedload(task_tags)).where(mine)).unique(),
    "subquery without the owner": lambda s: s.exec(
        select(Task).where(mine, col(Task.id).in_(select(Tag.task_id)))
    ),
    "scalar subquery without the owner": lambda s: s.exec(
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
    "union that names one side": lambda s: s.exec(select(Task.title).where(mine).union(select(Tag.name))),
    "update from a table without the owner": lambda s: s.exec(
        update(Task).where(mine).values(title=Tag.name)
    ),
    "update with a subquery without the owner": lambda s: s.exec(
        update(Task).where(mine).values(title=select(func.max(Tag.name)).scalar_subquery())
    ),
    "from ten subqueries in each other": lambda s: s.execute(nested(10)),
    "named in a subquery alone": lambda s: s.exec(
        select(Tag).where(col(Tag.task_id).in_(select(Task.id).where(mine)))
    ),
    "in_ of one": lambda s: s.exec(select(Task).where(col(Task.user_id).in_([ANN]))),
    "any": lambda s: s.exec(select(Task).where(mine, task_tags.any())),
    "any of a name": lambda s: s.exec(
        select(Task).where(mine, task_tags.any(Tag.name == "bob's tag on ann's task"))
    ),
    "has": lambda s: s.exec(select(Tag).where(my_tags, tag_task.has(Task.title != ""))),
    "any through a link table": lambda s: s.exec(select(Task).where(mine, task_labels.any())),
    "any through a link table of others": lambda s: s.exec(select(Task).where(mine, task_bookmarks.any())),
    "any through a plain link table": lambda s: s.exec(
        select(Task).where(mine, task_marks.any(Label.id == 2))
    ),
    "join through a link table": lambda s: s.exec(select(Task, Label).join(task_labels).where(mine)),
    "join through a plain link table": lambda s: s.exec(select(Task, Label).join(task_marks).where(mine)),
    "outer join through a link table of others": lambda s: s.exec(
        select(Task, Label).outerjoin(task_bookmarks).where(mine)
    ),
    "correlated count": lambda s: s.exec(
        select(
            Task.title, select(func.count(col(Tag.id))).where(Tag.task_id == Task.id).scalar_subquery()
        ).where(mine)
    ),
    "outer join": lambda s: s.exec(select(Task, Tag).outerjoin(Tag, col(Tag.id) == 2).where(mine)),
    "outer join of an alias": lambda s: s.exec(
        select(Task, Other).outerjoin(Other, col(Other.id) == 2).where(mine)
    ),
    "self-join": lambda s: s.exec(select(Task, Other).join(Other, col(Other.id) != Task.id).where(mine)),
    "full join": lambda s: s.exec(
        select(Task, Tag).join(Tag, col(Tag.task_id) == Task.id, full=True).where(mine)
    ),
    "full join of an alias": lambda s: s.exec(
        select(Task, Other).join(Other, col(Other.id) == 2, full=True).where(mine)
    ),
    "full join of tables": lambda s: s.execute(
        sa.select(TASKS, sa.select(TASKS).subquery()).where(TASKS.c.user_id == ANN)
    ),
    "CTE without the owner": lambda s: s.exec(
        select(Task.title, (tags := select(Tag).cte()).c.name)
        .join(tags, tags.c.task_id == Task.id)
        .where(mine)
    ),
    "delete with a subquery": lambda s: s.exec(
        delete(Task).where(mine, col(Task.id).in_(select(Tag.task_id).where(Tag.name == "bob's tag")))
    ),
    "delete that names it in a subquery": lambda s: s.exec(
        delete(Tag).where(col(Tag.task_id).in_(select(Task.id).where(mine))).returning(col(Tag.id))
    ),
    "update with or_": lambda s: s.exec(update(Task).where(or_(mine, Task.id == 2)).values(title="new")),
    "delete with or_": lambda s: s.exec(delete(Tag).where(or_(my_tags, Tag.id == 2))),
    "get": lambda s: s.get(Task, 1),
    "get of another user's": lambda s: s.get(Task, 2),
    "get with options": lambda s: s.get(Task, 2, options=[joinedload(task_tags)]),
    "get for update": lambda s: s.get(Task, 2, with_for_update=True),
    "merge": lambda s: s.merge(Task(id=1, user_id=ANN, title="new")),
    "lazy": lambda s: every(s, "tags"),
    "lazy, through a link table": lambda s: every(s, "labels"),
    "lazy, through a plain link table": lambda s: every(s, "marks"),
    "lazy, through a link table of others": lambda s: every(s, "bookmarks"),
    "joined": lambda s: every(s, "tags", joinedload(task_tags)),
    "joined, through a link table": lambda s: every(s, "labels", joinedload(task_labels)),
    "joined, through a plain link table": lambda s: every(s, "marks", joinedload(task_marks)),
    "joined, through a link table of others": lambda s: every(s, "bookmarks", joinedload(task_bookmarks)),
    "selectin": lambda s: every(s, "tags", selectinload(task_tags)),
    "selectin, through a link table": lambda s: every(s, "labels", selectinload(task_labels)),
    "selectin, through a plain link table": lambda s: every(s, "marks", selectinload(task_marks)),
    "selectin, through a link table of others": lambda s: every(s, "bookmarks", selectinload(task_bookmarks)),
    "selectin, with a condition": lambda s: [
        every(s, "tags", selectinload(task_tags.and_(Tag.name != ""))) for _ in range(2)
    ],
    "subquery": lambda s: every(s, "tags", subqueryload(task_tags)),
    "subquery, through a link table": lambda s: every(s, "labels", subqueryload(task_labels)),
    "subquery, through a link table of others": lambda s: every(s, "bookmarks", subqueryload(task_bookmarks)),
    "refresh": lambda s: s.refresh(task := anns_task(s)) or task,
    "refresh of a relationship": lambda s: s.refresh(task := anns_task(s), ["tags"]) or task.tags,
    "expired": lambda s: s.expire(task := anns_task(s)) or task.title,
    "page of joined": lambda s: s.exec(
        select(Task).where(mine).options(joinedload(task_tags)).order_by(Task.title).limit(5)
    ).unique(),
    "union of two tables": lambda s: s.exec(union(my_tasks, select(Tag.id).where(my_tags))),
    "except": lambda s: s.exec(select(Tag.name).where(my_tags).except_(select(Label.name))),
    "parameter of the guard": lambda s: s.execute(
        select(Task).where(or_(mine, Task.id == 2)), {"__owner": BOB}
    ),
    "parameter of the guard in the statement": lambda s: s.execute(
        select(Task).where(or_(mine, col(Task.user_id) == bindparam("__owner", BOB)))
    ),
    "parameter of the guard in or_": lambda s: s.execute(
        sa.select(TASKS.c.title).where(
            or_(TASKS.c.user_id == ANN, TASKS.c.user_id == bindparam("__owner", ANN), TASKS.c.id == 2)
        )
    ),
    "parameter": lambda s: s.execute(select(Task).where(col(Task.user_id) == bindparam("x")), {"x": ANN}),
    "grouped by the primary keys of two tables": lambda s: s.exec(
        select(Task.title, Tag.name, func.count())
        .join(Tag, col(Tag.task_id) == Task.id)
        .where(mine)
        .group_by(col(Task.id), col(Tag.id))
    ),
    "grouped by the primary key": lambda s: s.exec(
        select(Task.title, func.count(col(Tag.id))).outerjoin(task_tags).where(mine).group_by(col(Task.id))
    ),
    "full join of a table without user_id": lambda s: s.exec(
        select(Person.id, Task.id)
        .join(Task, col(Task.user_id) == Person.id, full=True)
        .where(exists(my_tasks), or_(Person.id == ANN, col(Person.id) == None))  # noqa: E711
    ),
    "update from an alias": lambda s: s.exec(
        update(Task).where(mine, col(Other.id) == 2).values(title=Other.title)
    ),
    "two queries that differ in an option": lambda s: [
        every(s, "tags", joinedload(task_tags)),
        every(s, "labels", joinedload(task_labels)),
    ],
}

# These name no table with a user_id, or say that they are about all users.
WITHOUT_OWNER: dict[str, Case] = {
    "table without user_id": lambda s: s.exec(select(Person.id).where(Person.id != BOB)),
    "get from it": lambda s: s.get(Person, ANN),
    "parameter for it": lambda s: s.execute(
        select(Person).where(col(Person.id) == bindparam("id")), {"id": ANN}
    ),
    "insert into it": lambda s: s.execute(insert(Person), [{"id": "eve"}, {"id": "ina"}]),
    "update with rows": lambda s: s.execute(
        sa.update(PEOPLE).where(PEOPLE.c.id == bindparam("old")).values(id=bindparam("new")),
        [{"old": "eve", "new": "ina"}],
    ),
    "all users": lambda s: s.exec(select(func.count(col(Task.id))), execution_options={"all_users": True}),
    "all users, said by the statement": lambda s: s.exec(
        select(func.count(col(Task.id))).execution_options(all_users=True)
    ),
    "text": lambda s: s.execute(text("SELECT 1")),
}

# These do not name the owner, or cannot be checked.
REFUSED: dict[str, Case] = {
    "with_loader_criteria": lambda s: s.exec(select(Task).options(with_loader_criteria(Task, mine))),
    "insert returning": lambda s: s.exec(insert(Task).values(user_id=ANN, title="new").returning(Task)),
    "no condition": lambda s: s.exec(select(Task)),
    "count": lambda s: s.exec(select(func.count()).select_from(Task)),
    "function": lambda s: s.execute(func.max(Task.title)),
    "not equal": lambda s: s.exec(select(Task).where(Task.user_id != ANN)),
    "another user": lambda s: s.exec(select(Task).where(Task.user_id == BOB)),
    "NULL": lambda s: s.exec(select(Task).where(col(Task.user_id) == None)),  # noqa: E711
    "equal to itself": lambda s: s.exec(select(Task).where(Task.user_id == Task.user_id)),
    "in_": lambda s: s.exec(select(Task).where(col(Task.user_id).in_([ANN, BOB]))),
    "like": lambda s: s.exec(select(Task).where(col(Task.user_id).like(ANN))),
    "function of the column": lambda s: s.exec(select(Task).where(func.lower(Task.user_id) == ANN)),
    "collation": lambda s: s.exec(select(Task).where(col(Task.user_id).collate("NOCASE") == ANN)),
    "another column": lambda s: s.exec(select(Task).where(Task.title == ANN)),
    "text": lambda s: s.exec(select(Task).where(text("user_id = 'ann'"))),
    "OR in a text": lambda s: s.exec(select(Task).where(mine, text("id = 1 OR title LIKE '%'"))),
    "OR in a text, in ON": lambda s: s.exec(
        select(Task, Tag).join(Tag, and_(my_tags, text("tags.id = 1 OR tags.name LIKE '%'"))).where(mine)
    ),
    "callable beside a value": lambda s: s.exec(
        select(Task).where(col(Task.user_id) == bindparam("x", ANN, callable_=lambda: BOB, unique=True))
    ),
    "Table": lambda s: s.execute(sa.select(TASKS)),
    "alias": lambda s: s.exec(select(Other)),
    "alias of an alias": lambda s: s.execute(sa.select(TASKS.alias().alias())),
    "tablesample": lambda s: s.execute(sa.select(sa.tablesample(TASKS, 50))),
    "lightweight table": lambda s: s.execute(sa.select(sa.table("tasks", sa.column("user_id")))),
    "equal to another table's": lambda s: s.exec(select(Task, Tag).where(Task.user_id == Tag.user_id)),
    "CTE": lambda s: s.exec(sa.select(select(Task.title).cte())),
    "unused CTE": lambda s: s.exec(select(Person).add_cte(delete(Task).cte())),
    "from_statement": lambda s: s.execute(select(Task).from_statement(select(Task))),
    "from_statement of a delete": lambda s: s.execute(
        select(Task).from_statement(delete(Task).returning(Task))
    ),
    "query": lambda s: Query(Task, s).all(),
    "count of a query": lambda s: Query(Task, s).count(),
    "lambda": lambda s: s.execute(lambda_stmt(lambda: select(Task))),
    "update": lambda s: s.exec(update(Task).values(title="new")),
    "update that gives away, by column": lambda s: s.exec(
        update(Task).where(mine).values({Task.user_id: BOB})
    ),
    "update that gives away, by parameter": lambda s: s.execute(update(Task).where(mine), {"user_id": BOB}),
    "delete": lambda s: s.exec(delete(Task)),
    "delete of a Table": lambda s: s.execute(sa.delete(TASKS)),
    "insert of rows": lambda s: s.execute(
        insert(Task), [{"user_id": ANN, "title": "a"}, {"user_id": BOB, "title": "b"}]
    ),
    "insert of a subquery in a list": lambda s: s.exec(
        insert(Person).values([{"id": select(func.max(Task.title)).scalar_subquery()}])
    ),
    "insert from select": lambda s: s.exec(
        insert(Task).from_select(["user_id", "title"], select(Task.user_id, Task.title).where(mine))
    ),
    "insert elsewhere from select": lambda s: s.exec(insert(Person).from_select(["id"], select(Task.title))),
    "insert or replace": lambda s: s.exec(
        insert(Task).prefix_with("OR REPLACE").values(id=2, user_id=ANN, title="new")
    ),
    "upsert": lambda s: s.exec(
        dialect.insert(Task)
        .values(id=2, user_id=ANN, title="new")
        .on_conflict_do_update(index_elements=["id"], set_={"title": "new"})
    ),
    "insert in a CTE": lambda s: s.exec(
        select(Task).where(mine).add_cte(insert(Task).values(user_id=BOB, title="new").cte())
    ),
    "update in a CTE": lambda s: s.exec(
        select(Task)
        .where(mine)
        .add_cte(update(Task).where(mine).values(user_id=BOB).returning(col(Task.id)).cte())
    ),
    "subquery in a literal_column": lambda s: s.exec(
        select(Task, literal_column("(SELECT title FROM tasks WHERE id = 2)")).where(mine)
    ),
    "literal_column beside a subquery": lambda s: s.exec(
        select(literal_column("(SELECT max(title) FROM tasks)")).where(exists(my_tasks))
    ),
    "text in a subquery": lambda s: s.exec(select(Task).where(mine, exists(text("SELECT 1 FROM tags")))),
    "from_statement of a text": lambda s: s.execute(
        select(Task).where(mine).from_statement(text("SELECT * FROM tasks"))
    ),
    "prefix": lambda s: s.exec(select(Task).where(mine).prefix_with("(SELECT title FROM tasks LIMIT 1),")),
    "suffix": lambda s: s.exec(select(Task).where(mine).suffix_with("OR 1 = 1")),
    "hint of a statement": lambda s: s.exec(select(Task).where(mine).with_statement_hint("OR 1 = 1")),
    "hint of a table": lambda s: s.exec(select(Task).where(mine).with_hint(Task, "ONLY")),
    "parameter of the guard in a list": lambda s: s.execute(
        sa.select(TASKS).where(or_(TASKS.c.user_id == ANN, TASKS.c.id == 2)), [{"__owner": BOB}]
    ),
    "second Table beside the first one": lambda s: s.execute(
        sa.select(sa.table("tasks", sa.column("title"))).where(exists(my_tasks))
    ),
    "second Table": lambda s: s.execute(sa.select(sa.Table("tasks", sa.MetaData(), sa.Column("title")))),
    "second lightweight table": lambda s: s.execute(sa.select(sa.table("tasks", sa.column("title")))),
}


@table_of_cases(SCOPED)
def test_statement_reaches_only_the_owners_rows(
    anns: Session, engine_without_bob: sa.Engine, sent: list[str], execute: Case
) -> None:
    bobs = rows_of(BOB, anns)
    sent.clear()
    seen = what_is_seen(execute(anns))
    anns.flush()
    assert sent
    assert rows_of(BOB, anns) == bobs
    with engine_without_bob.connect() as connection, Session(connection, info={"owner": None}) as alone:
        with require_owner(alone, ANN):
            assert what_is_seen(execute(alone)) == seen
            alone.flush()
            assert rows_of(ANN, alone) == rows_of(ANN, anns)
        connection.rollback()


@table_of_cases(WITHOUT_OWNER)
def test_statement_without_owned_tables_is_sent(session: Session, sent: list[str], execute: Case) -> None:
    execute(session)
    assert len(sent) == 1


def test_pins_are_loaded_with_the_tasks_of_the_owner_only(anns: Session) -> None:
    anns.add(Pin(id=2, task_id=2))
    anns.flush()
    anns.expunge_all()
    assert [
        (pin.id, pin.task and pin.task.title) for pin in anns.exec(select(Pin).order_by(col(Pin.id)))
    ] == [(1, "ann's task"), (2, None)]


@table_of_cases(REFUSED)
def test_unsafe_statement_is_refused(anns: Session, sent: list[str], execute: Case) -> None:
    with pytest.raises(OwnerMissingError):
        execute(anns)
    assert sent == []


@table_of_cases(SCOPED | REFUSED)
def test_statement_without_a_user_is_refused(session: Session, sent: list[str], execute: Case) -> None:
    sent.clear()
    with pytest.raises(OwnerMissingError):
        execute(session)
    assert sent == []


@table_of_cases(SCOPED | REFUSED)
def test_scripts_are_not_checked(engine: sa.Engine, sent: list[str], execute: Case) -> None:
    with engine.connect() as connection, Session(connection) as session:
        with suppress(sa.exc.SQLAlchemyError, AttributeError):  # no database knows all of them
            execute(session)
        connection.rollback()
    assert sent


def test_sql_that_a_script_has_compiled_is_not_used_for_a_request(engine: sa.Engine, anns: Session) -> None:
    def titles(session: Session) -> list[str]:
        statement = sa.select(TASKS.c.title).where(or_(TASKS.c.user_id == ANN, TASKS.c.id == 2))
        return sorted(session.execute(statement).scalars())

    add_task = insert(TASKS).values(user_id=BOB, title="new")
    with Session(engine) as script:
        assert titles(script) == ["ann's task", "bob's task"]
        script.execute(add_task)
        script.rollback()
    assert titles(anns) == ["ann's task"]
    with pytest.raises(OwnerMissingError):
        anns.execute(add_task)


def test_condition_keeps_the_rows_of_an_outer_join(anns: Session) -> None:
    statement = select(Task.title, Tag.name).outerjoin(Tag, and_(Tag.task_id == Task.id, Tag.id == 3))
    assert what_is_seen(anns.exec(statement.where(mine))) == ['("ann\'s task", None)']


def test_each_relationship_of_a_chain_gets_the_condition_once(anns: Session, sent: list[str]) -> None:
    """Otherwise the conditions add up from row to row."""
    assert anns_task(anns).tags
    assert sent[-1].count("user_id = ") == 1


BOXES = sa.table("boxes", sa.column("user_id"))


def names_no_owner(table: str, model: str) -> str:
    remedy = f"add .where({model}.user_id == owner), or, of an outer join, to its ON"
    return f"{table}: the statement names no owner: {remedy}"


MESSAGES: dict[str, tuple[Case, str]] = {
    "no owner": (lambda s: s.exec(select(Tag.name)), names_no_owner("tags", "Tag")),
    "no owner, of a table without a class": (
        lambda s: s.execute(sa.select(BOXES)),
        names_no_owner("boxes", "boxes.c"),
    ),
    "insert": (
        lambda s: s.exec(insert(Task).values(user_id=ANN, title="new")),
        "tasks: use session.add() in place of insert()",
    ),
    "insert from a select": (
        lambda s: s.exec(insert(Person).from_select(["id"], select(Task.title).where(mine))),
        "tasks: in place of insert(), select first, then use session.add()",
    ),
    "delete of a Table": (
        lambda s: s.execute(sa.delete(TASKS).where(TASKS.c.user_id == ANN)),
        "tasks: update() and delete() need its class, Task",
    ),
    "delete of a table without a class": (
        lambda s: s.execute(sa.delete(BOXES).where(BOXES.c.user_id == ANN)),
        "boxes: update() and delete() need its class, which it does not have",
    ),
    "second Table": (
        REFUSED["second Table beside the first one"],
        "tasks: it needs a column user_id of its own",
    ),
    "update that gives away": (
        lambda s: s.exec(update(Task).where(mine).values(user_id=BOB)),
        "tasks: an update() does not set the user_id: leave it out",
    ),
    "update with rows": (
        lambda s: s.execute(update(Task), [{"id": 2, "title": "new"}]),
        names_no_owner("tasks", "Task"),
    ),
    "update with rows that names the owner": (
        lambda s: s.execute(update(Task).where(mine), [{"id": 2, "title": "new"}]),
        "update() with a list finds rows by id alone: use update() with a where()",
    ),
    "text": (
        lambda s: s.exec(select(Task).where(mine, text("id = 1 OR 1 = 1"))),
        "tasks: SQL in a string, such as text(), cannot be checked beside it",
    ),
    "row of another user": (
        lambda s: s.add(Task(user_id=BOB, title="new")) or s.flush(),
        "tasks: a row must have user_id=owner, and keep it",
    ),
}


@pytest.mark.parametrize(("execute", "message"), MESSAGES.values(), ids=MESSAGES.keys())
def test_refusal_names_the_table_and_the_remedy(
    anns: Session, sent: list[str], execute: Case, message: str
) -> None:
    with pytest.raises(OwnerMissingError) as refusal:
        execute(anns)
    assert str(refusal.value) == message
    assert sent == []


# Objects that are added, changed and deleted


def bobs_task(session: Session) -> Task:
    statement = select(Task).where(Task.user_id == BOB)
    return session.exec(statement, execution_options={"all_users": True}).one()


def refused(session: Session, sent: list[str]) -> bool:
    sent.clear()
    with pytest.raises(OwnerMissingError, match=r"^tasks: "):
        session.flush()
    return sent == []


def title_of(task_id: int, session: Session) -> Any:
    return session.connection().scalar(sa.select(TASKS.c.title).where(TASKS.c.id == task_id))


def test_a_task_is_added_changed_and_deleted_as_tutorials_do(anns: Session) -> None:
    task = Task(user_id=ANN, title="new")
    anns.add(task)
    anns.commit()
    anns.refresh(task)
    assert task.id
    task.title = "newer"
    anns.add(task)
    anns.commit()
    anns.refresh(task)
    assert title_of(task.id, anns) == "newer"
    anns.delete(task)
    anns.commit()
    assert title_of(task.id, anns) is None


def test_a_change_after_everything_has_expired(anns: Session) -> None:
    task = anns_task(anns)
    anns.expire_all()
    task.title = "new"
    anns.commit()
    assert title_of(1, anns) == "new"


def test_a_loaded_task_shows_the_changes_of_an_update(anns: Session) -> None:
    task = anns_task(anns)
    anns.exec(update(Task).where(mine).values(title="new"))
    assert task.title == "new"


def test_children_are_added_and_deleted_with_their_task(anns: Session) -> None:
    task = anns_task(anns)
    task.tags.append(Tag(user_id=ANN, task_id=1, name="new"))
    anns.commit()
    assert sorted(anns.exec(select(Tag.name).where(my_tags, Tag.task_id == 1))) == ["ann's tag", "new"]


@on_sqlite
def test_deleting_a_task_deletes_the_owners_children_only(anns: Session) -> None:
    """On PostgreSQL, the foreign key of Bob's tag forbids it."""
    anns.exec(delete(TaskLabel).where(col(TaskLabel.user_id) == ANN))
    bobs = rows_of(BOB, anns)
    anns.delete(anns_task(anns))
    anns.commit()
    assert anns.exec(select(Tag).where(my_tags)).all() == []
    assert rows_of(BOB, anns) == bobs


def test_labels_are_linked_and_unlinked(anns: Session) -> None:
    task = anns_task(anns)
    label = Label(user_id=ANN, name="new")
    task.labels.append(label)
    anns.commit()
    linked = select(TaskLabel.label_id).where(TaskLabel.user_id == ANN).order_by(col(TaskLabel.label_id))
    assert anns.exec(linked).all() == [1, label.id]
    task.labels = []
    anns.commit()
    assert anns.exec(linked).all() == []


@pytest.mark.parametrize("owner", [BOB, None])
def test_a_new_task_of_another_user_is_refused(anns: Session, sent: list[str], owner: Any) -> None:
    anns.add_all([Task(user_id=ANN, title="new"), Task(user_id=owner, title="new")])
    assert refused(anns, sent)


@pytest.mark.parametrize("owner", [ANN, None])
def test_no_task_is_added_without_a_user(session: Session, sent: list[str], owner: Any) -> None:
    session.add(Task(user_id=owner, title="new"))
    assert refused(session, sent)


def test_a_task_is_not_given_away(anns: Session, sent: list[str]) -> None:
    anns_task(anns).user_id = BOB
    assert refused(anns, sent)


def test_a_task_is_not_taken(anns: Session, sent: list[str]) -> None:
    bobs_task(anns).user_id = ANN
    assert refused(anns, sent)


def test_a_task_whose_user_id_was_not_loaded_is_not_taken(anns: Session, sent: list[str]) -> None:
    statement = select(Task).where(Task.id == 2).options(load_only(task_title))
    task = anns.exec(statement, execution_options={"all_users": True}).one()
    task.title, task.user_id = "new", ANN
    assert refused(anns, sent)


def test_a_task_of_another_user_is_not_changed(anns: Session, sent: list[str]) -> None:
    bobs_task(anns).title = "new"
    assert refused(anns, sent)


def test_a_task_of_another_user_is_not_deleted(anns: Session, sent: list[str]) -> None:
    statement = select(Tag).where(Tag.user_id == BOB, Tag.id == 2)
    anns.delete(anns.exec(statement, execution_options={"all_users": True}).one())
    with pytest.raises(OwnerMissingError, match=r"^tags: "):
        anns.flush()


def test_a_row_that_this_session_has_not_loaded_is_refused(anns: Session) -> None:
    make_transient_to_detached(task := Task(id=2, user_id=ANN, title="new"))
    for attach in (anns.add, anns.delete):
        with pytest.raises(OwnerMissingError, match="use merge"):
            attach(task)


def test_merge_does_not_reach_the_task_of_another_user(anns: Session) -> None:
    anns.merge(Task(id=2, user_id=ANN, title="new"))
    with pytest.raises(sa.exc.IntegrityError):  # there is a task with this id
        anns.flush()


def test_a_relationship_does_not_give_a_new_task_away(anns: Session, sent: list[str]) -> None:
    anns.add(Task(user_id=ANN, title="new", person=anns.get_one(Person, BOB)))
    assert refused(anns, sent)


def test_a_relationship_does_not_give_a_task_away(anns: Session, sent: list[str]) -> None:
    task = anns_task(anns)
    assert task.person.id == ANN
    task.person = anns.get_one(Person, BOB)
    assert refused(anns, sent)


def test_a_relationship_may_set_the_owner(anns: Session) -> None:
    task = Task(user_id="", title="new", person=anns.get_one(Person, ANN))
    anns.add(task)
    anns.commit()
    assert task.user_id == ANN


def test_tables_without_user_id_and_scripts_are_not_checked(session: Session, engine: sa.Engine) -> None:
    session.add(Person(id="eve"))
    session.commit()
    with engine.connect() as connection, Session(connection) as script:
        script.add(Task(user_id=BOB, title="new"))
        script.delete(script.get_one(Tag, 1))
        script.flush()
        connection.rollback()


# Who the owner is


@pytest.mark.parametrize("before", [{}, {"owner": None}, {"owner": BOB}, {"other": 1}])
@pytest.mark.parametrize("fails", [False, True])
def test_owner_is_reset_afterwards(engine: sa.Engine, before: dict[str, Any], fails: bool) -> None:
    with Session(engine, info=before) as session:
        with suppress(ZeroDivisionError), require_owner(session, ANN):
            assert session.info == before | {"owner": ANN}
            anns_task(session)
            if fails:
                _ = 1 / 0
        assert session.info == before


def test_two_sessions_have_an_owner_each(engine: sa.Engine) -> None:
    with Session(engine, info={"owner": ANN}) as anns, Session(engine, info={"owner": BOB}) as bobs:
        task = anns_task(anns)
        assert bobs.exec(select(Task.title).where(Task.user_id == BOB)).all() == ["bob's task"]
        assert [tag.name for tag in task.tags] == ["ann's tag"]


def test_a_session_that_another_one_uses_in_between_keeps_its_owner(anns: Session, engine: sa.Engine) -> None:
    with Session(engine, info={"owner": BOB}) as bobs:
        sa.event.listen(
            anns, "before_flush", lambda *_: bobs.exec(select(Task.id).where(Task.user_id == BOB))
        )
        anns.add(Label(user_id=ANN, name="new"))
        assert anns.exec(select(Task.title).where(or_(mine, Task.id == 2))).all() == ["ann's task"]


def test_a_class_that_is_defined_later(anns: Session) -> None:
    anns_task(anns)

    class Later(Model, table=True):
        id: int = Field(primary_key=True)
        user_id: str

    with pytest.raises(OwnerMissingError, match=r"Later\.user_id"):
        anns.exec(select(Later))
    Model.metadata.remove(Later.__table__)  # type: ignore[attr-defined]  # SQLModel makes it


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
def forget_the_current_user(session: SessionDep) -> list[str]:
    return list(session.exec(select(Task.title).where(Task.user_id == ANN)))


def test_requests_are_guarded(engine: sa.Engine, sent: list[str]) -> None:
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


def test_every_table_except_users_has_a_user_id() -> None:
    """Otherwise nothing would protect them: isolation.py looks at tables with a user_id."""
    tables = SQLModel.metadata.tables.values()
    assert [table.name for table in tables if "user_id" not in table.columns] == ["users"]
