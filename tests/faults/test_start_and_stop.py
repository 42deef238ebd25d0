"""Many workers that start at once, and servers that are told to stop while they work."""

import signal
import threading

import pytest

from tests.faults.conftest import Cluster, Service, at_once, service, until
from tests.wire import Wire

pytestmark = pytest.mark.slow


def started(api: Service) -> int:
    return api.log.read_text().count("Application startup complete")


@pytest.mark.parametrize(("kind", "times"), [("sqlite", 1), ("postgresql", 2)])
def test_eight_workers_start_on_an_empty_database(cluster: Cluster, kind: str, times: int) -> None:
    for _ in range(times):
        url = "sqlite:///todo.db" if kind == "sqlite" else cluster.database()
        with service(url, "--workers", "8") as api:
            until(lambda: started(api) == 8, 30)
            log = api.log.read_text()
            assert "ERROR" not in log
            assert "Traceback" not in log
            api.user().make()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_lets_running_requests_finish(cluster: Cluster, workers: str) -> None:
    wire = Wire("127.0.0.1", cluster.port)
    with service(cluster.database(wire.port), "--workers", workers) as api:
        until(lambda: started(api) == int(workers))
        user = api.user()
        codes: list[int] = []
        wire.delay = 0.5
        before = wire.trips
        clients = threading.Thread(
            target=lambda: codes.extend(at_once(10, lambda _: user("POST", json={"title": "x"}).status_code))
        )
        clients.start()
        until(lambda: wire.trips >= before + 10)  # all of them have come as far as the database
        api.server.process.send_signal(signal.SIGTERM)
        clients.join()
        assert codes == [201] * 10
        # uvicorn ends as SIGTERM would have ended it; with several workers, its supervisor just ends.
        assert api.server.process.wait(10) in (0, -signal.SIGTERM)
    wire.cut()
