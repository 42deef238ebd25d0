"""/demo in a real browser: what it does, what it says when something fails, and that everybody can use it."""

import re
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from hardening.settings import ROOT
from tests.conftest import token
from tests.support.browser import Browser, browsing
from tests.support.environment import SECRET
from tests.support.node import install
from tests.support.server import Server, copy_project, serving

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
TAB, ENTER, SPACE, BACKSPACE = "\ue004", "\ue007", " ", "\ue003"
HOME, DOWN, LEFT, RIGHT, SHIFT_TAB = "\ue011", "\ue015", "\ue012", "\ue014", "\ue008\ue004\ue000"
NOT_REACHED = "The API cannot be reached."
numbers = count(1)
# The name of what has the focus, if one can see that it has it.
FOCUSED = """
const element = document.activeElement
const style = getComputedStyle(element)
if (style.outlineStyle !== 'solid' || parseFloat(style.outlineWidth) < 2) return 'nothing that can be seen'
return element.ariaLabel ?? (element.labels?.[0]?.innerText.trim() || element.textContent)
"""

TITLES = """
const rows = [...document.querySelectorAll(arguments[0])].filter(row => row.checkVisibility())
return rows.map(row => row.querySelector('textarea').value)
"""


class Todo(NamedTuple):
    """A running server, and the folder it runs in."""

    server: Server
    folder: Path

    @property
    def url(self) -> str:
        return self.server.url


@contextmanager
def todo(folder: Path, **variables: str) -> Iterator[Todo]:
    folder.mkdir()
    copy_project(folder)
    settings = {"BETTER_AUTH_SECRET": SECRET, "AUTH_RATE_LIMIT": "1000/minute"}
    with serving(folder, **(settings | variables)) as server:
        yield Todo(server, folder)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Todo]:
    with todo(tmp_path_factory.mktemp("app") / "todo") as app:
        yield app


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class Page:
    """The page in a tab of its own, and what a user sees and does there."""

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

    def leave(self) -> None:
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
        """What the tab remembers of the login."""
        return self.browser.run("return JSON.parse(sessionStorage.getItem('login'))")

    def lists(self, *titles: str) -> None:
        self.browser.until(lambda: self.titles() == list(titles))

    def sees(self, selector: str, text: str) -> None:
        self.browser.until(lambda: self.browser.text(selector) == text)

    def is_told(self, pattern: str) -> None:
        self.browser.until(lambda: re.fullmatch(pattern, self.browser.text("#notice span")))

    def shows(self, selector: str) -> bool:
        return bool(
            self.browser.run("return document.querySelector(arguments[0]).checkVisibility()", selector)
        )

    def failures(self) -> list[str]:
        """The statuses of requests that failed; anything else on the console is a mistake of the page."""
        found = [re.search(r"status of (\d+)|net::\w+", text) for text in self.browser.complaints()]
        return [match[1] or match[0] if match else "an error in the page" for match in found]


@pytest.fixture
def page(browser: Browser, app: Todo) -> Iterator[Page]:
    browser.complaints()
    page = Page(browser, app.url)
    yield page
    browser.go_to_tab(page.tab)
    browser("DELETE", "/window")
    browser.go_to_tab(browser("GET", "/window/handles")[0])


def api(page: Page, root_path: str = "") -> httpx2.Client:
    """The page's user, at another device."""
    login = page.login()
    headers = {"Authorization": f"Bearer {login['access_token']}"}
    url = f"{page.url}{root_path}/api/{login['user']['id']}/tasks"
    return httpx2.Client(base_url=url, headers=headers, trust_env=False)


def log_out_elsewhere(page: Page) -> None:
    with api(page) as client:
        assert client.post(f"{page.url}/api/auth/logout").status_code == 204


