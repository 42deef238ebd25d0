"""The built-in accounts: register, log in, log out, change the password, delete the account."""

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any
from unittest.mock import Mock

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from fastapi.testclient import TestClient
from limits import parse
from sqlalchemy import Column, ForeignKey, String, Table, event, exc
from sqlalchemy.orm import registry
from sqlmodel import Field, Session, SQLModel, select

import db
from hardening import guesses
from hardening.leftovers import need_account
from hardening.settings import settings
from models import Task
from routes import accounts
from tests.conftest import Clock, check_error, check_refused, check_unavailable, token, until
from tests.support.accounts import PASSWORD, Account, new_email, post
from tests.support.counting import counted
from tests.support.environment import SECRET, url
from tests.support.server import serving

pytestmark = pytest.mark.usefixtures("fresh_limits")


# Accounts and their passwords


@pytest.mark.parametrize(("register", "login"), [("register", "login"), ("signup", "signin")])
def test_register_creates_an_account_that_can_log_in_and_own_tasks(
    client: TestClient, register: str, login: str
) -> None:
    email = new_email()
    registered, logged_in = post(client, register, email), post(client, login, email)
    assert (registered.status_code, logged_in.status_code) == (201, 200)
    user = registered.json()["user"]
    assert user["email"] == email
    assert user["created_at"].endswith("Z")
    assert logged_in.json()["user"] == user
    assert registered.json() | user == registered.json()  # for clients that expect the user, not a login
    for response in (registered, logged_in):
        body = response.json()
        assert (body["token_type"], body["expires_in"]) == ("bearer", 604_800)
        assert not [secret for secret in ("password", PASSWORD, "$argon2id$") if secret in response.text]
        headers = {"Authorization": f"Bearer {body['access_token']}"}
        assert client.get("/api/auth/me", headers=headers).json() == user
        task = client.post(f"/api/{user['id']}/tasks", json={"title": "Mine"}, headers=headers).json()
        assert task["user_id"] == user["id"]


def test_email_is_unique_ignoring_case_and_spaces(client: TestClient, ann: Account) -> None:
    spelled = f"  {ann.email.upper()} "
    check_error(post(client, "register", spelled), 409, "conflict")
    assert post(client, "login", spelled).json()["user"]["email"] == ann.email


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
    "umlaut": "@bücher.example",
    "254 characters": f"@{'.'.join(['a' * 60] * 3)}.{'b' * 50}.com",
}


@pytest.mark.parametrize("ending", VALID_EMAILS.values(), ids=VALID_EMAILS)
def test_valid_emails(client: TestClient, ending: str) -> None:
    email = secrets.token_hex(16)[: 254 - len(ending)] + ending
    assert post(client, "register", email).status_code == 201
    assert post(client, "login", email).status_code == 200


