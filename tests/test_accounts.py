"""The built-in accounts: sign up, log in, log out, and nobody else's password."""

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from fastapi.testclient import TestClient
from limits import parse
from limits.errors import StorageError
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import select, update

import auth
import db
import main
from routes import auth as accounts
from tests.conftest import SECRET, check_error, counted, token, url
from tests.server import copy_project, serving

PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def fresh_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    storage = MemoryStorage()
    monkeypatch.setattr(accounts, "limiter", FixedWindowRateLimiter(storage))
    yield
    storage.timer.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def address() -> str:
    return f"{secrets.token_hex(8)}@example.com"


def post(client: TestClient, path: str, email: str, password: str = PASSWORD) -> Any:
    return client.post(f"/api/auth/{path}", json={"email": email, "password": password})


class Account:
    """A registered user, and what this user asks for."""

    def __init__(self, client: TestClient, password: str = PASSWORD) -> None:
        self.client, self.email, self.password = client, address(), password
        answer = post(client, "register", self.email, password)
        assert answer.status_code == 201, answer.text
        self.id = answer.json()["id"]

    def login(self) -> str:
        answer = post(self.client, "login", self.email, self.password)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def get(self, bearer: str, path: str = "/api/auth/me") -> Any:
        return self.client.get(path, headers={"Authorization": f"Bearer {bearer}"})

    def logout(self, bearer: str) -> Any:
        return self.client.post("/api/auth/logout", headers={"Authorization": f"Bearer {bearer}"})


@pytest.fixture
def ann(client: TestClient) -> Account:
    return Account(client)


def row_of(account: Account) -> Any:
    with db.engine.connect() as connection:
        return connection.execute(select(auth.users).where(auth.users.c.id == account.id)).one()


@pytest.mark.parametrize("path", ["register", "signup"])
def test_the_whole_round(client: TestClient, path: str) -> None:
    email = address()
    answer = post(client, path, f"  {email.upper()} ")
    user = answer.json()
    assert answer.status_code == 201
    assert set(user) == {"id", "email", "created_at"}
    assert user["email"] == email

    answer = post(client, "login", email)
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert set(body) == {"access_token", "token_type", "expires_in", "user"}
    assert (body["token_type"], body["expires_in"], body["user"]) == ("bearer", 3600, user)
    claims = jwt.decode(body["access_token"], SECRET, ["HS256"])
    assert claims["sub"] == user["id"]
    assert claims["exp"] - claims["iat"] == 3600

    headers = {"Authorization": f"Bearer {body['access_token']}"}
    assert client.get("/api/auth/me", headers=headers).json() == user
    tasks = f"/api/{user['id']}/tasks"
    assert client.post(tasks, json={"title": "Mine"}, headers=headers).status_code == 201
    answer = client.post("/api/auth/logout", headers=headers)
    assert (answer.status_code, answer.content) == (204, b"")
    assert check_error(client.get(tasks, headers=headers), 401, "unauthorized") == "Token was signed out"
    headers = {"Authorization": f"Bearer {post(client, 'login', email).json()['access_token']}"}
    assert [task["title"] for task in client.get(tasks, headers=headers).json()] == ["Mine"]


@pytest.mark.parametrize(
    "change", [str, str.upper, str.title, " {} ".format], ids=["same", "upper", "title", "space"]
)
def test_an_address_is_taken_once(client: TestClient, ann: Account, change: Any) -> None:
    check_error(post(client, "register", change(ann.email)), 409, "conflict")
    assert post(client, "login", change(ann.email)).status_code == 200


def test_of_those_who_race_for_an_address_one_wins(client: TestClient) -> None:
    email = address()
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: post(client, "register", email).status_code, range(8)))
    assert sorted(codes) == [201] + [409] * 7


BAD = {
    "no address": ("ann", PASSWORD),
    "empty address": ("", PASSWORD),
    "two addresses": ("a@example.com, b@example.com", PASSWORD),
    "address with NUL": ("a\x00@example.com", PASSWORD),
    "long address": ("a" * 64 + "@" + "b" * 60 + ".c" * 70 + ".com", PASSWORD),
    "short password": ("short@example.com", "s3cret!"),
    "long password": ("long@example.com", "s3cret" * 22),
}


@pytest.mark.parametrize(("email", "password"), BAD.values(), ids=BAD)
def test_bad_credentials_are_refused_without_an_echo(client: TestClient, email: str, password: str) -> None:
    answer = post(client, "register", email, password)
    check_error(answer, 422, "validation_error")
    assert password not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"email": 1, "password": null}',
        b'{"email": "a@example.com", "password": "\\ud800aaaaaaaa"}',
    ],
)
def test_other_bodies_are_refused(client: TestClient, body: bytes) -> None:
    for path in ("register", "login"):
        answer = client.post(f"/api/auth/{path}", content=body, headers={"Content-Type": "application/json"})
        check_error(answer, 422, "validation_error")


