"""The built-in accounts: register, log in, log out, change the password, delete the account."""

import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from fastapi.testclient import TestClient
from limits import parse
from sqlalchemy import Column, ForeignKey, String, Table, event, exc
from sqlmodel import Session, SQLModel, delete, select

import db
from hardening import guesses
from hardening.leftovers import need_account
from hardening.settings import settings
from models import Task, User, now
from routes import accounts
from tests.conftest import Clock, check_error, check_unavailable, token, until
from tests.support.accounts import PASSWORD, Account, new_email, post
from tests.support.counting import counted, sent_statements
from tests.support.environment import SECRET, url
from tests.support.server import serving

pytestmark = pytest.mark.usefixtures("fresh_limits")


# Accounts and their passwords


@pytest.mark.parametrize(("register", "login"), [("register", "login"), ("signup", "signin")])
def test_register_creates_an_account_that_can_log_in_and_own_tasks(
    client: TestClient, register: str, login: str
) -> None:
    email = new_email()
    response = post(client, register, f"  {email.upper()} ")
    registered = response.json()
    assert response.status_code == 201
    user = registered.pop("user")
    assert user.keys() >= {"id", "email", "created_at"}
    assert user["email"] == email
    assert user["created_at"].endswith("Z")
    assert {name: registered.pop(name) for name in user} == user

    response = post(client, login, email)
    logged_in = response.json()
    assert response.status_code == 200
    assert logged_in.pop("user") == user
    for number, body in enumerate((registered, logged_in)):  # registering also logs in
        assert not [secret for secret in ("password", PASSWORD, "$argon2id$") if secret in str(body | user)]
        assert (body["token_type"], body["expires_in"]) == ("bearer", 604_800)
        claims = jwt.decode(body["access_token"], SECRET, ["HS256"])
        assert claims["sub"] == user["id"]
        assert claims["exp"] - claims["iat"] == 604_800

        headers = {"Authorization": f"Bearer {body['access_token']}"}
        assert client.get("/api/auth/me", headers=headers).json() == user
        tasks = f"/api/{user['id']}/tasks"
        assert client.post(tasks, json={"title": "Mine"}, headers=headers).status_code == 201
        assert len(client.get(tasks, headers=headers).json()) == number + 1


def test_registering_hashes_once_and_asks_the_database_twice(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    hash_password = guesses.hash_password

    def remember(password: str) -> str:
        hashed.append(password)
        return hash_password(password)

    monkeypatch.setattr(accounts, "hash_password", remember)
    with sent_statements() as sent:
        assert post(client, "register", new_email()).status_code == 201
    assert hashed == [PASSWORD]
    assert [sql.split("; ")[-1].split()[0] for sql, _ in sent] == ["SELECT", "INSERT"]


@pytest.mark.parametrize(
    "spell", [str, str.upper, str.title, " {} ".format], ids=["same", "upper", "title", "spaces"]
)
def test_email_is_unique_ignoring_case_and_spaces(client: TestClient, ann: Account, spell: Any) -> None:
    check_error(post(client, "register", spell(ann.email)), 409, "conflict")
    assert post(client, "login", spell(ann.email)).status_code == 200


@pytest.mark.usefixtures("patient")
def test_simultaneous_registrations_create_one_account(client: TestClient) -> None:
    email = new_email()
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: post(client, "register", email).status_code, range(8)))
    assert sorted(codes) == [201] + [409] * 7


