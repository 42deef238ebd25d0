"""Limits on guessing passwords and on creating accounts, for each client and each account."""

import operator
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
from fastapi.testclient import TestClient
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import exc

import main
from hardening import guesses, turns
from hardening.parsing import limiter
from hardening.settings import settings
from routes import accounts
from tests.conftest import Clock, UserClient, check_error, check_unavailable, until, watched_client
from tests.support.accounts import PASSWORD, Account, new_email, post

pytestmark = pytest.mark.usefixtures("client", "fresh_limits", "cheap_passwords")


@pytest.fixture
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of real hashes would take long; test_accounts.py has those."""
    monkeypatch.setattr(accounts, "hash_password", str)
    monkeypatch.setattr(accounts, "password_matches", operator.eq)


def client_at(host: str) -> TestClient:
    return TestClient(main.app, client=(host, 50000))


def guess(client: TestClient, email: str, times: int) -> None:
    for _ in range(times):
        check_error(post(client, "login", email, "not the password"), 401, "unauthorized")


def check_limited(response: Any, seconds: int) -> None:
    check_error(response, 429, "too_many_requests")
    assert response.headers["retry-after"] == str(seconds)


def test_one_client_may_fail_ten_times_a_minute(ann: Account, clock: Clock) -> None:
    for _ in range(10):
        guess(client_at("192.0.2.1"), new_email(), 1)
    clock.forward(20)
    check_limited(post(client_at("192.0.2.1"), "login", ann.email), 40)
    assert post(client_at("192.0.2.2"), "login", ann.email).status_code == 200
    clock.forward(40)
    assert post(client_at("192.0.2.1"), "login", ann.email).status_code == 200


def test_one_account_may_be_tried_a_hundred_times_a_minute(ann: Account, clock: Clock) -> None:
    for number in range(10):
        guess(client_at(f"192.0.2.{number}"), ann.email, 10)
    check_limited(post(client_at("192.0.2.99"), "login", f" {ann.email.upper()}"), 60)
    guess(client_at("192.0.2.99"), new_email(), 1)
    clock.forward(60)
    assert post(client_at("192.0.2.99"), "login", ann.email).status_code == 200


@pytest.mark.usefixtures("clock")
def test_no_single_client_can_lock_out_the_owner_of_an_account(ann: Account) -> None:
    attacker, owner = client_at("192.0.2.1"), client_at("192.0.2.2")
    guess(attacker, ann.email, 10)
    for _ in range(100):
        check_limited(post(attacker, "login", ann.email, "not the password"), 60)
    assert post(owner, "login", ann.email).status_code == 200


def test_one_client_may_create_ten_accounts_a_minute(clock: Clock) -> None:
    for _ in range(10):
        assert post(client_at("192.0.2.3"), "register", new_email()).status_code == 201
    check_limited(post(client_at("192.0.2.3"), "signup", new_email()), 60)
    assert post(client_at("192.0.2.4"), "register", new_email()).status_code == 201
    clock.forward(60)
    assert post(client_at("192.0.2.3"), "register", new_email()).status_code == 201


def test_failed_registrations_count(ann: Account) -> None:
    """Otherwise a client could find out which emails are taken."""
    for _ in range(9):
        check_error(post(ann.client, "register", ann.email), 409, "conflict")
    check_error(post(ann.client, "register", new_email()), 429, "too_many_requests")


CLIENTS = {
    "IPv6, the same /64": ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", 429),
    "IPv6, another /64": ("2001:db8:1:2::1", "2001:db8:1:3::1", 401),
    "IPv4, also in IPv6": ("::ffff:192.0.2.1", "192.0.2.1", 429),
    "IPv4 in IPv6, another": ("::ffff:192.0.2.1", "::ffff:192.0.2.2", 401),
}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("first", "second", "status"), CLIENTS.values(), ids=CLIENTS)
def test_client_is_an_ipv4_address_or_the_64_of_an_ipv6_one(first: str, second: str, status: int) -> None:
    for _ in range(10):
        guess(client_at(first), new_email(), 1)
    assert post(client_at(second), "login", new_email()).status_code == status


@pytest.mark.usefixtures("clock")
def test_good_login_is_uncounted_and_its_turn_free_before_its_response(
    ann: Account, fresh_limits: FixedWindowRateLimiter
) -> None:
    """Otherwise a client that reads slowly, or logs in again at once, would block others or itself."""
    counters = fresh_limits.storage.storage  # type: ignore[attr-defined]  # of the storage in memory
    counters.clear()
    seen: list[tuple[list[int], bool]] = []
    client = watched_client(lambda: seen.append((list(counters.values()), "/hashing" in turns.each_user)))
    assert post(client, "login", ann.email).status_code == 200
    assert seen == [([0, 0], False)]


@pytest.mark.usefixtures("clock")
def test_wrong_passwords_of_a_logged_in_client_count_as_failed_logins(ann: Account) -> None:
    bearer = ann.login()
    for _ in range(12):
        assert ann.change_password(bearer, PASSWORD, "short").status_code == 422
    for _ in range(3):
        check_error(ann.change_password(bearer, "wrong", "battery staple"), 401, "unauthorized")
        check_error(ann.delete(bearer, "wrong"), 401, "unauthorized")
    guess(ann.client, new_email(), 4)
    check_limited(ann.change_password(bearer, PASSWORD, "battery staple"), 60)
    check_limited(ann.delete(bearer), 60)
    check_limited(post(ann.client, "login", ann.email), 60)


@pytest.mark.usefixtures("clock")
def test_successful_login_does_not_reset_failures(ann: Account) -> None:
    """Otherwise a client could log in to its own account in between, and never be limited."""
    for _ in range(9):
        guess(ann.client, new_email(), 1)
        ann.login()
    guess(ann.client, new_email(), 1)
    check_limited(post(ann.client, "login", ann.email), 60)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("path", ["register", "login"])
def test_invalid_requests_and_outages_do_not_count(
    ann: Account, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    down = Mock(side_effect=exc.OperationalError("SELECT", {}, Exception("down")))
    with monkeypatch.context() as patch:
        patch.setattr(accounts, "password_matches", down)
        patch.setattr(accounts, "hash_password", down)
        for _ in range(12):
            check_error(post(ann.client, path, "no email"), 422, "validation_error")
            check_unavailable(post(ann.client, path, ann.email if path == "login" else new_email()))
    assert post(ann.client, "login", ann.email).status_code == 200
    assert post(ann.client, "register", new_email()).status_code == 201


def test_login_that_ends_in_the_next_window_changes_nothing_there(
    ann: Account, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_arguments: object) -> bool:
        clock.forward(61)
        return True

    client = client_at("192.0.2.1")
    with monkeypatch.context() as patch:
        patch.setattr(accounts, "password_matches", slow)
        assert post(client, "login", ann.email).status_code == 200
    guess(client, ann.email, 10)
    check_limited(post(client, "login", ann.email), 60)


@pytest.mark.usefixtures("clock", "patient")
def test_attempts_are_counted_before_they_wait_for_their_turn(
    ann: Account, fresh_limits: FixedWindowRateLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all others would wait behind a flood of guesses."""
    release = threading.Event()
    monkeypatch.setattr(accounts, "password_matches", lambda *_arguments: release.wait(10) and False)
    counters = fresh_limits.storage.storage  # type: ignore[attr-defined]  # of the storage in memory
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(post, ann.client, "login", ann.email) for _ in range(10)]
        try:
            until(lambda: list(counters.values()).count(10) == 2)  # for the client and for the account
            check_limited(post(ann.client, "login", ann.email), 60)
            assert not any(login.done() for login in waiting)
        finally:
            release.set()
        assert [login.result().status_code for login in waiting] == [401] * 10


