"""What only a browser tells: /docs and /redoc as a user sees them, and CORS as Chromium enforces it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import token
from tests.support.browser import Browser, browsing
from tests.support.environment import SECRET
from tests.support.server import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def pages() -> Iterator[list[str]]:
    """The origins of two frontends, which have empty pages. The API is told of the first."""

    class Blank(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    frontends = [ThreadingHTTPServer(("127.0.0.1", 0), Blank) for _ in range(2)]
    threads = [threading.Thread(target=frontend.serve_forever) for frontend in frontends]
    for thread in threads:
        thread.start()
    yield [f"http://localhost:{frontend.server_port}" for frontend in frontends]
    for frontend, thread in zip(frontends, threads, strict=True):
        frontend.shutdown()
        frontend.server_close()
        thread.join()


class Docs:
    """The page /docs, and what a user does there."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        browser.open(f"{url}/docs")

    def send(self, operation: str, **fields: str) -> tuple[int, Any]:
        """Try an operation out, with the body that the page proposes; what the page shows of the response."""
        block = f"#operations-{operation} "
        if not self.browser.run("return !!document.querySelector(arguments[0])", f"{block}.opblock-body"):
            self.browser.click(f"{block}.opblock-summary-control")
            self.browser.click(f"{block}.try-out__btn")
        for name, value in fields.items():
            self.browser.paste(f"{block}tr[data-param-name={name}] input", value)
        shown = f"{block}.live-responses-table "
        if self.browser.run("return !!document.querySelector(arguments[0])", shown):
            self.browser.click(f"{block}.btn-clear")
        self.browser.click(f"{block}.execute")
        status = int(self.browser.text(f"{shown}tbody .response-col_status").split()[0])
        return status, None if status == 204 else json.loads(self.browser.text(f"{shown}tbody pre code"))

    def authorize(self, token: str) -> None:
        self.browser.click(".auth-wrapper .authorize")
        self.browser.paste(".dialog-ux input", token)
        self.browser.click(".dialog-ux .auth-btn-wrapper .authorize")
        self.browser.click(".dialog-ux .btn-done")


def test_the_first_steps_can_be_taken_on_the_docs_page(browser: Browser, clone: Path) -> None:
    with serving(clone) as server:
        docs = Docs(browser, server.url)
        assert docs.send("accounts-register")[0] == 201
        status, login = docs.send("accounts-login")
        assert status == 200
        mine = {"user_id": login["user"]["id"]}
        docs.authorize(login["access_token"])

        status, made = docs.send("tasks-create_task", **mine)
        assert status == 201
        assert (made["user_id"], made["completed"]) == (mine["user_id"], False)
        task = mine | {"task_id": str(made["id"])}
        assert docs.send("tasks-list_tasks", **mine) == (200, [made])
        browser.open("about:blank")
        docs = Docs(browser, server.url)  # which has kept the token
        status, toggled = docs.send("tasks-toggle_task", **task)
        assert (status, toggled["completed"]) == (200, True)
        assert docs.send("tasks-delete_task", **task) == (204, None)
        assert docs.send("tasks-list_tasks", **mine) == (200, [])
        assert docs.send("accounts-logout") == (204, None)
        assert browser.console_errors() == []
        status, error = docs.send("tasks-list_tasks", **mine)
    assert (status, error["error"]["message"]) == (401, "Token was revoked")
    (complaint,) = browser.console_errors()
    assert "401" in complaint
    assert browser.hosts() == {urlsplit(server.url).netloc}


def test_redoc_shows_the_api_and_asks_nobody_else(browser: Browser, clone: Path) -> None:
    with serving(clone) as server:
        browser.open(f"{server.url}/redoc")
        assert "Todo API" in browser.text("h1")
        browser.find("[href='https://redocly.com/redoc/']")  # the last part of the page to be there
        browser.find("#tag\\/tasks")
    assert browser.hosts() == {urlsplit(server.url).netloc}
    # ReDoc wants to show a logo of its maker's, from there; the page's policy refuses it.
    assert not [complaint for complaint in browser.console_errors() if "redoc/logo" not in complaint]


def test_docs_fit_on_a_phone(browser: Browser, clone: Path) -> None:
    with serving(clone, BETTER_AUTH_URL="http://localhost:3000") as server:
        docs = Docs(browser, server.url)
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        browser.chrome("Emulation.setDeviceMetricsOverride", **phone)
        try:
            assert docs.send("tasks-create_task", user_id="ann")[0] == 401
            assert browser.run("return document.documentElement.scrollWidth") == 390
        finally:
            browser.chrome("Emulation.clearDeviceMetricsOverride")
    browser.console_errors()


FETCH = """
const [url, method, token, body = null] = arguments
const headers = {Authorization: `Bearer ${token}`, 'Content-Type': 'application/json'}
const read = async response => ({
  status: response.status,
  location: response.headers.get('Location'),
  link: response.headers.get('Link'),
  json: response.status === 204 ? null : await response.json(),
})
return fetch(url, {method, headers, body: body && JSON.stringify(body)}).then(read, error => error.name)
"""
CALLS = {
    "create": ("POST", "", {"title": "Water the plants"}, 201),
    "create another": ("POST", "", {"title": "Feed the cat"}, 201),
    "list": ("GET", "?limit=1", None, 200),
    "put": ("PUT", "/1", {"title": "Water the fern"}, 200),
    "toggle": ("PATCH", "/1/complete", None, 200),
    "delete": ("DELETE", "/1", None, 204),
    "not found": ("GET", "/1", None, 404),
    "invalid": ("POST", "", {"title": ""}, 422),
    "too large": ("POST", "", {"title": "x" * 100_000}, 413),
}


def test_cors_lets_the_listed_origin_read_every_response(
    browser: Browser, clone: Path, pages: list[str]
) -> None:
    with serving(clone, CORS_ORIGINS=pages[0], BETTER_AUTH_SECRET=SECRET) as server:
        url = f"{server.url}/api/ann/tasks"
        browser.open(pages[1])
        for name, (method, path, body, _) in CALLS.items():
            assert browser.run(FETCH, url + path, method, token("ann"), body) == "TypeError", name
        assert browser.run(FETCH, url, "GET", "none") == "TypeError"

        browser.open(pages[0])
        responses = {}
        for name, (method, path, body, status) in CALLS.items():
            responses[name] = browser.run(FETCH, url + path, method, token("ann"), body)
            assert responses[name]["status"] == status, name
        responses["no token"] = browser.run(FETCH, url, "GET", "none")
    assert responses["create"]["location"] == "/api/ann/tasks/1"
    assert responses["list"]["link"] == '</api/ann/tasks?limit=1&skip=1>; rel="next"'
    assert responses["list"]["json"] == [responses["create another"]["json"]]
    assert responses["put"]["json"]["title"] == "Water the fern"
    assert responses["toggle"]["json"]["completed"]
    codes = {"no token": "unauthorized", "not found": "not_found", "invalid": "validation_error"}
    for name, code in (codes | {"too large": "body_too_large"}).items():
        assert responses[name]["json"]["error"]["code"] == code
