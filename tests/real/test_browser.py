"""In a real browser: /docs and /redoc as a user sees them, and CORS as Chromium enforces it."""

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
def frontends() -> Iterator[list[str]]:
    """Two origins with empty pages."""

    class EmptyPage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield [f"http://{host}:{server.server_port}" for host in ("localhost", "127.0.0.1")]
        server.shutdown()
        thread.join()


class Docs:
    """The page /docs, and what a user does there."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        browser.open(f"{url}/docs")

    def send(self, operation: str, **fields: str) -> tuple[int, Any]:
        """Try an operation, with the example body of the page; returns the response that the page shows."""
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


def test_first_steps_work_on_the_docs_page(browser: Browser, clone: Path) -> None:
    with serving(clone) as server:
        docs = Docs(browser, server.url)
        assert docs.send("accounts-register")[0] == 201
        status, login = docs.send("accounts-login")
        assert status == 200
        mine = {"user_id": login["user"]["id"]}
        docs.authorize(login["access_token"])

        status, created = docs.send("tasks-create_task", **mine)
        assert status == 201
        assert (created["user_id"], created["completed"]) == (mine["user_id"], False)
        task = mine | {"task_id": str(created["id"])}
        assert docs.send("tasks-list_tasks", **mine) == (200, [created])
        browser.open("about:blank")
        docs = Docs(browser, server.url)  # it has kept the token
        status, toggled = docs.send("tasks-toggle_task", **task)
        assert (status, toggled["completed"]) == (200, True)
        assert docs.send("tasks-delete_task", **task) == (204, None)
        assert docs.send("tasks-list_tasks", **mine) == (200, [])
        assert docs.send("accounts-logout") == (204, None)
        assert browser.console_errors() == []
        status, error = docs.send("tasks-list_tasks", **mine)
    assert (status, error["error"]["message"]) == (401, "Token was revoked")
    (failure,) = browser.console_errors()
    assert "401" in failure
    assert browser.hosts() == {urlsplit(server.url).netloc}


def test_redoc_shows_the_api_and_sends_requests_to_no_other_host(browser: Browser, clone: Path) -> None:
    with serving(clone) as server:
        browser.open(f"{server.url}/redoc")
        assert "Todo API" in browser.text("h1")
        browser.find("[href='https://redocly.com/redoc/']")  # the last part of the page to load
        browser.find("#tag\\/tasks")
    assert browser.hosts() == {urlsplit(server.url).netloc}
    # ReDoc requests its maker's logo; the page's policy blocks that.
    assert not [error for error in browser.console_errors() if "redoc/logo" not in error]


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


def test_cors_lets_only_the_listed_origin_read_responses(
    browser: Browser, clone: Path, frontends: list[str]
) -> None:
    with serving(clone, CORS_ORIGINS=frontends[0], BETTER_AUTH_SECRET=SECRET) as server:

        def call(method: str, path: str = "", body: object = None, bearer: str = token("ann")) -> Any:
            return browser.run(FETCH, f"{server.url}/api/ann/tasks{path}", method, bearer, body)

        browser.open(frontends[1])
        assert call("POST", "", {"title": "Water the plants"}) == "TypeError"
        assert call("GET") == "TypeError"

        browser.open(frontends[0])
        first, second = [call("POST", "", {"title": title}) for title in ("Water the plants", "Feed the cat")]
        assert (first["status"], first["location"]) == (201, "/api/ann/tasks/1")
        listed = call("GET", "?limit=1")
        assert (listed["status"], listed["json"]) == (200, [second["json"]])
        assert listed["link"] == '</api/ann/tasks?limit=1&skip=1>; rel="next"'
        assert call("PUT", "/1", {"title": "Water the fern"})["json"]["title"] == "Water the fern"
        assert call("PATCH", "/1/complete")["json"]["completed"]
        assert call("DELETE", "/1")["status"] == 204
        assert call("GET", "", bearer="none")["json"]["error"]["code"] == "unauthorized"
        too_large = call("POST", "", {"title": "x" * 100_000})
        assert too_large["json"]["error"]["code"] == "body_too_large"