def test_frozen_storage_is_a_503_for_logins_only(
    ann: Account, user: UserClient, fresh_limits: FixedWindowRateLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, hit = threading.Event(), fresh_limits.hit

    def frozen(*arguments: Any, **options: Any) -> bool:
        release.wait(10)
        return hit(*arguments, **options)

    monkeypatch.setattr(fresh_limits, "hit", frozen)
    monkeypatch.setattr(guesses, "LONGEST_WAIT", 0.5)
    with ThreadPoolExecutor(60) as pool:
        logins = [pool.submit(post, ann.client, "login", ann.email) for _ in range(60)]
        try:
            until(lambda: sum(login.done() for login in logins) == 50)
            assert user("GET").status_code == 200
            assert not release.is_set()
        finally:
            release.set()
        responses = [login.result() for login in logins]
    assert Counter(response.status_code for response in responses) == {503: 50, 200: 10}
    for response in responses:
        if response.status_code == 503:
            check_unavailable(response)


def test_storage_that_is_down_is_a_503(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    class Down(MemoryStorage):
        def incr(self, *_arguments: object, **_options: object) -> int:
            raise ConnectionError("no route to the storage")

        @property
        def base_exceptions(self) -> type[Exception]:
            return ConnectionError

    monkeypatch.setattr("limits.storage.storage_from_string", lambda _uri, **options: Down(**options))
    monkeypatch.setattr(settings, "rate_limit_storage", limiter("memory://"))
    response = post(client, "login", new_email())
    check_unavailable(response)
    assert "storage" not in response.text