def test_two_users_keep_their_lists(browser: Browser, app: Todo, page: Page) -> None:
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

    other = Page(browser, app.url)  # each tab has its own login
    other.register()
    other.sees("#count", "Nothing here.")
    other.add("Read a book")
    other.lists("Read a book")
    browser("DELETE", "/window")

    browser.go_to_tab(page.tab)
    page.tick("Feed the cat")
    page.sees("#count", "0 of 3 done")
    page.leave()
    assert page.login() is None
    assert not page.shows("ul")
    page.enter("login", ann)
    page.lists("Buy oat milk", "Feed the cat", "Water the fern")
    assert page.ticked() == []
    assert page.failures() == []
    assert browser.hosts() == {app.url.removeprefix("http://")}


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


def test_more_rows_than_the_api_lists_at_once_stay(browser: Browser, app: Todo, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    with sqlite3.connect(app.folder / "todo.db") as connection:
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


HOLD_THE_FIRST_ANSWER = """
const send = fetch
window.fetch = async (...request) => {
  window.fetch = send
  const response = await send(...request), data = await response.json()
  response.json = async () => data
  await new Promise(release => { window.release = release })
  return response
}
"""

HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "</textarea><script>document.title='owned'</script>",
]


@pytest.mark.parametrize("title", HOSTILE, ids=["image", "script"])
def test_title_stays_text(browser: Browser, page: Page, title: str) -> None:
    page.register()
    page.add(title)
    page.lists(title)
    page.tick(title)
    page.sees("#count", "1 of 1 done")
    browser("POST", "/refresh")
    page.lists(title)
    assert browser.run("return document.title") == "Todo"
    assert browser.run("return document.querySelectorAll('ul img, ul script').length") == 0
    assert page.failures() == []


def test_login_errors_are_shown(browser: Browser, page: Page) -> None:
    email = page.register()
    page.leave()
    page.enter("login", email, "wrong horse")
    page.is_told(r"Wrong email or password\.")
    page.enter("register", email)
    page.is_told(r"There is already an account with this email\.")
    assert page.value("[name=email]") == email
    assert not page.shows("#notice button")  # trying again would not help
    page.enter("register", "someone.new@example.com", "short")
    page.is_told("password: .+")
    assert page.failures() == ["401", "409", "422"]


COUNT_REQUESTS = """
window.requests = 0
const send = fetch
window.fetch = (...request) => { window.requests += 1; return send(...request) }
"""


def test_double_click_creates_one_account(browser: Browser, page: Page) -> None:
    browser.run(COUNT_REQUESTS)
    browser.paste("[name=email]", "double@example.com")
    browser.paste("[name=password]", PASSWORD)
    requests = browser.run(
        "for (const _ of [1, 2]) document.querySelector('[value=register]').click(); return requests"
    )
    assert requests == 1
    page.sees("#count", "Nothing here.")
    assert not page.shows("#notice")
    page.leave()
    page.enter("login", "double@example.com", "wrong horse")
    page.is_told("Wrong .+")
    page.enter("login", "double@example.com")  # a failure ends it, too
    page.sees("#count", "Nothing here.")


def test_typed_text_survives_a_logout(browser: Browser, page: Page) -> None:
    email = page.register()
    page.add("Water the plants")
    browser.paste("#add input", "Feed the c")
    log_out_elsewhere(page)
    page.rename("Water the plants", "Water the fern")
    page.is_told(r"Token was revoked\. Log in again: your text is not lost\.")
    assert not page.shows("ul")
    assert page.value("[name=email]") == email
    browser.press(PASSWORD, ENTER)  # the focus is in the field that is empty
    page.lists("Water the fern")
    assert page.value("#add input") == "Feed the c"
    browser("POST", "/refresh")
    page.lists("Water the fern")
    assert page.failures() == ["401"]