def test_email_taken_between_select_and_insert_is_a_409(
    client: TestClient, ann: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_password, email = guesses.hash_password, new_email()

    def while_another_registers(password: str) -> str:
        monkeypatch.undo()
        assert post(client, "register", email).status_code == 201
        return hash_password(password)

    monkeypatch.setattr(accounts, "hash_password", while_another_registers)
    check_error(post(client, "register", email), 409, "conflict")


VALID_EMAILS = {
    "test domain": "@app.test",
    "local domain": "@app.local",
    "plus": "+tag@example.com",
    "umlaut": "@bücher.example",
    "254 characters": f"@{'.'.join(['a' * 60] * 3)}.{'b' * 50}.com",
}


@pytest.mark.parametrize("ending", VALID_EMAILS.values(), ids=VALID_EMAILS)
def test_valid_emails(client: TestClient, ending: str) -> None:
    email = secrets.token_hex(16)[: 254 - len(ending)] + ending
    response = post(client, "register", email)
    assert response.status_code == 201, response.text
    assert post(client, "login", email).status_code == 200


BAD_CREDENTIALS = {
    "no email": ("ann", PASSWORD),
    "empty email": ("", PASSWORD),
    "two emails": ("a@example.com, b@example.com", PASSWORD),
    "email with NUL": ("a\x00@example.com", PASSWORD),
    "email of 255 characters": (f"{'a' * 60}@{'.'.join(['b' * 60] * 3)}.{'c' * 7}.com", PASSWORD),
    "password of 7": ("short@example.com", "s3cret!"),
    "password of 129": ("long@example.com", "x" * 129),
}


@pytest.mark.parametrize(("email", "password"), BAD_CREDENTIALS.values(), ids=BAD_CREDENTIALS)
def test_bad_credentials_are_refused_without_an_echo(client: TestClient, email: str, password: str) -> None:
    response = post(client, "register", email, password)
    check_error(response, 422, "validation_error")
    assert len(response.json()["detail"]) == 1
    assert password not in response.text


BAD_BODIES = [
    b"{}",
    b"[]",
    b"null",
    b'{"email": 1, "password": null}',
    b'{"email": "a@example.com", "password": "\\ud800aaaaaaaa"}',
]


@pytest.mark.parametrize("body", BAD_BODIES)
@pytest.mark.parametrize("path", ["register", "login"])
def test_invalid_bodies_are_refused(client: TestClient, path: str, body: bytes) -> None:
    response = client.post(f"/api/auth/{path}", content=body, headers={"Content-Type": "application/json"})
    check_error(response, 422, "validation_error")


PASSWORDS = {
    "8 characters": "8 signs!",
    "spaces around": "  spaces  ",
    "NUL": "with\x00NUL\x00",
    "Japanese": "日本語のパスワード",
    "128 of 4 bytes": "🎉" * 128,
    "controls": "\n\t\r\v\f\x1b\x7f\x01",
}


@pytest.mark.parametrize("password", PASSWORDS.values(), ids=PASSWORDS)
def test_passwords_count_to_the_last_byte(client: TestClient, password: str) -> None:
    account = Account(client, password)
    assert account.login()
    others = {password[:-1] + "?", "?" + password[1:], password.strip().ljust(8, "!")} - {password}
    for other in others:
        check_error(post(client, "login", account.email, other), 401, "unauthorized")


def test_password_of_more_than_1000_characters_is_not_even_tried(client: TestClient, ann: Account) -> None:
    check_error(post(client, "login", ann.email, "x" * 1001), 422, "validation_error")


@pytest.mark.parametrize("password", ["", "x", "x" * 1000], ids=["empty", "1 character", "1000 characters"])
def test_wrong_password_of_any_length_is_a_401(client: TestClient, ann: Account, password: str) -> None:
    """A 422 would tell that the password on record is another one."""
    check_error(post(client, "login", ann.email, password), 401, "unauthorized")


def test_passwords_are_kept_as_argon2id_with_a_salt_for_each(client: TestClient) -> None:
    hashes = [Account(client).row().password_hash for _ in range(2)]
    for phc in hashes:
        assert phc.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert hashes[0].split("$")[4] != hashes[1].split("$")[4]
    assert hashes[0].split("$")[5] != hashes[1].split("$")[5]


# Logging in


def test_stranger_learns_nothing_from_a_failed_login(
    client: TestClient, ann: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = []
    verify = Argon2id.verify_phc_encoded

    class Spy:
        @staticmethod
        def verify_phc_encoded(password: bytes, phc: str) -> None:
            costs.append(phc.rpartition("$")[0].rpartition("$")[0])
            verify(password, phc)

    monkeypatch.setattr(guesses, "Argon2id", Spy)
    wrong, unknown = post(client, "login", ann.email, "not the password"), post(client, "login", new_email())
    check_error(wrong, 401, "unauthorized")
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)
    assert wrong.headers.keys() == unknown.headers.keys()
    assert costs == ["$argon2id$v=19$m=19456,t=2,p=1"] * 2


def test_login_is_one_statement(client: TestClient, ann: Account) -> None:
    with counted() as cost:
        assert post(client, "login", ann.email).status_code == 200
    assert cost() == 1


HASHING = {"login": "password_matches", "register": "hash_password", "password": "hash_password"}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("path", "function"), HASHING.items(), ids=HASHING)
def test_at_most_three_hashes_run_at_once(
    client: TestClient, ann: Account, monkeypatch: pytest.MonkeyPatch, path: str, function: str
) -> None:
    """Each takes 19 MiB and a core."""
    busy, most, lock = 0, 0, Lock()
    hashing = getattr(accounts, function)

    def watched(*arguments: str) -> Any:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        try:
            until(lambda: most >= 3)
            return hashing(*arguments)
        finally:
            with lock:
                busy -= 1

    monkeypatch.setattr(settings, "auth_rate_limit", parse("100/minute"))
    others = [Account(client) for _ in range(16 * (path == "password"))]
    bearers = [other.login() for other in others]

    def call(number: int) -> int:
        if path == "password":
            return int(
                others[number].change_password(bearers[number], PASSWORD, "battery staple").status_code
            )
        return int(post(client, path, ann.email if path == "login" else new_email()).status_code)

    monkeypatch.setattr(accounts, function, watched)
    with ThreadPoolExecutor(16) as pool:
        codes = set(pool.map(call, range(16)))
    assert codes == {201 if path == "register" else 200}
    assert most == 3


