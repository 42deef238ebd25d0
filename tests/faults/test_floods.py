"""More clients than anybody asked for, and clients who take their time."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.conftest import Caller
from tests.faults.conftest import Cluster, Service, at_once, service
from tests.wire import Wire

MOST_MEMORY = 100 * 1024  # KiB that 500 clients may add


@pytest.fixture(scope="module")
def flooded(cluster: Cluster, wire: Wire) -> Iterator[Service]:
    with service(cluster.database(wire.port)) as it:
        yield it


def test_a_flood_with_a_slow_database(flooded: Service, wire: Wire) -> None:
    user = flooded.user()
    user.make()
    memory = flooded.figure("VmRSS")
    over = threading.Event()
    waited: list[float] = []

    def ask_for_health() -> None:
        while not over.is_set():
            began = time.monotonic()
            assert flooded.health() == 200
            waited.append(time.monotonic() - began)

    def client(number: int) -> set[int]:
        if number == 500:
            ask_for_health()
            return set()
        return {user("POST", json={"title": "x"}).status_code, user("GET", "?limit=5").status_code}

    wire.delay = 0.025
    threading.Timer(2, over.set).start()
    codes = at_once(501, client)
    wire.delay = 0
    assert set.union(*codes) == {201, 200}
    assert max(waited) < 3
    assert flooded.figure("VmRSS") < memory + MOST_MEMORY
    assert "Traceback" not in flooded.log.read_text()


def slow_client(service: Service, request: str) -> socket.socket:
    """One who sends this much, and then neither sends nor reads."""
    address = urlsplit(service.server.url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((address.hostname, address.port))
    client.sendall(request.encode())
    return client


def head(user: Caller, method: str, query: str, length: int = 0) -> str:
    lines = [
        f"{method} {user.path}{query} HTTP/1.1",
        "Host: x",
        f"Authorization: {user.headers['Authorization']}",
    ]
    lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""])


def test_clients_who_take_their_time_hold_up_nobody(flooded: Service) -> None:
    user = flooded.user()
    at_once(10, lambda _: [user.make("x" * 200, description="x" * 1000) for _ in range(50)])
    half = json.dumps({"title": "half"})[:5]
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(slow_client(flooded, head(user, "POST", "", 500) + half))
            stack.enter_context(slow_client(flooded, head(user, "GET", "?limit=1000")))
        began = time.monotonic()
        for _ in range(20):
            user.make("quick")
            assert flooded.health() == 200
        assert time.monotonic() - began < 10