def test_expired_token_leads_to_the_login(browser: Browser, page: Page) -> None:
    email = page.register()
    page.add("Water the plants")
    login = page.login()
    login["access_token"] = token(login["user"]["id"], exp=1_700_000_000)
    browser.run("sessionStorage.setItem('login', JSON.stringify(arguments[0]))", login)
    browser("POST", "/refresh")
    page.is_told(r"Token has expired\. Log in again: your text is not lost\.")
    assert page.value("[name=email]") == email
    browser.press(PASSWORD, ENTER)
    page.lists("Water the plants")
    assert page.failures() == ["401"]


def test_failed_action_is_not_retried_for_another_user(browser: Browser, page: Page) -> None:
    page.register()
    log_out_elsewhere(page)
    browser.paste("#add input", "Ann's secret")
    browser.press(ENTER)
    page.is_told("Token was revoked.+")
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
    page.is_told("Token was revoked.+")
    browser.press(PASSWORD, ENTER)
    page.lists("Water the plants")  # and stays there
    browser("POST", "/refresh")
    page.lists("Water the plants")
    assert page.failures() == ["401"]


def test_rate_limit_message_says_when_to_retry(browser: Browser, tmp_path: Path) -> None:
    with todo(tmp_path / "todo", AUTH_RATE_LIMIT="1/minute") as app:
        page = Page(browser, app.url)
        page.enter("login", "ann@example.com")
        page.is_told(r"Wrong .+")
        browser.click("#account .main")
        page.is_told(r"Too many attempts, try again later at \d\d?:\d\d:\d\d.*\.")
        assert page.value("[name=password]") == PASSWORD
        assert not page.shows("#notice button")
        assert page.failures()[-1] == "429"


