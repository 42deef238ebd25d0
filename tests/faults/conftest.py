"""What the fault tests share: PostgreSQL servers that fail, and real servers of the API under load."""

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psycopg2
import pytest

from tests.conftest import UserClient, check_unavailable, until
from tests.support.environment import SECRET
from tests.support.server import Server, copy_project, free_port
from tests.support.wire import Wire

BINARIES = os.pathsep.join(
    [os.environ["PATH"], "/usr/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
)
# PostgreSQL and PgBouncer refuse to run as root.
UNPRIVILEGED = ["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []
SETTINGS = {"listen_addresses": "127.0.0.1", "max_connections": "60", "fsync": "off"}
MOST_SECONDS = 12.0  # the longest that a client waits, whatever the database does


def binary(name: str) -> str:
    path = shutil.which(name, path=BINARIES)
    if path is None:
        assert "CI" not in os.environ, f"CI must install {name}"
        pytest.skip(f"needs {name}, which is not installed here")
    return path


def folder_of_postgres() -> Path:
    folder = Path(tempfile.mkdtemp())
    if UNPRIVILEGED:
        shutil.chown(folder, "postgres")
    return folder


def run(*command: object) -> None:
    arguments = [*UNPRIVILEGED, *map(str, command)]
    subprocess.run(arguments, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def connect(url: str) -> Any:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def query(url: str, statement: str) -> list[Any]:
    with closing(connect(url)) as connection:
        cursor = connection.cursor()
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


class Cluster:
    """A PostgreSQL server for the tests, and how it fails."""

    def __init__(self, primary: "Cluster | None" = None, **settings: str) -> None:
        self.folder = folder_of_postgres()
        self.data = self.folder / "data"
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        settings = SETTINGS | {"unix_socket_directories": str(self.folder)} | settings
        self.options = " ".join(["-p", str(self.port), *(f"-c {k}={v}" for k, v in settings.items())])
        self.pg_ctl = binary("pg_ctl")
        if primary:  # a standby of it, not yet started
            run(binary("pg_basebackup"), "-D", self.data, "-R", "-c", "fast", "-d", primary.url)
        else:
            options = ["-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale=C.UTF-8"]
            run(binary("initdb"), "-D", self.data, *options)

    def start(self) -> None:
        run(self.pg_ctl, "-D", self.data, "-w", "-l", self.folder / "log", "-o", self.options, "start")

    def stop(self, mode: str = "fast") -> None:
        run(self.pg_ctl, "-D", self.data, "-w", "-m", mode, "stop")

    def end(self) -> None:
        with suppress(subprocess.CalledProcessError):  # a test may have killed it
            self.stop("immediate")
        shutil.rmtree(self.folder)

    def signal(self, number: int) -> None:
        """To the postmaster first, so that it does not react when the others get it."""
        postmaster = (self.data / "postmaster.pid").read_text(encoding="utf-8").split()[0]
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True)
        pairs = [line.split() for line in listed.stdout.splitlines()]
        for pid in [postmaster, *(pid for pid, parent in pairs if parent == postmaster)]:
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)

    def sql(self, statement: str) -> list[Any]:
        return query(self.url, statement)

    def database(self, port: int | None = None) -> str:
        """The URL of an empty database, whose owner is no superuser."""
        name = f"todo_{uuid.uuid4().hex[:8]}"
        self.sql(f"CREATE DATABASE {name} OWNER app")
        return f"postgresql://app@127.0.0.1:{port or self.port}/{name}"


@contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    with running(Cluster()) as cluster:
        cluster.sql("CREATE ROLE app LOGIN")
        yield cluster


@contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    wire = Wire("127.0.0.1", port)
    try:
        yield wire
    finally:
        wire.cut()


@pytest.fixture(scope="module")
def wire(cluster: Cluster) -> Iterator[Wire]:
    with wire_to(cluster.port) as wire:
        yield wire


def timed(send: Callable[..., Any], *request: Any, **options: Any) -> tuple[Any, float]:
    """The response, and the seconds that it took."""
    began = time.monotonic()
    response = send(*request, **options)
    return response, time.monotonic() - began


PROBE = """
import sys, time, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": sys.argv[2]})
end = time.monotonic() + 5
while time.monotonic() < end:
    began = time.monotonic()
    urllib.request.urlopen(request, timeout=30).close()
    print(time.monotonic() - began)
"""


@contextmanager
def probing(url: str, authorization: str = "none") -> Iterator[list[float]]:
    """For five seconds, requests from a process of its own, which the clients in this one do not slow down.

    After the block, the list has the seconds that each took.
    """
    waited: list[float] = []
    command = [sys.executable, "-c", PROBE, url, authorization]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield waited
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    waited.extend(map(float, output.split()))


class Service:
    """A real server of the API, and its users."""

    def __init__(self, server: Server, log: Path) -> None:
        self.server, self.log = server, log
        limits = httpx2.Limits(max_connections=None, keepalive_expiry=2)
        self.client = httpx2.Client(base_url=server.url, timeout=60, limits=limits)

    @property
    def address(self) -> tuple[str | None, int | None]:
        url = urlsplit(self.server.url)
        return url.hostname, url.port

    def user(self, user_id: str | None = None) -> UserClient:
        return UserClient(self.client, user_id or uuid.uuid4().hex)  # type: ignore[arg-type]  # it needs no more

    def health(self) -> int:
        response = self.client.get("/health")
        if response.status_code != 200:
            check_unavailable(response)
        return int(response.status_code)

    def figure(self, name: str) -> int:
        """Threads, or VmRSS in KiB."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


@contextmanager
def service(url: str, *arguments: str, environment: str = "development", **more: str) -> Iterator[Service]:
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w") as log:

        class Logged(Server):
            stdout = log  # a full pipe would block it

        clone = copy_project(Path(folder))
        variables = {"DATABASE_URL": url, "BETTER_AUTH_SECRET": SECRET, "ENVIRONMENT": environment, **more}
        server = Logged(clone, "--no-access-log", "--timeout-keep-alive", "60", *arguments, **variables)
        it = Service(server, clone / "log")
        try:
            server.wait()
            yield it
        finally:
            it.client.close()
            server.process.terminate()  # not killed, which its workers would survive
            try:
                server.process.wait(20)
            finally:
                server.process.kill()


def at_once(count: int, action: Callable[[int], Any]) -> list[Any]:
    """This many clients do it at the same moment."""
    barrier = threading.Barrier(count)

    def together(number: int) -> Any:
        barrier.wait()
        return action(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(together, range(count)))


class Load:
    """Clients that create and list tasks, and record the responses."""

    def __init__(self, service: Service, clients: int = 4) -> None:
        self.user = service.user()
        self.created: set[int] = set()
        self.responses: list[Any] = []
        self.slowest = 0.0
        self.going = True
        self.pool = ThreadPoolExecutor(clients)
        self.clients = [self.pool.submit(self.work) for _ in range(clients)]

    def work(self) -> None:
        while self.going:
            for method, options in (("POST", {"json": {"title": "x"}}), ("GET", {"params": {"limit": 5}})):
                response, seconds = timed(self.user, method, **options)
                self.slowest = max(self.slowest, seconds)
                self.responses.append(response)
                if response.status_code == 201:
                    self.created.add(response.json()["id"])

    def stop(self) -> None:
        self.going = False
        self.pool.shutdown()

    def check(self) -> None:
        """No task that got a 201 is lost, and no response was wrong or late."""
        for client in self.clients:
            client.result()
        for response in self.responses:
            if response.status_code not in (200, 201):
                check_unavailable(response)
        assert self.slowest < MOST_SECONDS
        kept: set[int] = set()
        while page := self.user("GET", f"?limit=1000&skip={len(kept)}&sort=created_at").json():
            kept |= {task["id"] for task in page}
        assert self.created <= kept


@contextmanager
def load(service: Service) -> Iterator[Load]:
    """Clients send requests during the block; after it, all works again and no task is lost."""
    load = Load(service)
    try:
        until(lambda: len(load.created) > 20)
        yield load
        until(lambda: service.health() == 200)
        recovered = [load.user("GET") for _ in range(10)] + [load.user("POST", json={"title": "x"})]
        assert {response.status_code for response in recovered} == {200, 201}
    finally:
        load.stop()
    load.check()
