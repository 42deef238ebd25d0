"""Headless Chromium, driven over the WebDriver protocol of its chromedriver: plain HTTP and JSON."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
SWITCHES += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # what WebDriver calls a reference to an element
SELECT_ALL = "\ue009a\ue000"  # Ctrl+A, then Ctrl is released
TIMEOUT = 20.0
SCROLL_TO = """
const [element] = arguments
element.scrollIntoView({block: 'center', behavior: 'instant'})
let before
const look = done => {
  const now = element.getBoundingClientRect().top
  if (now === before) return done()
  before = now
  setTimeout(look, 50, done)
}
return new Promise(look)
"""


class Browser:
    """A WebDriver session: clicks and types as a user does, and reads the log of the browser."""

    def __init__(self, driver: httpx2.Client, profile: Path) -> None:
        self.driver = driver
        options = {"binary": CHROMIUM, "args": [*SWITCHES, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.path = ""
        session = self("POST", "/session", capabilities={"alwaysMatch": wanted})
        self.path = f"/session/{session['sessionId']}"

    def __call__(self, method: str, path: str, **body: object) -> Any:
        response = self.driver.request(method, self.path + path, json=body if method == "POST" else None)
        value = response.json()["value"]
        assert response.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        self("POST", "/url", url=url)

    def new_tab(self) -> str:
        """Open one and switch to it; returns its handle, for go_to_tab()."""
        handle = str(self("POST", "/window/new", type="tab")["handle"])
        self.go_to_tab(handle)
        return handle

    def go_to_tab(self, handle: str) -> None:
        self("POST", "/window", handle=handle)
        self.chrome("Page.bringToFront")  # so that it has the focus

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script in the page; returns its result. A promise is awaited."""
        return self("POST", "/execute/sync", script=script, args=arguments)

    def until(self, look: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + TIMEOUT
        while not (found := look()):
            assert time.monotonic() < deadline, self.run("return document.body.innerText")
            time.sleep(0.05)
        return found

    def find(self, selector: str) -> str:
        """Wait for the element."""

        def look() -> Any:
            return self("POST", "/elements", using="css selector", value=selector)

        return str(self.until(look)[0][ELEMENT])

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run(SCROLL_TO, {ELEMENT: element})
        self("POST", f"/element/{element}/click")

    def paste(self, selector: str, text: str) -> None:
        """Replace the text of a field."""
        self("POST", f"/element/{self.find(selector)}/value", text=SELECT_ALL)
        self.chrome("Input.insertText", text=text)

    def press(self, *keys: str) -> None:
        """Send keys or text to the element that has the focus."""
        element = self("GET", "/element/active")[ELEMENT]
        self("POST", f"/element/{element}/value", text="".join(keys))

    def chrome(self, command: str, **params: object) -> Any:
        """A command of the DevTools protocol, for things that WebDriver cannot do."""
        return self("POST", "/goog/cdp/execute", cmd=command, params=params)

    def screenshot(self) -> bytes:
        return base64.b64decode(self("GET", "/screenshot"))

    def text(self, selector: str) -> str:
        return str(self("GET", f"/element/{self.find(selector)}/text"))

    def console_errors(self) -> list[str]:
        """Those since the last call."""
        entries = self("POST", "/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def hosts(self) -> set[str]:
        """The hosts of all requests since the last call, without those that a policy blocked."""
        entries = self("POST", "/se/log", type="performance")
        events = [json.loads(entry["message"])["message"] for entry in entries]
        urls, blocked = {}, set()
        for event in events:
            if event["method"] == "Network.requestWillBeSent":
                urls[event["params"]["requestId"]] = urlsplit(event["params"]["request"]["url"])
            elif event["params"].get("blockedReason") == "csp":
                blocked.add(event["params"]["requestId"])
        sent = [url for request, url in urls.items() if request not in blocked]
        return {url.netloc for url in sent if url.scheme in ("http", "https", "ws", "wss")}


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    if not (CHROMIUM and DRIVER):
        assert "CI" not in os.environ, "CI must install chromium and chromedriver"
        pytest.skip("needs chromium and chromedriver")
    command = [DRIVER, "--port=0"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        lines = iter(process.stdout or [])
        started = next((line for line in lines if "started successfully on port" in line), None)
        assert started, "chromedriver ended"
        port = started.split()[-1].strip(".")
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as driver:
            browser = Browser(driver, profile)
            try:
                yield browser
            finally:
                browser("DELETE", "")
    finally:
        process.terminate()
        process.communicate()
