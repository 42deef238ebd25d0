"""/demo in a real browser: what it does, its messages when something fails, and accessibility."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.browser import Browser, browsing
from tests.support.node import install
from tests.support.server import Server, copy_project, serving

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
TAB, ENTER, SPACE, BACKSPACE = "\ue004", "\ue007", " ", "\ue003"
HOME, DOWN, LEFT, RIGHT, SHIFT_TAB = "\ue011", "\ue015", "\ue012", "\ue014", "\ue008\ue004\ue000"
NOT_REACHED = "The API cannot be reached."
numbers = count(1)
# The name of the element that has the focus, if its outline is visible.
FOCUSED = """
const element = document.activeElement
const style = getComputedStyle(element)
if (style.outlineStyle !== 'solid' || parseFloat(style.outlineWidth) < 2) return 'no visible focus'
return element.ariaLabel ?? (element.labels?.[0]?.innerText.trim() || element.textContent)
"""

TITLES = """
const rows = [...document.querySelectorAll(arguments[0])].filter(row => row.checkVisibility())
return rows.map(row => row.querySelector('textarea').value)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("todo"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, AUTH_RATE_LIMIT="1000/minute") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class Page:
    """The page in a new tab: what a user sees and does there."""

    def __init__(self, browser: Browser, url: str, path: str = "/demo") -> None:
        self.browser, self.url = browser, url
        self.tab = browser.new_tab()
        browser.open(url + path)

    def enter(self, button: str, email: str, password: str = PASSWORD) -> None:
        self.browser.paste("[name=email]", email)
        self.browser.paste("[name=password]", password)
        self.browser.click(f"#account [value={button}]")

    def register(self) -> str:
        """Create an account; returns its email."""
        email = f"ann{next(numbers)}@example.com"
        self.enter("register", email)
        self.sees("header span", email)
        return email

    def add(self, title: str) -> None:
        self.browser.paste("#add input", title)
        self.browser.click("#add button")
        self.browser.until(lambda: title in self.titles())

    def row(self, title: str) -> str:
        """The selector of a task's row."""
        return f"li:nth-of-type({self.titles().index(title) + 1})"

    def rename(self, title: str, new_title: str) -> None:
        self.browser.paste(f"{self.row(title)} textarea", new_title)
        self.browser.press(ENTER)

    def tick(self, title: str) -> None:
        self.browser.click(f"{self.row(title)} [type=checkbox]")

    def delete(self, title: str) -> None:
        self.browser.click(f"{self.row(title)} button")

    def log_out(self) -> None:
        self.browser.click("header button")
        self.browser.until(lambda: self.shows("#account"))

    def filter(self, status: str) -> None:
        self.browser.run("document.querySelector('select').focus()")
        self.browser.press(HOME, DOWN * ["all", "pending", "completed"].index(status))

    def titles(self, rows: str = "li") -> Any:
        return self.browser.run(TITLES, rows)

    def ticked(self) -> Any:
        return self.titles("li:has(:checked)")

    def value(self, selector: str) -> Any:
        return self.browser.run("return document.querySelector(arguments[0]).value", selector)

    def login(self) -> Any:
        """The login that is stored in the tab."""
        return self.browser.run("return JSON.parse(sessionStorage.getItem('login'))")

    def lists(self, *titles: str) -> None:
        self.browser.until(lambda: self.titles() == list(titles))

    def sees(self, selector: str, text: str) -> None:
        self.browser.until(lambda: self.browser.text(selector) == text)

    def notice_says(self, pattern: str) -> None:
        self.browser.until(lambda: re.fullmatch(pattern, self.browser.text("#notice span")))

    def shows(self, selector: str) -> Any:
        return self.browser.run("return document.querySelector(arguments[0]).checkVisibility()", selector)

    def has_focus(self, name: str) -> None:
        self.browser.until(lambda: self.browser.run(FOCUSED) == name)

    def failures(self) -> list[str]:
        """The statuses of failed requests; any other error on the console is a bug of the page."""
        found = [re.search(r"status of (\d+)|net::\w+", text) for text in self.browser.console_errors()]
        return [match[1] or match[0] if match else "an error in the page" for match in found]


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    browser.console_errors()
    page = Page(browser, server.url)
    yield page
    browser.go_to_tab(page.tab)
    browser("DELETE", "/window")
    browser.go_to_tab(browser("GET", "/window/handles")[0])


