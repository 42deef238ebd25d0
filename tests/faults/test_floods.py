"""Very many clients, and clients that send and read slowly."""

import itertools
import resource
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import UserClient, check_unavailable, until
from tests.faults.conftest import MOST_SECONDS, Cluster, Service, at_once, connect, probing, service, timed
from tests.support.wire import Wire

pytestmark = pytest.mark.slow

MOST_MEMORY = 100 * 1024  # KiB that 500 clients may add


@pytest.fixture(scope="module")
def flooded(cluster: Cluster, wire: Wire) -> Iterator[Service]:
    with service(cluster.database(wire.port)) as api:
        yield api


@contextmanager
def distant_database(wire: Wire, seconds: float) -> Iterator[None]:
    """A round trip takes this long."""
    wire.delay = seconds / 2
    try:
        yield
    finally:
        wire.delay = 0


def test_500_clients_and_a_slow_database(flooded: Service, wire: Wire) -> None:
    flooded.user().create()
    memory = flooded.figure("VmRSS")

    def client(_number: int) -> list[Any]:
        user = flooded.user()
        return [user("POST", json={"title": "x"}), user("GET", "?limit=5")]

    with distant_database(wire, 0.02), probing(f"{flooded.server.url}/health") as waited:
        responses = at_once(500, client)
    served = [[created.status_code, listed.status_code] == [201, 200] for created, listed in responses]
    assert sum(served) >= 450  # on a busy machine, some may have timed out
    for response in itertools.chain.from_iterable(responses):
        if response.status_code not in (200, 201):
            check_unavailable(response)
    assert max(waited) < 4
    assert flooded.figure("VmRSS") < memory + MOST_MEMORY
    assert "Traceback" not in flooded.log.read_text(encoding="utf-8")


def test_health_among_300_anonymous_clients(flooded: Service, wire: Wire) -> None:
    def client(_number: int) -> set[int]:
        return {flooded.health() for _ in range(5)}

    with distant_database(wire, 0.02), probing(f"{flooded.server.url}/health") as waited:
        statuses = set().union(*at_once(300, client))
    assert statuses == {200}
    assert max(waited) < 2


def test_login_flood_of_one_client(flooded: Service) -> None:
    """Most are refused at once, and no other client waits for them."""
    other = {"email": "ann@example.com", "password": "correct horse"}
    guess = {"email": "ben@example.com", "password": "battery staple"}
    assert flooded.client.post("/api/auth/register", json=other).status_code == 201

    def log_in(number: int) -> tuple[Any, float]:
        account, host = (other, "192.0.2.2") if number == 500 else (guess, "192.0.2.1")
        # uvicorn trusts this header from this machine.
        headers = {"X-Forwarded-For": host}
        return timed(flooded.client.post, "/api/auth/login", json=account, headers=headers)

    *flood, (response, seconds) = at_once(501, log_in)
    assert response.status_code == 200
    assert seconds < 5
    assert Counter(response.status_code for response, _ in flood) == {401: 10, 429: 490}


def test_login_flood_from_many_networks(flooded: Service) -> None:
    """More than can be hashed in five seconds: requests for tasks go on, and logins work right afterwards."""
    ann = {"email": "ann.many@example.com", "password": "correct horse"}
    assert flooded.client.post("/api/auth/register", json=ann).status_code == 201
    user = flooded.user()
    user.create()

    def log_in(number: int) -> tuple[int, float]:
        guess = {"email": f"{number}@example.com", "password": "battery staple"}
        headers = {"X-Forwarded-For": f"2001:db8:0:{number:x}::1"}
        response, seconds = timed(flooded.client.post, "/api/auth/login", json=guess, headers=headers)
        if response.status_code != 401:
            check_unavailable(response)
        return response.status_code, seconds

    with ThreadPoolExecutor(1) as pool:
        flood = pool.submit(at_once, 400, log_in)
        waited = []
        while not flood.done():
            response, seconds = timed(user, "GET")
            assert response.status_code == 200
            waited.append(seconds)
        results = flood.result()
    assert statistics.median(waited) < 1
    assert 401 in {status for status, _ in results}
    assert max(seconds for _, seconds in results) < MOST_SECONDS
    assert flooded.client.post("/api/auth/login", json=ann).status_code == 200


@contextmanager
def file_descriptors_left(service: Service, count: int) -> Iterator[None]:
    """The server can open only this many more files or sockets."""
    pid = service.server.process.pid
    used = {int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()}
    first_free = itertools.islice((number for number in itertools.count() if number not in used), count, None)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(first_free), before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("left", [0, 1], ids=["none", "one, for a connection that needs two"])
def test_no_file_descriptors_for_connections_to_the_database(cluster: Cluster, left: int) -> None:
    url = cluster.database()
    with service(url) as api, ExitStack() as stack:
        users = [api.user() for _ in range(6)]
        for user in users:
            limits = httpx2.Limits(keepalive_expiry=60)
            client = httpx2.Client(base_url=api.server.url, timeout=60, limits=limits)
            user.client = stack.enter_context(client)  # type: ignore[assignment]  # see Service.user
            assert user.titles() == []
        with closing(connect(url)) as other, ThreadPoolExecutor(6) as pool:
            other.cursor().execute("BEGIN; LOCK TABLE tasks")  # so that each request needs a connection
            with file_descriptors_left(api, left):
                requests = [pool.submit(user, "GET") for user in users]
                until(lambda: sum(request.done() for request in requests) == 5)
                other.cursor().execute("ROLLBACK")
                responses = sorted((request.result() for request in requests), key=lambda it: it.status_code)
        assert responses[0].status_code == 200  # over the one open connection
        for response in responses[1:]:
            check_unavailable(response)
        assert [user.titles() for user in users] == [[]] * 6
        assert "Traceback" not in api.log.read_text(encoding="utf-8")


def slow_client(
    api: Service, user: UserClient, method: str, query: str, length: int, start: str
) -> socket.socket:
    """A client that sends the start of a request's body, and then neither sends nor reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(api.address)
    head = [
        f"{method} {user.path}{query} HTTP/1.1",
        "Host: x",
        f"Authorization: {user.headers['Authorization']}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    client.sendall("\r\n".join([*head, "", start]).encode())
    return client


def test_slow_clients_block_no_others(flooded: Service) -> None:
    """Neither those of the same user nor those of many users."""
    user = flooded.user()
    at_once(10, lambda _: [user.create("x" * 200, description="x" * 1000) for _ in range(50)])
    with ExitStack() as stack:
        for sender in [user] * 40 + [flooded.user() for _ in range(20)]:
            stack.enter_context(slow_client(flooded, sender, "POST", "", 500, '{"tit'))
            stack.enter_context(slow_client(flooded, user, "GET", "?limit=1000", 0, ""))
        began = time.monotonic()
        for _ in range(20):
            user.create("quick")
            assert flooded.health() == 200
        assert time.monotonic() - began < 10
