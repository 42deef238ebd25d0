"""The database fails in every way there is, under load, and the API lives through all of it.

One server of the API serves all of these tests: none may need a restart, and none may leave anything behind.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, exc

from hardening.parsing import parse_database
from tests.conftest import check_unavailable, until
from tests.faults.conftest import MOST_SECONDS, Cluster, Load, Service, load, service, timed
from tests.support.wire import Wire

pytestmark = pytest.mark.slow

KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"


@pytest.fixture(scope="module")
def survivor(cluster: Cluster, wire: Wire) -> Iterator[Service]:
    with service(cluster.database(wire.port)) as api:
        yield api


@pytest.fixture(scope="module", autouse=True)
def at_first(survivor: Service) -> tuple[int, int]:
    """Its threads and its memory, once it has had some work."""
    with load(survivor):
        pass
    return survivor.figure("Threads"), survivor.figure("VmRSS")


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
def test_restarted_database(cluster: Cluster, survivor: Service, mode: str) -> None:
    with load(survivor) as going:
        cluster.stop(mode)
        cluster.start()
        resumed(going)


Outage = Callable[[Cluster, Wire], Iterator[None]]


def stopped(cluster: Cluster, _wire: Wire) -> Iterator[None]:
    cluster.stop()
    try:
        yield
    finally:
        cluster.start()


def frozen(cluster: Cluster, _wire: Wire | None) -> Iterator[None]:
    cluster.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.signal(signal.SIGCONT)


def cut(_cluster: Cluster, wire: Wire) -> Iterator[None]:
    wire.cut()
    try:
        yield
    finally:
        wire.mend()


def hanging(_cluster: Cluster, wire: Wire) -> Iterator[None]:
    wire.flowing.clear()
    try:
        yield
    finally:
        wire.flowing.set()


def out_of_connections(cluster: Cluster, _wire: Wire) -> Iterator[None]:
    """The server has none left for us, and closes those that we have."""
    cluster.sql("ALTER ROLE app CONNECTION LIMIT 0")
    try:
        until(lambda: not cluster.sql(KILL))
        yield
    finally:
        cluster.sql("ALTER ROLE app CONNECTION LIMIT -1")


@pytest.mark.parametrize(
    ("outage", "seconds"), [(stopped, 3), (frozen, 8), (cut, 2), (hanging, 6), (out_of_connections, 2)]
)
def test_database_outage(
    cluster: Cluster, wire: Wire, survivor: Service, outage: Outage, seconds: float
) -> None:
    with load(survivor) as going:
        with contextmanager(outage)(cluster, wire):
            until(lambda: survivor.health() == 503)  # its response may be a second old
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                response, waited = timed(going.user, "GET")
                check_unavailable(response)
                assert waited < MOST_SECONDS
                status, waited = timed(survivor.health)
                assert status == 503
                assert waited < 3
                time.sleep(0.1)
        resumed(going)


def test_connecting_to_a_frozen_server_times_out_after_five_seconds(cluster: Cluster) -> None:
    engine = create_engine(parse_database(cluster.database()))
    with contextmanager(frozen)(cluster, None):
        began = time.monotonic()
        with pytest.raises(exc.OperationalError, match="timeout expired"):
            engine.connect()
        assert time.monotonic() - began < 7
    engine.connect().close()
    engine.dispose()


def test_outages_leave_nothing_behind(survivor: Service, at_first: tuple[int, int]) -> None:
    threads, memory = at_first
    user = survivor.user()
    # A thread that has been idle for ten seconds ends when another one is needed.
    until(lambda: user.titles() == [] and survivor.figure("Threads") <= threads + 2, 40)
    assert survivor.figure("VmRSS") <= memory + 20 * 1024
    assert "Traceback" not in survivor.log.read_text(encoding="utf-8")
