"""More clients than anybody asked for, and clients who take their time."""

import itertools
import json
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.conftest import UserClient, check_unavailable, token, until
from tests.faults.conftest import MOST_SECONDS, Cluster, Service, at_once, service, timed
from tests.support.environment import SECRET
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


PROBE = """
import sys, time, urllib.request
end = time.monotonic() + 4
while time.monotonic() < end:
    began = time.monotonic()
    urllib.request.urlopen(sys.argv[1], timeout=30).close()
    print(time.monotonic() - began)
"""


def test_500_clients_and_a_slow_database(flooded: Service, wire: Wire) -> None:
    flooded.user().create()
    memory = flooded.figure("VmRSS")

    def client(_number: int) -> list[Any]:
        user = flooded.user()
        return [user("POST", json={"title": "x"}), user("GET", "?limit=5")]

    # The probe is a process of its own: in this one, 500 threads would hold it up.
    command = [sys.executable, "-c", PROBE, f"{flooded.server.url}/health"]
    with distant_database(wire, 0.02), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as probe:
        responses = at_once(500, client)
        waited, _ = probe.communicate(timeout=60)
    served = [[made.status_code, listed.status_code] == [201, 200] for made, listed in responses]
    assert sum(served) >= 450  # on a machine that is busy too, some may have waited for five seconds
    for response in itertools.chain.from_iterable(responses):
        if response.status_code not in (200, 201):
            check_unavailable(response)
    assert statistics.median(map(float, waited.split())) < 1
    assert flooded.figure("VmRSS") < memory + MOST_MEMORY
    assert "Traceback" not in flooded.log.read_text(encoding="utf-8")


def host_and_port(service: Service) -> tuple[str | None, int | None]:
    url = urlsplit(service.server.url)
    return url.hostname, url.port


def ask_again_and_again(service: Service, clients: int, over: threading.Event) -> None:
    """So many clients who ask for /health, and once more as soon as they have a response."""
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:  # one thread for all of them, which leaves the processor to the server
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(clients):
            client = stack.enter_context(socket.create_connection(host_and_port(service)))
            selector.register(client, selectors.EVENT_READ, client)
            client.sendall(request)
        while not over.is_set():
            for ready, _ in selector.select(0.1):
                received = ready.data.recv(65536)
                assert received
                assert b"503" not in received
                if received.endswith(b"}"):
                    ready.data.sendall(request)


def test_health_probe_among_300_anonymous_clients(flooded: Service, wire: Wire) -> None:
    over, waited = threading.Event(), list[float]()
    with ThreadPoolExecutor(1) as pool, distant_database(wire, 0.02):
        flood = pool.submit(ask_again_and_again, flooded, 300, over)
        try:
            for _ in range(30):
                status, seconds = timed(flooded.health)
                assert status == 200
                waited.append(seconds)
        finally:
            over.set()
        flood.result()
    assert statistics.median(waited) < 1


def test_login_flood_of_one_client(flooded: Service) -> None:
    """Most are refused at once, and nobody else waits for a slot behind them."""
    other = {"email": "ann@example.com", "password": "correct horse"}
    guess = {"email": "ben@example.com", "password": "battery staple"}
    assert flooded.client.post("/api/auth/register", json=other).status_code == 201

    def log_in(number: int) -> tuple[Any, float]:
        account, host = (other, "192.0.2.2") if number == 500 else (guess, "192.0.2.1")
        # uvicorn believes this machine what it says about a client's address.
        headers = {"X-Forwarded-For": host}
        return timed(flooded.client.post, "/api/auth/login", json=account, headers=headers)

    *flood, (response, seconds) = at_once(501, log_in)
    assert response.status_code == 200
    assert seconds < 5
    assert Counter(response.status_code for response, _ in flood) == {401: 10, 429: 490}


def test_login_flood_from_many_networks(flooded: Service) -> None:
    """More than can be hashed in five seconds: tasks go on meanwhile, and logins work right afterwards."""
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
    """The server can open so many files or sockets, and no more."""
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
        with closing(cluster.connect("app", url.rpartition("/")[2])) as other, ThreadPoolExecutor(6) as pool:
            other.cursor().execute("BEGIN; LOCK TABLE tasks")  # so that each request needs a connection
            with file_descriptors_left(api, left):
                requests = [pool.submit(user, "GET") for user in users]
                until(lambda: sum(request.done() for request in requests) == 5)
                other.cursor().execute("ROLLBACK")
                responses = sorted((request.result() for request in requests), key=lambda it: it.status_code)
        assert responses[0].status_code == 200  # over the one connection that there was
        for response in responses[1:]:
            check_unavailable(response)
        assert [user.titles() for user in users] == [[]] * 6
        assert "Traceback" not in api.log.read_text(encoding="utf-8")


def slow_client(service: Service, request: str) -> socket.socket:
    """One who sends this much, and then neither sends nor reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(host_and_port(service))
    client.sendall(request.encode())
    return client


def head(user: UserClient, method: str, query: str, length: int = 0) -> str:
    lines = [
        f"{method} {user.path}{query} HTTP/1.1",
        "Host: x",
        f"Authorization: {user.headers['Authorization']}",
    ]
    lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""])


def test_slow_clients_block_nobody(flooded: Service) -> None:
    user = flooded.user()
    at_once(10, lambda _: [user.create("x" * 200, description="x" * 1000) for _ in range(50)])
    half = json.dumps({"title": "half"})[:5]
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(slow_client(flooded, head(user, "POST", "", 500) + half))
            stack.enter_context(slow_client(flooded, head(user, "GET", "?limit=1000")))
        began = time.monotonic()
        for _ in range(20):
            user.create("quick")
            assert flooded.health() == 200
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("signed_with", ["x" * 64, SECRET], ids=["junk tokens", "good tokens"])
def test_slow_senders_block_nobody(flooded: Service, signed_with: str) -> None:
    """Twenty, each with a token of its own: none of them has a turn while its body is on its way."""
    user = flooded.user()
    user.create()
    with ExitStack() as stack:
        for _ in range(20):
            sender = flooded.user()
            sender.headers = {"Authorization": f"Bearer {token(sender.user_id, signed_with)}"}
            stack.enter_context(slow_client(flooded, head(sender, "POST", "", 500) + '{"tit'))
        began = time.monotonic()
        for _ in range(20):
            user.create("quick")
            assert flooded.health() == 200
        assert time.monotonic() - began < 10