PASSWORDS = [
    "  blanks  ",
    "with\x00NUL\x00",
    "日本語のパスワード",
    "🎉" * 128,
    "x" * 128,
    "\n\t\r\v\f\x1b\x7f\x01",
]


@pytest.mark.parametrize("password", PASSWORDS)
def test_passwords_count_to_the_last_byte(client: TestClient, password: str) -> None:
    account = Account(client, password)
    assert account.login()
    others = {password[:-1] + "?", "?" + password[1:], password.strip().ljust(8, "!")} - {password}
    for other in others:
        check_error(post(client, "login", account.email, other), 401, "unauthorized")
    assert row_of(account).password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_a_stranger_learns_nothing_from_a_failed_login(
    client: TestClient, ann: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []
    verify = Argon2id.verify_phc_encoded

    class Spy:
        @staticmethod
        def verify_phc_encoded(password: bytes, phc: str) -> None:
            checks.append(phc.rpartition("$")[0].rpartition("$")[0])
            verify(password, phc)

    monkeypatch.setattr(auth, "Argon2id", Spy)
    wrong, unknown = post(client, "login", ann.email, "not the password"), post(client, "login", address())
    check_error(wrong, 401, "unauthorized")
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)
    assert wrong.headers.keys() == unknown.headers.keys()
    assert len(checks) == 2
    assert checks[0] == checks[1]


def test_logging_out_ends_all_tokens_of_this_account_and_no_others(client: TestClient, ann: Account) -> None:
    bob = Account(client)
    first, second, other = ann.login(), ann.login(), bob.login()
    assert ann.logout(first).status_code == 204
    for bearer in (first, second):
        assert check_error(ann.get(bearer), 401, "unauthorized") == "Token was signed out"
        check_error(ann.logout(bearer), 401, "unauthorized")
    assert bob.get(other).status_code == 200


def test_a_login_in_the_same_second_as_the_logout_works(ann: Account, clock: list[float]) -> None:
    for _ in range(3):
        bearer = ann.login()
        assert ann.get(bearer).status_code == 200
        assert ann.logout(bearer).status_code == 204
        assert ann.get(bearer).status_code == 401


def test_a_logout_holds_in_every_worker_and_after_a_restart(
    client: TestClient, ann: Account, tmp_path: Path
) -> None:
    """One database, two servers: the app of this process and a real one beside it."""
    bearer = ann.login()
    settings = {"BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": url.render_as_string(hide_password=False)}
    with serving(copy_project(tmp_path), **settings) as other:
        me = {"Authorization": f"Bearer {bearer}"}
        assert other.status("/api/auth/me", me) == 200
        assert ann.logout(bearer).status_code == 204
        assert other.status("/api/auth/me", me) == 401
        again = {"Authorization": f"Bearer {ann.login()}"}
        assert other.status("/api/auth/me", again) == 200
    with serving(tmp_path, **settings) as other:
        assert other.status("/api/auth/me", me) == 401
        assert other.status("/api/auth/me", again) == 200


def test_tokens_from_elsewhere_survive_a_logout_and_cost_nothing_more(
    client: TestClient, ann: Account
) -> None:
    elsewhere, own = token(ann.id, email="ann@elsewhere.example"), ann.login()
    tasks = f"/api/{ann.id}/tasks"
    for bearer, trips in ((elsewhere, 1), (own, 2)):
        with counted() as cost:
            assert ann.get(bearer, tasks).status_code == 200
        assert cost() == trips
    ann.logout(own)
    assert ann.get(elsewhere, tasks).status_code == 200
    assert ann.get(own, tasks).status_code == 401


@pytest.mark.parametrize(
    ("claims", "email"), [({"email": "a@b.example"}, "a@b.example"), ({}, None), ({"email": 1}, None)]
)
def test_who_comes_from_elsewhere_is_who_the_token_says(
    ann: Account, claims: dict[str, Any], email: str | None
) -> None:
    answer = ann.get(token("someone else", **claims))
    assert answer.json() == {"id": "someone else", "email": email, "created_at": None}


FORGED: list[dict[str, Any]] = [
    {},
    {"generation": None},
    {"generation": "0"},
    {"generation": 1},
    {"generation": -1},
]


@pytest.mark.parametrize("claims", FORGED)
def test_our_own_tokens_need_the_right_generation(ann: Account, claims: dict[str, Any]) -> None:
    check_error(ann.get(token(ann.id, iss="todo-api", **claims)), 401, "unauthorized")