def api(page: Page, root_path: str = "") -> httpx2.Client:
    """The page's user, on another device."""
    login = page.login()
    headers = {"Authorization": f"Bearer {login['access_token']}"}
    url = f"{page.url}{root_path}/api/{login['user']['id']}/tasks"
    return httpx2.Client(base_url=url, headers=headers, trust_env=False)


def log_out_elsewhere(page: Page) -> None:
    with api(page) as client:
        assert client.post(f"{page.url}/api/auth/logout").status_code == 204


def test_two_users_keep_their_lists(browser: Browser, server: Server, page: Page) -> None:
    browser.hosts()
    ann = page.register()
    page.sees("#count", "Nothing here.")
    for title in ("Water the plants", "Feed the cat", "Call Grandma"):
        page.add(title)
    page.lists("Call Grandma", "Feed the cat", "Water the plants")
    page.tick("Feed the cat")
    page.sees("#count", "1 of 3 done")
    page.filter("pending")
    page.lists("Call Grandma", "Water the plants")
    page.filter("completed")
    page.lists("Feed the cat")
    page.filter("all")
    page.lists("Call Grandma", "Feed the cat", "Water the plants")
    browser.paste("[type=search]", "CAT")
    page.lists("Feed the cat")
    page.add("Buy oat milk")  # it does not match, so the filter is reset
    page.lists("Buy oat milk", "Call Grandma", "Feed the cat", "Water the plants")
    page.rename("Water the plants", "Water the fern")
    page.delete("Call Grandma")
    page.lists("Buy oat milk", "Feed the cat", "Water the fern")

    other = Page(browser, server.url)  # each tab has its own login
    other.register()
    other.sees("#count", "Nothing here.")
    other.add("Read a book")
    other.lists("Read a book")
    browser("DELETE", "/window")

    browser.go_to_tab(page.tab)
    page.tick("Feed the cat")
    page.sees("#count", "0 of 3 done")
    page.log_out()
    assert page.login() is None
    assert not page.shows("ul")
    page.enter("login", ann)
    page.lists("Buy oat milk", "Feed the cat", "Water the fern")
    assert page.ticked() == []
    assert page.failures() == []
    assert browser.hosts() == {server.url.removeprefix("http://")}


def test_long_list_is_loaded_page_by_page(browser: Browser, page: Page) -> None:
    page.register()
    with api(page) as client:
        for number in range(45):
            assert client.post("", json={"title": f"Task {number}"}).status_code == 201
        browser("POST", "/refresh")
        page.lists(*[f"Task {number}" for number in range(44, 24, -1)])
        client.post("", json={"title": "From the phone"})  # so the second page begins with Task 25 again
        browser.click("#more")
        page.lists(*[f"Task {number}" for number in range(44, 5, -1)])
        page.sees("#count", "0 of 39 done")
        page.delete("Task 20")  # what was loaded stays
        page.lists("From the phone", *[f"Task {number}" for number in range(44, 5, -1) if number != 20])
        browser.run("document.querySelector('#more').focus()")
        browser.press(ENTER)
        page.lists("From the phone", *[f"Task {number}" for number in range(44, -1, -1) if number != 20])
    assert not page.shows("#more")
    assert page.failures() == []


def test_more_tasks_than_one_request_lists_stay_loaded(browser: Browser, folder: Path, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    with sqlite3.connect(folder / "todo.db") as connection:
        copy = "INSERT INTO tasks (user_id, title, completed, created_at, updated_at) "
        copy += "SELECT user_id, title, completed, created_at, updated_at FROM tasks WHERE user_id = ?"
        connection.executemany(copy + " LIMIT 1", [(page.login()["user"]["id"],)] * 1004)
    connection.close()
    browser("POST", "/refresh")
    page.sees("#count", "0 of 20 done")
    browser.run("const click = async () => { while (!more.hidden) await loadMore() }; return click()")
    page.sees("#count", "0 of 1005 done")
    browser.click("li:nth-of-type(1005) [type=checkbox]")
    page.sees("#count", "1 of 1005 done")


HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "</textarea><script>document.title='owned'</script>",
]