# Tokens of the built-in login


def test_logout_revokes_all_tokens_of_this_account_and_no_others(client: TestClient, ann: Account) -> None:
    bob = Account(client)
    first, second, other = ann.login(), ann.login(), bob.login()
    response = ann.logout(first)
    assert (response.status_code, response.content) == (204, b"")
    for bearer in (first, second):
        for path in ("/api/auth/me", f"/api/{ann.id}/tasks"):
            assert check_error(ann.get(bearer, path), 401, "unauthorized") == "Token was revoked"
        check_error(ann.logout(bearer), 401, "unauthorized")
    assert bob.get(other).status_code == 200


@pytest.mark.usefixtures("clock")
def test_login_in_the_same_second_as_the_logout_works(ann: Account) -> None:
    for _ in range(3):
        bearer = ann.login()
        assert ann.get(bearer).status_code == 200
        assert ann.logout(bearer).status_code == 204
        assert ann.get(bearer).status_code == 401


@pytest.mark.slow
def test_logout_holds_in_every_worker_and_after_a_restart(ann: Account, clone: Path) -> None:
    """One database, two servers: the app of this process and a real one beside it."""
    bearer = ann.login()
    settings = {"BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": url.render_as_string(hide_password=False)}
    with serving(clone, **settings) as other:
        old = {"Authorization": f"Bearer {bearer}"}
        assert other.status("/api/auth/me", old) == 200
        assert ann.logout(bearer).status_code == 204
        assert other.status("/api/auth/me", old) == 401
        new = {"Authorization": f"Bearer {ann.login()}"}
        assert other.status("/api/auth/me", new) == 200
    with serving(clone, **settings) as other:
        assert other.status("/api/auth/me", old) == 401
        assert other.status("/api/auth/me", new) == 200


def test_token_of_our_login_ends_after_seven_days(ann: Account, clock: Clock) -> None:
    bearer = ann.login()
    clock.forward(604_798)
    assert ann.get(bearer).status_code == 200
    clock.forward(2)
    assert check_error(ann.get(bearer), 401, "unauthorized") == "Token has expired"


def test_token_of_a_deleted_account_is_refused(ann: Account) -> None:
    bearer = ann.login()
    with Session(db.engine) as session:
        session.exec(delete(User).where(User.id == ann.id))
    check_error(ann.get(bearer), 401, "unauthorized")


FORGED: dict[str, dict[str, Any]] = {
    "none": {},
    "null": {"generation": None},
    "text": {"generation": "0"},
    "later": {"generation": 1},
    "earlier": {"generation": -1},
}


@pytest.mark.parametrize("claims", FORGED.values(), ids=FORGED)
def test_tokens_of_our_login_need_the_generation_of_the_account(ann: Account, claims: dict[str, Any]) -> None:
    check_error(ann.get(token(ann.id, iss="todo-api", **claims)), 401, "unauthorized")


# Changing the password


def test_new_password_replaces_the_old_one_and_revokes_all_other_tokens(ann: Account) -> None:
    first, second = ann.login(), ann.login()
    response = ann.change_password(first, PASSWORD, "battery staple")
    body = response.json()
    assert response.status_code == 200
    assert (body["token_type"], body["expires_in"], body["user"]["id"]) == ("bearer", 604_800, ann.id)
    assert ann.get(body["access_token"]).status_code == 200
    for bearer in (first, second):
        assert check_error(ann.get(bearer), 401, "unauthorized") == "Token was revoked"
        assert check_error(ann.change_password(bearer, "battery staple", PASSWORD), 401, "unauthorized")
    check_error(post(ann.client, "login", ann.email), 401, "unauthorized")
    assert post(ann.client, "login", ann.email, "battery staple").status_code == 200