def test_a_token_without_its_account_is_dead(ann: Account) -> None:
    bearer = ann.login()
    with db.engine.connect() as connection:
        connection.execute(auth.users.delete().where(auth.users.c.id == ann.id))
    check_error(ann.get(bearer), 401, "unauthorized")


def test_writing_costs_one_statement(client: TestClient, ann: Account) -> None:
    for path, email in (("register", address()), ("login", ann.email)):
        with counted() as cost:
            assert post(client, path, email).is_success
        assert cost() == 1


def test_a_login_brings_an_old_hash_up_to_date(ann: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(auth, "MEMORY_KIB", 8192)
        old = auth.hash_password(PASSWORD)
    with db.engine.connect() as connection:
        connection.execute(update(auth.users).where(auth.users.c.id == ann.id).values(password_hash=old))
    check_error(post(ann.client, "login", ann.email, "wrong password"), 401, "unauthorized")
    assert row_of(ann).password_hash == old
    ann.login()
    renewed = row_of(ann).password_hash
    assert "$m=19456,t=2,p=1$" in renewed
    ann.login()
    assert row_of(ann).password_hash == renewed


def test_a_flood_of_logins_hashes_few_at_a_time(
    client: TestClient, ann: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, most, guard = 0, 0, threading.Lock()
    matches = auth.password_matches

    def watched(password: str, phc: str) -> bool:
        nonlocal busy, most
        with guard:
            busy += 1
            most = max(most, busy)
        try:
            return matches(password, phc)
        finally:
            with guard:
                busy -= 1

    monkeypatch.setattr(accounts, "password_matches", watched)
    monkeypatch.setattr(accounts, "LIMIT", parse("100/minute"))
    with ThreadPoolExecutor(16) as pool:
        codes = set(pool.map(lambda _: post(client, "login", ann.email).status_code, range(32)))
    assert codes == {200}
    assert most == accounts.HASHES_AT_ONCE


def limited(answer: Any, seconds: int) -> None:
    check_error(answer, 429, "too_many_requests")
    assert int(answer.headers["retry-after"]) == seconds


def caller(host: str) -> TestClient:
    return TestClient(main.app, client=(host, 50000))


def test_one_client_may_not_try_many_accounts(client: TestClient, ann: Account, clock: list[float]) -> None:
    for _ in range(10):
        assert post(caller("192.0.2.1"), "login", address()).status_code == 401
    clock[0] += 20
    limited(post(caller("192.0.2.1"), "login", ann.email), 40)
    assert post(caller("192.0.2.2"), "login", ann.email).status_code == 200
    clock[0] += 40
    assert post(caller("192.0.2.1"), "login", ann.email).status_code == 200


def test_many_clients_may_not_try_one_account(ann: Account, clock: list[float]) -> None:
    for number in range(10):
        assert post(caller(f"192.0.2.{number}"), "login", ann.email, "guess number x").status_code == 401
    limited(post(caller("192.0.2.99"), "login", f" {ann.email.upper()}"), 60)
    assert post(caller("192.0.2.99"), "login", address()).status_code == 401
    clock[0] += 60
    assert post(caller("192.0.2.99"), "login", ann.email).status_code == 200


def test_logging_in_again_and_again_locks_nobody_out(ann: Account, clock: list[float]) -> None:
    for _ in range(30):
        ann.login()


def test_a_login_of_ones_own_wipes_out_no_failures(ann: Account, clock: list[float]) -> None:
    """Else a client that guesses could log in to its own account in between, and guess for ever."""
    for _ in range(10):
        assert post(ann.client, "login", address()).status_code == 401
        if _ < 9:
            ann.login()
    limited(post(ann.client, "login", ann.email), 60)


def test_one_client_may_not_make_many_accounts(clock: list[float]) -> None:
    for _ in range(10):
        assert post(caller("192.0.2.3"), "register", address()).status_code == 201
    limited(post(caller("192.0.2.3"), "signup", address()), 60)
    assert post(caller("192.0.2.4"), "register", address()).status_code == 201


def test_a_storage_that_goes_away_is_a_503(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_key: str) -> None:
        raise StorageError(ConnectionError("no route to the storage"))

    monkeypatch.setattr(accounts, "count_attempt", away)
    answer = post(client, "login", address())
    check_error(answer, 503, "service_unavailable")
    assert "storage" not in answer.text


def test_logs_and_answers_hold_no_secrets(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        account = Account(client)
        bearer = account.login()
        texts = [
            post(client, "register", account.email).text,
            post(client, "login", account.email, "wrong " + PASSWORD).text,
        ]
        texts += [account.get(bearer).text, account.get(bearer + "x").text, account.logout(bearer).text]
    hidden = [PASSWORD, row_of(account).password_hash, "$argon2id$", bearer, account.email]
    assert not [word for word in hidden if word in caplog.text]
    assert not [word for word in hidden[:4] for text in texts if word in text]