def test_titles_stay_text(browser: Browser, page: Page) -> None:
    page.register()
    for title in HOSTILE:
        page.add(title)
        page.tick(title)
    page.sees("#count", "2 of 2 done")
    browser("POST", "/refresh")
    page.lists(*reversed(HOSTILE))
    assert browser.run("return document.title") == "Todo"
    assert browser.run("return document.querySelectorAll('ul img, ul script').length") == 0
    assert page.failures() == []


def test_login_errors_are_shown(browser: Browser, page: Page) -> None:
    email = page.register()
    page.log_out()
    page.enter("login", email, "wrong horse")
    page.notice_says(r"Wrong email or password\.")
    page.enter("register", email)
    page.notice_says(r"There is already an account with this email\.")
    assert (page.value("[name=email]"), page.value("[name=password]")) == (email, PASSWORD)
    assert not page.shows("#notice button")  # trying again would not help
    page.enter("register", "someone.new@example.com", "short")
    page.notice_says("password: .+")
    assert page.failures() == ["401", "409", "422"]


DOUBLE_CLICK = """
const send = fetch
let requests = 0
window.fetch = (...request) => { requests += 1; return send(...request) }
for (const _ of [1, 2]) document.querySelector('[value=register]').click()
return requests
"""


def test_double_click_creates_one_account(browser: Browser, page: Page) -> None:
    browser.paste("[name=email]", "double@example.com")
    browser.paste("[name=password]", PASSWORD)
    assert browser.run(DOUBLE_CLICK) == 1
    page.sees("#count", "Nothing here.")
    assert not page.shows("#notice")


def test_typed_text_survives_a_logout(browser: Browser, page: Page) -> None:
    email = page.register()
    page.add("Water the plants")
    browser.paste("#add input", "Feed the c")
    log_out_elsewhere(page)
    page.rename("Water the plants", "Water the fern")
    page.notice_says(r"Token was revoked\. Log in again: your text is not lost\.")
    assert not page.shows("ul")
    assert page.value("[name=email]") == email
    browser.press(PASSWORD, ENTER)  # the empty field has the focus
    page.lists("Water the fern")
    assert page.value("#add input") == "Feed the c"
    browser("POST", "/refresh")
    page.lists("Water the fern")
    assert page.failures() == ["401"]


def test_failed_action_is_not_retried_for_another_user(browser: Browser, page: Page) -> None:
    page.register()
    log_out_elsewhere(page)
    browser.paste("#add input", "Ann's secret")
    browser.press(ENTER)
    page.notice_says("Token was revoked.+")
    page.register()
    page.sees("#count", "Nothing here.")
    page.add("Bob's own")
    page.lists("Bob's own")
    assert page.failures() == ["401"]