BAD_CHANGES = {
    "wrong password": ("not the password", "battery staple", 401),
    "empty password": ("", "battery staple", 401),
    "new password of 7": (PASSWORD, "s3cret!", 422),
    "new password of 129": (PASSWORD, "x" * 129, 422),
}


@pytest.mark.parametrize(("old", "new", "status"), BAD_CHANGES.values(), ids=BAD_CHANGES)
def test_refused_change_of_password_changes_nothing(ann: Account, old: str, new: str, status: int) -> None:
    bearer = ann.login()
    response = ann.change_password(bearer, old, new)
    assert response.status_code == status
    if status == 401:
        assert check_error(response, 401, "unauthorized") == "Wrong password"
    assert ann.get(bearer).status_code == 200
    assert ann.login()


def test_of_simultaneous_changes_of_password_one_wins(ann: Account) -> None:
    """Otherwise a thief's token could survive the change by the owner."""
    bearer = ann.login()
    new = [f"new password {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda password: ann.change_password(bearer, PASSWORD, password), new))
    assert sorted(response.status_code for response in responses) == [200] + [401] * 7
    (winner,) = (number for number in range(8) if responses[number].status_code == 200)
    assert ann.get(responses[winner].json()["access_token"]).status_code == 200
    assert post(ann.client, "login", ann.email, new[winner]).status_code == 200


def test_change_of_password_is_two_statements(ann: Account) -> None:
    bearer = ann.login()
    with counted() as cost:
        assert ann.change_password(bearer, PASSWORD, "battery staple").status_code == 200
    assert cost() == 2


# Deleting the account


def count_tasks(account: Account) -> int:
    with Session(db.engine) as session:
        return len(session.exec(select(Task).where(Task.user_id == account.id)).all())


def test_deleted_account_is_gone_with_its_tasks_and_nobody_elses(client: TestClient, ann: Account) -> None:
    bob = Account(client)
    first, second, other = ann.login(), ann.login(), bob.login()
    for account, bearer in ((ann, first), (ann, second), (bob, other)):
        assert account.create_task(bearer).status_code == 201
    response = ann.delete(first)
    assert (response.status_code, response.content) == (204, b"")
    assert (count_tasks(ann), count_tasks(bob)) == (0, 1)
    for bearer in (first, second):
        assert check_error(ann.get(bearer), 401, "unauthorized") == "Token was revoked"
        check_error(ann.delete(bearer), 401, "unauthorized")
    check_error(post(client, "login", ann.email), 401, "unauthorized")
    assert bob.get(other).status_code == 200
    assert post(client, "register", ann.email).json()["id"] != ann.id


def test_account_is_not_deleted_without_its_password(ann: Account) -> None:
    bearer = ann.login()
    ann.create_task(bearer)
    assert check_error(ann.delete(bearer, "not the password"), 401, "unauthorized") == "Wrong password"
    headers = {"Authorization": f"Bearer {bearer}"}
    check_error(ann.client.delete("/api/auth/me", headers=headers), 422, "validation_error")
    assert ann.get(bearer).status_code == 200
    assert count_tasks(ann) == 1


@pytest.fixture
def notes() -> Iterator[Table]:
    """A table that is added to the app, with rows of users and of their tasks."""
    user_id: Column[str] = Column("user_id", String)
    task_id: Column[int] = Column("task_id", ForeignKey("tasks.id"))
    notes = Table("notes", SQLModel.metadata, user_id, task_id)
    notes.create(db.engine)
    yield notes
    notes.drop(db.engine)
    SQLModel.metadata.remove(notes)


def test_rows_in_all_tables_of_users_are_deleted(ann: Account, notes: Table) -> None:
    bearer = ann.login()
    task = ann.create_task(bearer).json()
    with db.engine.connect() as connection:
        for user_id, task_id in ((ann.id, task["id"]), ("another user", None)):
            connection.execute(notes.insert().values(user_id=user_id, task_id=task_id))
        assert ann.delete(bearer).status_code == 204
        assert connection.execute(notes.select()).all() == [("another user", None)]


def test_account_is_deleted_with_all_its_rows_or_not_at_all(ann: Account) -> None:
    bearer = ann.login()
    ann.create_task(bearer)

    def fail(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        if "DELETE FROM users" in sql:
            raise exc.OperationalError(sql, {}, Exception("down"))

    event.listen(db.engine, "before_cursor_execute", fail)
    try:
        check_unavailable(ann.delete(bearer))
    finally:
        event.remove(db.engine, "before_cursor_execute", fail)
    assert count_tasks(ann) == 1
    assert ann.delete(bearer).status_code == 204


def test_task_that_is_created_while_its_account_is_deleted_is_refused(ann: Account) -> None:
    """The token was checked before, and the task is written afterwards."""
    bearer, checked, deleted = ann.login(), Event(), Event()

    def wait(*_: object) -> None:
        checked.set()
        deleted.wait(10)

    event.listen(Session, "before_flush", wait)
    try:
        with ThreadPoolExecutor(1) as pool:
            creation = pool.submit(ann.create_task, bearer)
            checked.wait(10)
            assert ann.delete(bearer).status_code == 204
            deleted.set()
            assert check_error(creation.result(), 401, "unauthorized") == "Token was revoked"
    finally:
        deleted.set()
        event.remove(Session, "before_flush", wait)
    assert count_tasks(ann) == 0


@pytest.mark.slow
def test_of_many_tasks_created_while_their_account_is_deleted_none_is_left(
    client: TestClient, fresh_limits: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "auth_rate_limit", parse("100/minute"))

    def create(account: Account, bearer: str) -> set[int]:
        codes = set()
        while 401 not in codes:
            codes.add(account.create_task(bearer).status_code)
        return codes

    for _ in range(20):
        account = Account(client)
        bearer = account.login()
        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(create, account, bearer) for _ in range(8)]
            until(partial(count_tasks, account))
            assert account.delete(bearer).status_code == 204
            assert set().union(*(client.result() for client in clients)) == {201, 401}
        assert count_tasks(account) == 0


def test_tasks_of_a_built_in_account_cost_one_statement_more(ann: Account) -> None:
    bearer = ann.login()
    with counted() as cost:
        response = ann.create_task(bearer)
    assert cost() == 2
    assert response.json()["user_id"] == ann.id


def test_several_tasks_of_a_built_in_account_can_be_added_at_once(ann: Account) -> None:
    with Session(db.engine, expire_on_commit=False) as session:
        need_account(session, ann.id)
        tasks = [
            Task(title=title, user_id=ann.id, created_at=now(), updated_at=now()) for title in ("a", "b")
        ]
        session.add_all(tasks)
        session.commit()
        assert [(task.title, task.user_id) for task in tasks] == [("a", ann.id), ("b", ann.id)]
    assert count_tasks(ann) == 2


# Tokens that another server signed with the same secret


def test_external_tokens_survive_logout_and_cost_one_trip(ann: Account) -> None:
    external, own = token(ann.id, email="ann@external.example"), ann.login()
    tasks = f"/api/{ann.id}/tasks"
    for bearer, trips in ((external, 1), (own, 2)):
        with counted() as cost:
            assert ann.get(bearer, tasks).status_code == 200
        assert cost() == trips
    ann.logout(own)
    assert ann.get(external, tasks).status_code == 200
    assert ann.get(own, tasks).status_code == 401


def test_external_tokens_cannot_change_an_account(ann: Account) -> None:
    own, external = ann.login(), token(ann.id)
    change = ann.change_password(external, PASSWORD, "battery staple")
    for response in (ann.logout(external), change, ann.delete(external)):
        assert "not from our login" in check_error(response, 400, "bad_request")
    assert ann.get(own).status_code == 200
    assert ann.get(external).status_code == 200


EMAILS: dict[str, tuple[dict[str, object], str | None]] = {
    "text": ({"email": "a@b.example"}, "a@b.example"),
    "none": ({}, None),
    "number": ({"email": 1}, None),
    "lone surrogate": ({"email": "\ud800"}, None),
}


@pytest.mark.parametrize(("claims", "email"), EMAILS.values(), ids=EMAILS)
def test_me_is_the_user_in_an_external_token(ann: Account, claims: dict[str, Any], email: str | None) -> None:
    with counted() as cost:
        me = ann.get(token("someone else", **claims)).json()
    assert (me["id"], me["email"], me["created_at"]) == ("someone else", email, None)
    assert cost() == 0


# Secrets


def test_logs_and_responses_hold_no_secrets(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        account = Account(client)
        bearer = account.login()
        texts = [
            post(client, "register", account.email).text,
            post(client, "login", account.email, "wrong " + PASSWORD).text,
        ]
        response = account.change_password(bearer, PASSWORD, "battery staple")
        texts.append(response.text.replace(response.json()["access_token"], ""))
        texts.append(account.delete(bearer, "wrong " + PASSWORD).text)
        texts += [account.get(bearer).text, account.get(bearer + "x").text, account.logout(bearer).text]
    hidden = [PASSWORD, account.row().password_hash, "$argon2id$", bearer, account.email]
    assert not [word for word in hidden if word in caplog.text]
    assert not [word for word in hidden[:4] for text in texts if word in text]
