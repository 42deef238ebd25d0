"""What a real server exports through OpenTelemetry, to a collector on this machine: see docs/deploy.md."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from hardening.settings import ROOT
from tests.support.environment import ORIGIN, SECRET
from tests.support.server import Server, serving

pytestmark = pytest.mark.slow

EMAIL, PASSWORD = "hortensia@example.com", "geranium-geranium"
TASK = {"title": "chrysanthemum", "description": "begonia"}
FAILING_ENDPOINT = """
@app.post("/failing")
def failing(task: dict[str, str]) -> None:
    raise RuntimeError(task["title"])
"""


class Collector(ThreadingHTTPServer):
    """Receives OTLP's binary format, in which text is readable."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.received: dict[str, bytes] = {}


class CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received[self.path] = self.server.received.get(self.path, b"") + body
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    if not os.environ.get("CI"):
        needed = "opentelemetry.exporter.otlp.proto.http"
        pytest.importorskip(needed, reason="needs OpenTelemetry's exporter: pip install --group dev")
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def use(server: Server, clone: Path) -> list[str]:
    """Requests of all kinds, also failing ones; returns their tokens."""
    with httpx2.Client(base_url=server.url, trust_env=False, timeout=30) as client:

        def call(
            expected: int, method: str, path: str, body: object = None, token: str = "none"
        ) -> httpx2.Response:
            headers = {"Origin": ORIGIN, "Authorization": f"Bearer {token}"}
            response = client.request(method, path, json=body, headers=headers)
            assert response.status_code == expected, response.text
            return response

        account = {"email": EMAIL, "password": PASSWORD}
        registered = call(201, "POST", "/api/auth/register", account).json()["access_token"]
        call(409, "POST", "/api/auth/register", account)
        call(401, "POST", "/api/auth/login", account | {"password": f"wrong {PASSWORD}"})
        call(422, "POST", "/api/auth/login", account | {"email": f"{EMAIL} {EMAIL}"})
        token = call(200, "POST", "/api/auth/login", account).json()["access_token"]
        tasks = f"/api/{call(200, 'GET', '/api/auth/me', token=token).json()['id']}/tasks"
        call(201, "POST", tasks, TASK, token)
        call(200, "GET", f"{tasks}?search={TASK['title']}", token=token)
        call(422, "GET", f"{tasks}?completed={TASK['title']}", token=token)
        call(422, "POST", tasks, {"title": [TASK["title"]]}, token)
        call(401, "GET", f"{tasks}?search={TASK['title']}", token=f"{token}x")
        preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
        assert client.options(f"{tasks}?search={TASK['title']}", headers=preflight).status_code == 200
        call(500, "POST", "/failing", TASK)
        with closing(sqlite3.connect(clone / "todo.db")) as database:
            database.execute("ALTER TABLE tasks RENAME COLUMN description TO forgotten")
        call(500, "POST", tasks, TASK, token)
    return [registered, token]


def test_exported_data_has_no_user_data(clone: Path, collector: Collector) -> None:
    with (clone / "main.py").open("a", encoding="utf-8") as main:
        main.write(FAILING_ENDPOINT)
    deploy = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w*OTEL_\w+)=(.+)$", deploy, re.MULTILINE))
    variables |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "BETTER_AUTH_SECRET": SECRET}
    with serving(clone, **variables) as server:
        tokens = use(server, clone)
        server.end()  # which exports the rest
    assert set(collector.received) == {"/v1/traces", "/v1/metrics"}
    traces, metrics = collector.received["/v1/traces"], collector.received["/v1/metrics"]
    for name in (b"POST /api/{user_id}/tasks", b"POST /failing", b"routes.tasks.create_task", b"error.type"):
        assert name in traces
    assert b"http.server.request.duration" in metrics
    hidden = ["hortensia", "geranium", *TASK.values(), *tokens, SECRET, "INSERT", "SELECT"]
    assert [text for text in hidden if text.encode() in traces + metrics] == []


def test_nothing_is_exported_by_default(clone: Path, collector: Collector) -> None:
    with serving(clone, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as server:
        server.get("/")
        server.end()
    assert collector.received == {}