def test_logout_after_token_is_revoked(browser: Browser, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    log_out_elsewhere(page)
    browser.click("header button")
    page.notice_says("Token was revoked.+")
    browser.press(PASSWORD, ENTER)
    page.lists("Water the plants")
    browser("POST", "/refresh")  # the new login stays
    page.lists("Water the plants")
    assert page.failures() == ["401"]


def test_request_can_be_retried_after_a_503(browser: Browser, folder: Path, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    other_program = sqlite3.connect(folder / "todo.db", isolation_level=None)
    other_program.execute("BEGIN IMMEDIATE")  # so the API cannot write
    browser.paste("#add input", "Feed the cat")
    browser.press(ENTER)
    page.notice_says(r".+ at \d\d?:\d\d:\d\d.*\.")
    assert page.value("#add input") == "Feed the cat"
    page.lists("Water the plants")
    other_program.close()
    browser.press(SHIFT_TAB)
    page.has_focus("Try again")
    browser.press(ENTER)
    page.lists("Feed the cat", "Water the plants")
    assert page.value("#add input") == ""
    assert not page.shows("#notice")
    browser.press(TAB)
    page.has_focus("New task")
    assert page.failures() == ["503"]


@contextmanager
def offline(browser: Browser) -> Iterator[None]:
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.chrome("Network.enable")
    browser.chrome("Network.emulateNetworkConditions", offline=True, **conditions)
    try:
        yield
    finally:
        browser.chrome("Network.emulateNetworkConditions", offline=False, **conditions)


def test_changes_that_fail_offline_are_undone_and_can_be_retried(browser: Browser, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    page.add("Feed the cat")
    browser.paste("#add input", "Call Grandma")
    with offline(browser):
        page.tick("Feed the cat")
        page.notice_says(NOT_REACHED)
        assert page.ticked() == []
        page.rename("Water the plants", "Water the fern")
        page.notice_says(NOT_REACHED)
        page.lists("Feed the cat", "Water the plants")  # as saved
    browser.click("#notice button")
    browser.until(lambda: not page.shows("#notice"))
    browser("POST", "/refresh")
    page.lists("Feed the cat", "Water the fern")
    assert set(page.failures()) == {"net::ERR_INTERNET_DISCONNECTED"}


HOLD_THE_NEXT_RESPONSE = """
const send = fetch
delete window.release
window.fetch = async (...request) => {
  window.fetch = send
  const response = await send(...request), data = await response.json()
  response.json = async () => data
  await new Promise(release => { window.release = release })
  return response
}
"""


@contextmanager
def response_held(browser: Browser, send: Callable[[], object]) -> Iterator[None]:
    """The page gets the response to this request after the block."""
    browser.run(HOLD_THE_NEXT_RESPONSE)
    send()
    browser.until(lambda: browser.run("return 'release' in window"))
    yield
    browser.run("release(); return new Promise(done => setTimeout(done))")  # once it has been handled


def test_title_that_is_being_typed_is_kept_when_the_list_reloads(browser: Browser, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    with response_held(browser, lambda: page.tick("Water the plants")):
        browser.paste("li textarea", "Water the f")
    page.sees("#count", "1 of 1 done")  # the list has been reloaded
    browser.press(RIGHT, "ern", ENTER)
    browser("POST", "/refresh")
    page.lists("Water the fern")


def test_task_that_was_deleted_elsewhere_disappears(page: Page) -> None:
    page.register()
    page.add("Water the plants")
    with api(page) as client:
        assert client.delete(f"/{client.get('').json()[0]['id']}").status_code == 204
    page.tick("Water the plants")
    page.notice_says(r"Task not found\.")
    page.lists()
    assert page.failures() == ["404"]


def test_enter_pressed_twice_adds_one_task_and_the_next_can_be_typed_meanwhile(
    browser: Browser, page: Page
) -> None:
    page.register()
    with response_held(browser, lambda: browser.press("Water the plants", ENTER, ENTER)):
        browser.press("Feed the c")
    page.lists("Water the plants")
    browser.press("at", ENTER)
    page.lists("Feed the cat", "Water the plants")
    assert page.failures() == []


def test_late_response_to_an_earlier_search_is_ignored(browser: Browser, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    page.add("Feed the cat")
    with response_held(browser, lambda: browser.paste("[type=search]", "cat")):
        browser.paste("[type=search]", "plants")
        page.lists("Water the plants")
    assert page.titles() == ["Water the plants"]


def test_keyboard_is_enough(browser: Browser, page: Page) -> None:
    page.has_focus("Email")
    browser.press("keyboard@example.com", TAB, PASSWORD, TAB)
    page.has_focus("Log in")
    browser.press(TAB)
    page.has_focus("Create an account")
    browser.press(ENTER)
    page.has_focus("New task")
    browser.press("Water the plants", ENTER)
    page.lists("Water the plants")
    browser.press("Feed the cat", ENTER)  # the field keeps the focus
    page.lists("Feed the cat", "Water the plants")
    for name in ("Add", "Show", "Search", "Feed the cat", "Title"):
        browser.press(TAB)
        page.has_focus(name)
    browser.press(BACKSPACE * 3, "dog", LEFT, ENTER)
    page.lists("Feed the dog", "Water the plants")
    browser.press(SHIFT_TAB)  # from where it was
    page.has_focus("Feed the dog")
    browser.press(SPACE)
    page.sees("#count", "1 of 2 done")
    page.has_focus("Feed the dog")
    browser.press(TAB, TAB)
    page.has_focus("Delete")
    browser.press(ENTER)
    page.lists("Water the plants")
    browser.press(TAB)
    page.has_focus("Water the plants")  # in the next row
    browser.press(SPACE)
    page.sees("#count", "1 of 1 done")
    browser.press(SHIFT_TAB, SHIFT_TAB)
    page.has_focus("Show")
    browser.press("P")
    page.lists()
    browser.press(SHIFT_TAB, SHIFT_TAB, SHIFT_TAB)
    page.has_focus("Log out")
    browser.press(ENTER)
    page.has_focus("Email")
    assert page.failures() == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = install("axe", tmp_path_factory.mktemp("node"))
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (320, "dark")])
def test_accessibility(browser: Browser, page: Page, axe: str, width: int, scheme: str) -> None:
    def check() -> None:
        result = browser.run(f"{axe}; return axe.run()")
        problems = [(item["id"], [node["html"] for node in item["nodes"]]) for item in result["violations"]]
        assert problems == []
        assert len(result["passes"]) > 20
        assert browser.run("return document.documentElement.scrollWidth") <= width

    browser.chrome("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.chrome("Emulation.setDeviceMetricsOverride", **screen)
    check()
    page.enter("login", "unknown@example.com")
    page.notice_says("Wrong .+")
    check()
    page.enter("register", f"{scheme}.{'long' * 15}@example.com")
    page.sees("#count", "Nothing here.")
    check()
    page.add("Water the plants")
    page.add("w" * 200)
    page.tick("Water the plants")
    page.sees("#count", "1 of 2 done")
    check()
    with offline(browser):
        page.delete("Water the plants")
        page.notice_says(NOT_REACHED)
        check()
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 380) == (scheme == "light")


BEHIND_A_PROXY = """

inner = app


async def app(scope, receive, send):
    if scope["type"] == "http":
        {}
    await inner(scope, receive, send)
"""
PROXIES = {
    "with --root-path": 'scope["root_path"] = "/todo"',
    "that removes its path": 'scope["path"] = scope["path"].removeprefix("/todo")',
}


@pytest.mark.parametrize("change", PROXIES.values(), ids=PROXIES)
def test_page_works_under_the_path_of_a_proxy(browser: Browser, clone: Path, change: str) -> None:
    with (clone / "main.py").open("a", encoding="utf-8") as main:
        main.write(BEHIND_A_PROXY.format(change))
    browser.console_errors()
    with serving(clone) as server:
        page = Page(browser, server.url, "/todo/demo/")
        page.register()
        with api(page, "/todo") as client:
            for number in range(21):
                assert client.post("", json={"title": f"Task {number}"}).status_code == 201
        browser("POST", "/refresh")
        browser.click("#more")
        page.lists(*[f"Task {number}" for number in range(20, -1, -1)])
        assert browser.run("return document.links[0].href") == f"{server.url}/todo/docs"
        requested = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [url for url in requested if not url.startswith(f"{server.url}/todo/api/")] == []
        assert page.failures() == []


def test_page_runs_only_its_own_script(browser: Browser, clone: Path) -> None:
    """The policy has the hashes of script and style. A checkout with Windows line ends works, too."""
    html = clone / "routes" / "demo.html"
    html.write_text(html.read_text(encoding="utf-8"), encoding="utf-8", newline="\r\n")
    browser.console_errors()
    with serving(clone) as server:
        page = Page(browser, server.url)
        page.register()
        assert page.failures() == []
        browser.run("""
            const script = document.createElement('script')
            script.textContent = 'document.title = 1'
            document.body.append(script)
        """)
        assert browser.run("return document.title") == "Todo"
        assert page.failures() == ["an error in the page"]  # the policy blocks it, and says so