BAD_CREDENTIALS = {
    "no email": ("ann", PASSWORD),
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


@pytest.mark.parametrize("path", ["register", "login"])
def test_lone_surrogate_in_a_password_is_a_422(client: TestClient, path: str) -> None:
    body = b'{"email": "a@example.com", "password": "\\ud800aaaaaaaa"}'
    response = client.post(f"/api/auth/{path}", content=body, headers={"Content-Type": "application/json"})
    check_error(response, 422, "validation_error")


PASSWORDS = {
    "8 characters": "8 signs!",
    "spaces and controls around": " \n\twith\x00NUL\x7f ",
    "128 of 4 bytes": "🎉" * 128,
}


@pytest.mark.parametrize("password", PASSWORDS.values(), ids=PASSWORDS)
def test_passwords_count_to_the_last_byte(client: TestClient, password: str) -> None:
    account = Account(client, password)
    assert account.login()
    for other in {password[:-1] + "?", "?" + password[1:], password.strip().ljust(8, "!")} - {password}:
        check_error(post(client, "login", account.email, other), 401, "unauthorized")


@pytest.mark.parametrize(("length", "status"), [(0, 401), (1000, 401), (1001, 422)])
def test_wrong_password_of_up_to_1000_characters_is_a_401(ann: Account, length: int, status: int) -> None:
    """A 422 for a short one would reveal that the right one is longer."""
    assert post(ann.client, "login", ann.email, "x" * length).status_code == status


def test_passwords_are_kept_as_argon2id_with_a_salt_for_each(client: TestClient) -> None:
    first, second = (Account(client).row().password_hash.split("$") for _ in range(2))
    assert first[1:4] == second[1:4] == ["argon2id", "v=19", "m=19456,t=2,p=1"]
    assert first[4] != second[4]


# Logging in


def test_failed_login_does_not_reveal_whether_the_email_has_an_account(
    ann: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    argon2id = Mock(wraps=Argon2id)
    monkeypatch.setattr(guesses, "Argon2id", argon2id)
    wrong, unknown = (post(ann.client, "login", email, "not it") for email in (ann.email, new_email()))
    check_refused(wrong, "Wrong email or password")
    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)
    assert wrong.headers.keys() == unknown.headers.keys()
    hashes = [call.args[1].split("$") for call in argon2id.verify_phc_encoded.call_args_list]
    assert [phc[1:4] for phc in hashes] == [["argon2id", "v=19", "m=19456,t=2,p=1"]] * 2  # as slow


@pytest.mark.usefixtures("patient")
def test_at_most_three_hashes_run_at_once(ann: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 19 MiB and a core. And each of these requests needs only one."""
    running, lock = 0, Lock()
    at_once: list[int] = []

    def watch(hashing: Callable[..., Any], *arguments: str) -> Any:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        try:
            until(lambda: max(at_once) >= 3)
            return hashing(*arguments)
        finally:
            with lock:
                running -= 1

    bearer = ann.login()
    monkeypatch.setattr(settings, "auth_rate_limit", parse("100/minute"))
    monkeypatch.setattr(accounts, "hash_password", partial(watch, guesses.hash_password))
    monkeypatch.setattr(accounts, "password_matches", partial(watch, guesses.password_matches))
    requests: list[Callable[[], Any]] = [
        partial(post, ann.client, "login", ann.email),
        lambda: post(ann.client, "register", new_email()),
        partial(ann.change_password, bearer, "wrong", "battery staple"),
    ]
    with ThreadPoolExecutor(24) as pool:
        codes = Counter(pool.map(lambda send: send().status_code, requests * 8))
    assert codes == {200: 8, 201: 8, 401: 8}
    assert (max(at_once), len(at_once)) == (3, 24)


# Tokens of the built-in login


@pytest.mark.usefixtures("clock")
def test_logout_revokes_all_tokens_of_this_account_and_no_others(client: TestClient, ann: Account) -> None:
    bob = Account(client)
    first, second, other = ann.login(), ann.login(), bob.login()
    response = ann.logout(first)
    assert (response.status_code, response.content) == (204, b"")
    for bearer in (first, second):
        for path in ("/api/auth/me", f"/api/{ann.id}/tasks"):
            check_refused(ann.get(bearer, path), "Token was revoked")
        check_refused(ann.logout(bearer), "Token was revoked")
    assert bob.get(other).status_code == 200
    assert ann.get(ann.login()).status_code == 200  # in the same second, too


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
    check_refused(ann.get(bearer), "Token has expired")


@pytest.mark.parametrize("claims", [{}, {"generation": "0"}, {"generation": 1}, {"generation": -1}], ids=str)
def test_tokens_of_our_login_need_the_generation_of_the_account(ann: Account, claims: dict[str, Any]) -> None:
    check_refused(ann.get(token(ann.id, iss="todo-api", **claims)), "Token was revoked")


# Changing the password


def test_new_password_replaces_the_old_one_and_revokes_all_other_tokens(ann: Account) -> None:
    first, second = ann.login(), ann.login()
    response = ann.change_password(first, PASSWORD, "battery staple")
    body = response.json()
    assert response.status_code == 200
    assert (body["token_type"], body["expires_in"], body["user"]["id"]) == ("bearer", 604_800, ann.id)
    assert ann.get(body["access_token"]).status_code == 200
    for bearer in (first, second):
        check_refused(ann.get(bearer), "Token was revoked")
        check_refused(ann.change_password(bearer, "battery staple", PASSWORD), "Token was revoked")
    check_error(post(ann.client, "login", ann.email), 401, "unauthorized")
    assert post(ann.client, "login", ann.email, "battery staple").status_code == 200


def test_refused_change_of_password_changes_nothing(ann: Account) -> None:
    bearer = ann.login()
    check_refused(ann.change_password(bearer, "not the password", "battery staple"), "Wrong password")
    check_error(ann.change_password(bearer, PASSWORD, "s3cret!"), 422, "validation_error")
    assert ann.get(bearer).status_code == 200
    assert ann.login()


def test_only_one_of_simultaneous_password_changes_succeeds(ann: Account) -> None:
    """Otherwise an attacker's token could survive the owner's change."""
    bearer = ann.login()
    new = [f"new password {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda password: ann.change_password(bearer, PASSWORD, password), new))
    assert sorted(response.status_code for response in responses) == [200] + [401] * 7
    (winner,) = (number for number in range(8) if responses[number].status_code == 200)
    assert ann.get(responses[winner].json()["access_token"]).status_code == 200
    assert post(ann.client, "login", ann.email, new[winner]).status_code == 200


# Deleting the account


def count_tasks(account: Account) -> int:
    with Session(db.engine) as session:
        return len(session.exec(select(Task).where(Task.user_id == account.id)).all())


def test_deleted_account_is_gone_with_its_tasks_only(client: TestClient, ann: Account) -> None:
    bob = Account(client)
    first, second, other = ann.login(), ann.login(), bob.login()
    for account, bearer in ((ann, first), (ann, second), (bob, other)):
        assert account.create_task(bearer).status_code == 201
    response = ann.delete(first)
    assert (response.status_code, response.content) == (204, b"")
    assert (count_tasks(ann), count_tasks(bob)) == (0, 1)
    for bearer in (first, second):
        check_refused(ann.get(bearer), "Token was revoked")
        check_refused(ann.delete(bearer), "Token was revoked")
    check_error(post(client, "login", ann.email), 401, "unauthorized")
    assert bob.get(other).status_code == 200
    assert post(client, "register", ann.email).json()["id"] != ann.id


def test_account_is_not_deleted_without_its_password(ann: Account) -> None:
    bearer = ann.login()
    ann.create_task(bearer)
    check_refused(ann.delete(bearer, "not the password"), "Wrong password")
    check_error(ann.send(bearer, "DELETE", "/api/auth/me"), 422, "validation_error")
    assert ann.get(bearer).status_code == 200
    assert count_tasks(ann) == 1


@pytest.fixture
def notes() -> Iterator[Table]:
    """A new table, with rows of users and of their tasks."""
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
    """The token is checked before the deletion, and the task is written after it."""
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
            check_refused(creation.result(), "Token was revoked")
    finally:
        deleted.set()
        event.remove(Session, "before_flush", wait)
    assert count_tasks(ann) == 0


def test_a_table_may_have_a_column_called_account(ann: Account) -> None:
    class Model(SQLModel, registry=registry()):
        """Has a metadata of its own: the app does not know this table."""

    class Payment(Model, table=True):
        id: int | None = Field(default=None, primary_key=True)
        user_id: str
        account: str

    Payment.metadata.create_all(db.engine)
    try:
        with Session(db.engine) as session:
            need_account(session, ann.id)
            session.add(Payment(user_id=ann.id, account="savings"))
            session.commit()
            assert session.exec(select(Payment.account)).all() == ["savings"]
    finally:
        Payment.metadata.drop_all(db.engine)


@pytest.mark.slow
def test_no_task_is_left_of_many_created_while_their_account_is_deleted(
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


def test_several_tasks_of_a_built_in_account_can_be_added_at_once(ann: Account) -> None:
    with Session(db.engine, expire_on_commit=False) as session:
        need_account(session, ann.id)
        tasks = [Task(title=title, user_id=ann.id) for title in ("a", "b")]
        session.add_all(tasks)
        session.commit()
        assert [(task.title, task.user_id) for task in tasks] == [("a", ann.id), ("b", ann.id)]
    assert count_tasks(ann) == 2


def test_requests_cost_one_or_two_round_trips(ann: Account) -> None:
    requests = [
        (1, partial(post, ann.client, "login", ann.email)),
        (2, partial(post, ann.client, "register", new_email())),
        (2, partial(ann.create_task, ann.login())),
        (2, partial(ann.change_password, ann.login(), PASSWORD, "battery staple")),
    ]
    for trips, send in requests:
        with counted() as cost:
            assert send().is_success
        assert cost() == trips


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


@pytest.mark.parametrize(
    ("claim", "email"), [("a@b.example", "a@b.example"), (1, None), ("\ud800", None)], ids=repr
)
def test_me_is_the_user_in_an_external_token(ann: Account, claim: object, email: str | None) -> None:
    with counted() as cost:
        me = ann.get(token("someone else", email=claim)).json()
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
