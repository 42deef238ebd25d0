"""The database fails in every way there is, under load, and the server lives through all of it.

It is one server for all of these tests: none may need a restart, and none may leave anything behind.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.faults.conftest import MOST_SECONDS, Cluster, Load, Service, check_503, service, until
from tests.wire import Wire

KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"


@pytest.fixture(scope="module")
def survivor(cluster: Cluster, wire: Wire) -> Iterator[Service]:
    with service(cluster.database(wire.port)) as it:
        yield it


@pytest.fixture(scope="module", autouse=True)
def at_first(survivor: Service) -> tuple[int, int]:
    """Its threads and its memory, once it has had some work."""
    with load(survivor):
        pass
    return survivor.figure("Threads"), survivor.figure("VmRSS")


@contextmanager
def load(service: Service) -> Iterator[Load]:
    load = Load(service)
    try:
        until(lambda: len(load.made) > 20)
        yield load
        until(lambda: service.health() == 200)
        recovered = [load.user("GET") for _ in range(10)] + [load.user("POST", json={"title": "x"})]
        assert {answer.status_code for answer in recovered} == {200, 201}
    finally:
        load.stop()
    load.check()


def resumed(load: Load) -> None:
    """More tasks are made than before."""
    before = len(load.made)
    until(lambda: len(load.made) > before + 10)


def test_killed_backends(cluster: Cluster, survivor: Service) -> None:
    with load(survivor) as going:
        for _ in range(5):
            assert cluster.sql(KILL)
            resumed(going)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart(cluster: Cluster, survivor: Service, mode: str) -> None:
    with load(survivor) as going:
        cluster.stop(mode)
        cluster.start()
        resumed(going)


Absence = Callable[[Cluster, Wire], Iterator[None]]


def stopped(cluster: Cluster, _wire: Wire) -> Iterator[None]:
    cluster.stop()
    yield
    cluster.start()


def frozen(cluster: Cluster, _wire: Wire) -> Iterator[None]:
    cluster.signal(signal.SIGSTOP)
    yield
    cluster.signal(signal.SIGCONT)


def cut(_cluster: Cluster, wire: Wire) -> Iterator[None]:
    wire.cut()
    yield
    wire.mend()


def hanging(_cluster: Cluster, wire: Wire) -> Iterator[None]:
    wire.flowing.clear()
    yield
    wire.flowing.set()


def out_of_connections(cluster: Cluster, _wire: Wire) -> Iterator[None]:
    """The server has none left for us, and closes those that we have."""
    cluster.sql("ALTER ROLE app CONNECTION LIMIT 0")
    until(lambda: not cluster.sql(KILL))
    yield
    cluster.sql("ALTER ROLE app CONNECTION LIMIT -1")


@pytest.mark.parametrize(
    ("absence", "seconds"), [(stopped, 3), (frozen, 8), (cut, 2), (hanging, 6), (out_of_connections, 2)]
)
def test_an_absence(
    cluster: Cluster, wire: Wire, survivor: Service, absence: Absence, seconds: float
) -> None:
    with load(survivor) as going:
        with contextmanager(absence)(cluster, wire):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                assert survivor.health() == 503
                check_503(going.user("GET"))
                assert time.monotonic() - began < MOST_SECONDS
                time.sleep(0.1)
        resumed(going)


def test_nothing_is_left_behind(survivor: Service, at_first: tuple[int, int]) -> None:
    threads, memory = at_first
    assert survivor.figure("Threads") <= threads + 2
    assert survivor.figure("VmRSS") <= memory + 20 * 1024
    assert "Traceback" not in survivor.log.read_text()
