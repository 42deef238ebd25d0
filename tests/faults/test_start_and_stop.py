"""Many workers that start at once, and servers that get SIGTERM during requests."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.conftest import until
from tests.faults.conftest import Cluster, Service, at_once, connect, service, wire_to

pytestmark = pytest.mark.slow


def started(api: Service) -> int:
    return api.log.read_text(encoding="utf-8").count("Application startup complete")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_eight_workers_start_on_an_empty_database(cluster: Cluster, kind: str) -> None:
    url = "sqlite:///todo.db" if kind == "sqlite" else cluster.database()
    with service(url, "--workers", "8") as api:
        until(lambda: started(api) == 8, 30)
        log = api.log.read_text(encoding="utf-8")
        assert "ERROR" not in log
        assert "Traceback" not in log
        api.user().create()


def test_start_waits_for_the_migration_of_another_process(cluster: Cluster) -> None:
    """Without a time limit: those are for requests."""
    url = cluster.database()

    def start_and_stop() -> None:
        with service(url):
            pass

    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with closing(connect(url)) as other, ThreadPoolExecutor(1) as pool:
        other.cursor().execute("SELECT pg_advisory_lock(7061746)")
        start = pool.submit(start_and_stop)
        until(lambda: cluster.sql(waits), 30)
        time.sleep(6)
        assert not start.done()
        other.cursor().execute("SELECT pg_advisory_unlock(7061746)")
        start.result()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_lets_running_requests_finish(cluster: Cluster, workers: str) -> None:
    with wire_to(cluster.port) as wire, service(cluster.database(wire.port), "--workers", workers) as api:
        until(lambda: started(api) == int(workers))
        user = api.user()
        at_once(10, lambda _: user("GET"))  # so that there are connections
        wire.delay = 0.5
        before = wire.trips
        with ThreadPoolExecutor(1) as pool:
            codes = pool.submit(at_once, 10, lambda _: user("POST", json={"title": "x"}).status_code)
            until(lambda: wire.trips >= before + 10)  # all have sent their statement
            api.server.process.send_signal(signal.SIGTERM)
            assert codes.result() == [201] * 10
        # uvicorn ends as SIGTERM would have ended it; with several workers, its supervisor just ends.
        assert api.server.process.wait(10) in (0, -signal.SIGTERM)
