"""Several database servers in one DATABASE_URL: the first one fails, and another one takes over."""

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.conftest import until
from tests.faults.conftest import Cluster, load, run, running, service

pytestmark = pytest.mark.slow


@contextmanager
def primary_and_standby() -> Iterator[tuple[Cluster, Cluster]]:
    """The standby has each row that the primary committed."""
    with running(Cluster()) as primary:
        primary.sql("CREATE ROLE app LOGIN")
        with running(Cluster(primary)) as standby:
            primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
            primary.sql("SELECT pg_reload_conf()")
            until(lambda: primary.sql("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))
            yield primary, standby


def killed(primary: Cluster, _stack: ExitStack) -> None:
    primary.signal(signal.SIGKILL)


def without_power(primary: Cluster, stack: ExitStack) -> None:
    """Its address sends nothing, not even that no program listens there."""
    primary.signal(signal.SIGKILL)
    address = ("127.0.0.1", primary.port)

    def taken() -> bool:
        with suppress(OSError):  # its last process has not ended yet
            stack.enter_context(socket.create_server(address, backlog=0))
            return True
        return False

    until(taken)
    for _ in range(4):  # while a server accepts none of these, Linux keeps further ones from it
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(address)


def frozen(primary: Cluster, stack: ExitStack) -> None:
    """All of its processes stop, and none of its connections is closed."""
    primary.signal(signal.SIGSTOP)
    stack.callback(primary.signal, signal.SIGKILL)


@pytest.mark.parametrize("fail", [killed, without_power, frozen])
def test_failover_to_a_synchronous_standby(fail: Callable[[Cluster, ExitStack], None]) -> None:
    with primary_and_standby() as (primary, standby), ExitStack() as stack:
        host, _, name = primary.database().removeprefix("postgresql://app@").partition("/")
        hosts = f"{host},127.0.0.1:{standby.port}"
        with service(f"postgresql://app@{hosts}/{name}?target_session_attrs=read-write") as api:
            with load(api) as clients:
                fail(primary, stack)
                until(lambda: api.health() == 503)
                run(standby.pg_ctl, "-D", standby.data, "-w", "promote")
                before = len(clients.created)
                until(lambda: len(clients.created) > before + 10, 15)
            assert "Traceback" not in api.log.read_text(encoding="utf-8")
