"""Makes docs/demo.png, a picture of /demo: `.venv/bin/python -m pytest tests/support/picture.py`."""

from pathlib import Path

import httpx2
import pytest

from hardening.settings import ROOT
from tests.support.browser import browsing
from tests.support.server import serving

TASKS = {
    "Water the plants": True,
    "Book a table for seven on Friday, one vegetarian": False,
    "Renew the library card": True,
    "Call Grandma about Sunday": False,
    "Practise the demo twice": False,
    "Buy oat milk and coffee": False,
}


def test_picture(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(clone) as server, browsing(tmp_path_factory.mktemp("profile")) as browser:
        screen = {"width": 1280, "height": 760, "deviceScaleFactor": 1, "mobile": False}
        browser.chrome("Emulation.setDeviceMetricsOverride", **screen)
        browser.open(f"{server.url}/demo")
        browser.paste("[name=email]", "ann@example.com")
        browser.paste("[name=password]", "correct horse")
        browser.click("[value=register]")
        browser.until(lambda: "Nothing here" in browser.text("#count"))
        login = browser.run("return JSON.parse(sessionStorage.getItem('login'))")
        url = f"{server.url}/api/{login['user']['id']}/tasks"
        headers = {"Authorization": f"Bearer {login['access_token']}"}
        for title, completed in TASKS.items():
            task = {"title": title, "completed": completed}
            assert httpx2.post(url, json=task, headers=headers, trust_env=False).status_code == 201
        browser("POST", "/refresh")
        browser.until(lambda: browser.text("#count") == "2 of 6 done")
        browser.run("document.activeElement.blur()")  # hides the blinking cursor
        picture = browser.screenshot()
    assert len(picture) < 80_000
    (ROOT / "docs" / "demo.png").write_bytes(picture)
