"""The database fails in many ways, under load, and the API recovers each time.

All of these tests use one server of the API: none may need a restart, or leave threads or memory behind.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

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
    """Its threads and its memory after the first requests."""
    with load(survivor):
        pass
    return survivor.figure("Threads"), survivor.figure("VmRSS")


def resumed(load: Load) -> None:
    """New tasks are created."""
    before = len(load.created)
    until(lambda: len(load.created) > before + 10)


def test_killed_backends(cluster: Cluster, survivor: Service) -> None:
    with load(survivor) as clients:
        for _ in range(5):
            assert cluster.sql(KILL)
            resumed(clients)


def test_crashed_and_restarted_database(cluster: Cluster, survivor: Service) -> None:
    with load(survivor) as clients:
        cluster.stop("immediate")
        cluster.start()
        resumed(clients)


def stopped(cluster: Cluster, _wire: Wire, stack: ExitStack) -> None:
    stack.callback(cluster.start)
    cluster.stop()


def frozen(cluster: Cluster, _wire: Wire, stack: ExitStack) -> None:
    stack.callback(cluster.signal, signal.SIGCONT)
    cluster.signal(signal.SIGSTOP)


def cut(_cluster: Cluster, wire: Wire, stack: ExitStack) -> None:
    stack.callback(wire.mend)
    wire.cut()


def silent(_cluster: Cluster, wire: Wire, stack: ExitStack) -> None:
    stack.callback(wire.flowing.set)
    wire.flowing.clear()


def out_of_connections(cluster: Cluster, _wire: Wire, stack: ExitStack) -> None:
    """The server accepts no new ones, and closes the open ones."""
    stack.callback(cluster.sql, "ALTER ROLE app CONNECTION LIMIT -1")
    cluster.sql("ALTER ROLE app CONNECTION LIMIT 0")
    until(lambda: not cluster.sql(KILL))


@pytest.mark.parametrize(
    ("fail", "seconds"), [(stopped, 3), (frozen, 8), (cut, 2), (silent, 6), (out_of_connections, 2)]
)
def test_database_outage(
    cluster: Cluster,
    wire: Wire,
    survivor: Service,
    fail: Callable[[Cluster, Wire, ExitStack], None],
    seconds: float,
) -> None:
    with load(survivor) as clients:
        with ExitStack() as stack:
            fail(cluster, wire, stack)
            until(lambda: survivor.health() == 503)  # its response may be a second old
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                response, waited = timed(clients.user, "GET")
                check_unavailable(response)
                assert waited < MOST_SECONDS
                status, waited = timed(survivor.health)
                assert status == 503
                assert waited < 3
                time.sleep(0.1)
        resumed(clients)


def test_outages_leave_nothing_behind(survivor: Service, at_first: tuple[int, int]) -> None:
    threads, memory = at_first
    user = survivor.user()
    # A thread that has been idle for ten seconds ends when another one is needed.
    until(lambda: user.titles() == [] and survivor.figure("Threads") <= threads + 2, 40)
    assert survivor.figure("VmRSS") <= memory + 20 * 1024
    assert "Traceback" not in survivor.log.read_text(encoding="utf-8")