def test_unavailable_database_can_be_tried_again(browser: Browser, app: Todo, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    other_program = sqlite3.connect(app.folder / "todo.db", isolation_level=None)
    other_program.execute("BEGIN IMMEDIATE")  # nobody else can write
    browser.paste("#add input", "Feed the cat")
    browser.press(ENTER)
    page.is_told(r".+ at \d\d?:\d\d:\d\d.*\.")
    assert page.value("#add input") == "Feed the cat"
    page.lists("Water the plants")
    other_program.close()
    browser.click("#notice button")
    page.lists("Feed the cat", "Water the plants")
    assert page.value("#add input") == ""
    assert not page.shows("#notice")
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


def test_without_a_network_nothing_is_lost(browser: Browser, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    page.add("Feed the cat")
    browser.paste("#add input", "Call Grandma")
    with offline(browser):
        page.tick("Feed the cat")
        page.is_told(NOT_REACHED)
        assert page.ticked() == []  # since it is not
        page.rename("Water the plants", "Water the fern")
        page.is_told(NOT_REACHED)
        page.lists("Feed the cat", "Water the plants")  # the list shows what is saved
    browser.click("#notice button")
    browser.until(lambda: not page.shows("#notice"))
    browser("POST", "/refresh")
    page.lists("Feed the cat", "Water the fern")
    assert set(page.failures()) == {"net::ERR_INTERNET_DISCONNECTED"}


def test_title_that_cannot_be_saved_is_taken_back(browser: Browser, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    page.rename("Water the plants", " ")
    page.is_told("title: .+")
    page.lists("Water the plants")
    assert page.failures() == ["422"]


def test_title_that_is_being_typed_outlives_a_new_list(browser: Browser, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    browser.run(HOLD_THE_FIRST_ANSWER)
    page.tick("Water the plants")
    browser.until(lambda: browser.run("return 'release' in window"))
    browser.paste("li textarea", "Water the f")
    browser.run("release()")
    page.sees("#count", "1 of 1 done")  # the list has come meanwhile
    browser.press(RIGHT, "ern", ENTER)
    browser("POST", "/refresh")
    page.lists("Water the fern")


def test_task_that_was_deleted_elsewhere_goes(page: Page) -> None:
    page.register()
    page.add("Water the plants")
    with api(page) as client:
        assert client.delete(f"/{client.get('').json()[0]['id']}").status_code == 204
    page.tick("Water the plants")
    page.is_told(r"Task not found\.")
    page.lists()
    assert page.failures() == ["404"]


def test_enter_pressed_twice_adds_one_task(browser: Browser, page: Page) -> None:
    page.register()
    browser.paste("#add input", "Water the plants")
    browser.run("for (const _ of [1, 2, 3]) document.querySelector('#add').requestSubmit()")
    page.lists("Water the plants")
    page.filter("pending")
    page.lists("Water the plants")


def test_next_title_can_be_typed_meanwhile(browser: Browser, page: Page) -> None:
    page.register()
    browser.run(HOLD_THE_FIRST_ANSWER)
    browser.press("Water the plants", ENTER)
    browser.until(lambda: browser.run("return 'release' in window"))
    browser.press(BACKSPACE * 16, "Feed the c")
    browser.run("release()")
    page.lists("Water the plants")
    browser.press("at", ENTER)
    page.lists("Feed the cat", "Water the plants")


def test_late_answer_to_an_earlier_search_is_left_out(browser: Browser, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    page.add("Feed the cat")
    browser.run(HOLD_THE_FIRST_ANSWER)
    browser.paste("[type=search]", "cat")
    browser.until(lambda: browser.run("return 'release' in window"))
    browser.paste("[type=search]", "plants")
    page.lists("Water the plants")
    browser.run("release(); return new Promise(done => setTimeout(done))")  # after all that it brings about
    assert page.titles() == ["Water the plants"]


def test_login_belongs_to_the_tab(browser: Browser, app: Todo, page: Page) -> None:
    page.register()
    page.add("Water the plants")
    browser("POST", "/refresh")
    page.lists("Water the plants")
    Page(browser, app.url)
    assert page.shows("#account")
    assert not page.shows("ul")
    browser("DELETE", "/window")
    browser.go_to_tab(page.tab)
    assert browser.run("return [localStorage.length, document.cookie]") == [0, ""]


def test_keyboard_is_enough(browser: Browser, page: Page) -> None:
    def has_focus(name: str) -> None:
        browser.until(lambda: browser.run(FOCUSED) == name)

    has_focus("Email")
    browser.press("keyboard@example.com", TAB, PASSWORD, TAB)
    has_focus("Log in")
    browser.press(TAB)
    has_focus("Create an account")
    browser.press(ENTER)
    has_focus("New task")
    browser.press("Water the plants", ENTER)
    page.lists("Water the plants")
    browser.press("Feed the cat", ENTER)  # the focus has stayed
    page.lists("Feed the cat", "Water the plants")
    for name in ("Add", "Show", "Search", "Feed the cat", "Title"):
        browser.press(TAB)
        has_focus(name)
    browser.press(BACKSPACE * 3, "dog", LEFT, ENTER)
    page.lists("Feed the dog", "Water the plants")
    browser.press(SHIFT_TAB)  # from where it was
    has_focus("Feed the dog")
    browser.press(SPACE)
    page.sees("#count", "1 of 2 done")
    has_focus("Feed the dog")
    browser.press(TAB, TAB)
    has_focus("Delete")
    browser.press(ENTER)
    page.lists("Water the plants")
    browser.press(TAB)
    has_focus("Water the plants")  # the next row's, since this one is gone
    browser.press(SPACE)
    page.sees("#count", "1 of 1 done")
    browser.press(SHIFT_TAB, SHIFT_TAB)
    has_focus("Show")
    browser.press("P")
    page.lists()
    browser.press(SHIFT_TAB, SHIFT_TAB, SHIFT_TAB)
    has_focus("Log out")
    browser.press(ENTER)
    has_focus("Email")
    assert page.failures() == []


def test_retry_works_by_keyboard(browser: Browser, page: Page) -> None:
    page.register()
    with offline(browser):
        browser.press("Water the plants", ENTER)
        page.is_told(NOT_REACHED)
    browser.press(SHIFT_TAB)
    assert browser.run(FOCUSED) == "Try again"
    browser.press(ENTER)
    page.lists("Water the plants")
    browser.press(TAB)  # from where the button was
    assert browser.run(FOCUSED) == "New task"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = install("axe", tmp_path_factory.mktemp("node"))
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@contextmanager
def device(browser: Browser, width: int, scheme: str) -> Iterator[None]:
    browser.chrome("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.chrome("Emulation.setDeviceMetricsOverride", **screen)
    try:
        yield
    finally:
        browser.chrome("Emulation.clearDeviceMetricsOverride")
        browser.chrome("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_accessibility(browser: Browser, page: Page, axe: str, width: int, scheme: str) -> None:
    def check() -> None:
        result = browser.run(f"{axe}; return axe.run()")
        problems = [(item["id"], [node["html"] for node in item["nodes"]]) for item in result["violations"]]
        assert problems == []
        assert len(result["passes"]) > 20
        assert browser.run("return document.documentElement.scrollWidth") <= width

    with device(browser, width, scheme):
        check()
        page.enter("login", "nobody@example.com")
        page.is_told("Wrong .+")
        check()
        page.enter("register", f"{scheme}{width}.{'long' * 15}@example.com")
        page.sees("#count", "Nothing here.")
        check()
        page.add("Water the plants")
        page.add("w" * 200)
        page.tick("Water the plants")
        page.sees("#count", "1 of 2 done")
        check()
        with offline(browser):
            page.delete("Water the plants")
            page.is_told(NOT_REACHED)
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
def test_page_works_under_the_path_of_a_proxy(browser: Browser, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "todo"
    folder.mkdir()
    with (copy_project(folder) / "main.py").open("a", encoding="utf-8") as main:
        main.write(BEHIND_A_PROXY.format(change))
    browser.complaints()
    with serving(folder) as server:
        page = Page(browser, server.url, "/todo/demo/")
        page.register()
        with api(page, "/todo") as client:
            for number in range(21):
                assert client.post("", json={"title": f"Task {number}"}).status_code == 201
        browser("POST", "/refresh")
        browser.click("#more")
        page.lists(*[f"Task {number}" for number in range(20, -1, -1)])
        assert browser.run("return document.links[0].href") == f"{server.url}/todo/docs"
        asked = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [url for url in asked if not url.startswith(f"{server.url}/todo/api/")] == []
        assert page.failures() == []


def test_page_runs_its_own_script_alone(browser: Browser, tmp_path: Path) -> None:
    """Its policy names the hashes of script and style; a checkout with Windows' line ends changes nothing."""
    folder = tmp_path / "todo"
    folder.mkdir()
    copy_project(folder)
    html = folder / "routes" / "demo.html"
    html.write_text(html.read_text(encoding="utf-8"), encoding="utf-8", newline="\r\n")
    browser.complaints()
    with serving(folder) as server:
        with urllib.request.urlopen(f"{server.url}/demo", timeout=30) as response:
            policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        page = Page(browser, server.url)
        page.register()
        assert page.failures() == []
        inject = (
            "const script = document.createElement('script'); script.textContent = 'document.title = 1'; "
        )
        browser.run(f"{inject} document.body.append(script)")
        assert browser.run("return document.title") == "Todo"
        assert page.failures() == ["an error in the page"]  # the policy refuses it, and says so


def test_page_needs_no_other_file() -> None:
    html = (ROOT / "routes" / "demo.html").read_text(encoding="utf-8")
    assert re.findall(r"\b(?:src|href)=\"(?!data:)[^\"]*\"", html) == ['href="docs"']
    assert not re.search(r"innerHTML|localStorage| on\w+=| style=", html)


def test_no_demo_with_better_auth(tmp_path: Path) -> None:
    with todo(tmp_path / "todo", BETTER_AUTH_URL="http://localhost:3000", BETTER_AUTH_SECRET="") as app:
        assert app.server.status("/demo", {}) == 404
