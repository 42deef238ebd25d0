"""Redis, in which several machines count login attempts together."""

import operator
import os
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from limits import parse

from hardening.parsing import limiter
from hardening.settings import settings
from routes import accounts
from tests.conftest import check_error, until
from tests.faults.conftest import MOST_SECONDS, Cluster, Service, binary, probing, service, timed
from tests.support.accounts import Account, post
from tests.support.server import free_port

pytestmark = pytest.mark.slow


class Redis:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"redis://127.0.0.1:{self.port}"
        command = [binary("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)

    def accepts_connections(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    if "CI" not in os.environ:
        pytest.importorskip("redis", reason="needs redis: pip install --group dev")
    redis = Redis(tmp_path)
    try:
        until(redis.accepts_connections)
        yield redis
    finally:
        redis.process.kill()
        redis.process.wait()


def log_in_at_once(api: Service, count: int) -> list[bytes]:
    """Over plain sockets, which need no threads here; returns the beginning of each response."""
    body = b'{"email": "ann@example.com", "password": "not the password"}'
    head = f"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(api.address)) for _ in range(count)]
        for client in clients:
            client.sendall(head.encode() + body)
        return [client.recv(65536) for client in clients]


def test_800_logins_while_redis_is_frozen_block_nobody_else(cluster: Cluster, redis: Redis) -> None:
    with service(cluster.database(), RATE_LIMIT_STORAGE=redis.uri) as api:
        user = api.user()
        user.create()
        redis.process.send_signal(signal.SIGSTOP)
        with probing(api.server.url + user.path, user.headers["Authorization"]) as waited:
            responses, seconds = timed(log_in_at_once, api, 800)
        assert Counter(response.split()[1] for response in responses) == {b"503": 800}
        assert all(b"\r\nretry-after: 5\r\n" in response for response in responses)
        assert seconds < MOST_SECONDS
        assert max(waited) < 2
        assert "Traceback" not in api.log.read_text(encoding="utf-8")

        redis.process.send_signal(signal.SIGCONT)
        # From another client: the attempts of the first one may have been counted.
        headers = {"X-Forwarded-For": "192.0.2.1"}
        body = {"email": "ann@example.com", "password": "correct horse"}
        assert api.client.post("/api/auth/register", json=body, headers=headers).status_code == 201


@pytest.fixture
def ann(client: TestClient, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Account:
    """An account whose attempts are counted in Redis."""
    monkeypatch.setattr(accounts, "hash_password", str)
    monkeypatch.setattr(accounts, "password_matches", operator.eq)
    monkeypatch.setattr(settings, "rate_limit_storage", limiter(redis.uri))
    return Account(client)


def test_good_logins_do_not_count(ann: Account) -> None:
    for _ in range(12):
        ann.login()
    for _ in range(10):
        check_error(post(ann.client, "login", ann.email, "wrong"), 401, "unauthorized")
    check_error(post(ann.client, "login", ann.email), 429, "too_many_requests")


def test_login_that_ends_in_the_next_window_changes_nothing_there(
    ann: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "auth_rate_limit", parse("10/3 seconds"))
    storage = settings.rate_limit_storage.storage
    email_key = parse("100/3 seconds").key_for("login", "account", ann.email)

    def slow(*_arguments: Any) -> bool:
        assert storage.get(email_key) == 1
        until(lambda: storage.get(email_key) == 0)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(accounts, "password_matches", slow)
        assert post(ann.client, "login", ann.email).status_code == 200
    assert storage.get(email_key) == 0
