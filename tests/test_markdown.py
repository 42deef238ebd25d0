"""The docs are true: what they name exists, and what they quote is code."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from sqlalchemy import event

import db
import routes.tasks
from hardening.settings import ROOT, Settings
from tests.conftest import UserClient, another_app, check_error
from tests.support.accounts import Account

BOX = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def boxes(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return [(language, dedent(content)) for language, content in BOX.findall(text)]


def named_in(text: str) -> Iterator[str]:
    """Text between backticks, and each word of a command."""
    yield from re.findall(r"`([^`\n]+)`", BOX.sub("", text))
    for language, content in boxes(text):
        if language in ("sh", "powershell"):
            yield from content.split()


GITIGNORE = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
left_out = shutil.ignore_patterns(".git", *(line.strip("/") for line in GITIGNORE))


def paths_in(folder: Path) -> Iterator[str]:
    """All that a clone has: /main.py, /routes/, /routes/tasks.py"""
    names = [path.name for path in folder.iterdir()]
    for path in sorted(folder / name for name in {*names} - left_out(str(folder), names)):
        yield f"/{path.relative_to(ROOT).as_posix()}" + "/" * path.is_dir()
        if path.is_dir():
            yield from paths_in(path)


def read(path: str) -> str:
    return (ROOT / path.lstrip("/")).read_text(encoding="utf-8")


PATHS = list(paths_in(ROOT))
CODE = {path: read(path) for path in PATHS if path.endswith(".py")}
DOCS = {path[1:]: read(path) for path in PATHS if path.endswith(".md")}
NAMED = {doc: set(named_in(text)) for doc, text in DOCS.items()}
LEARN = DOCS["docs/learn.md"]
MADE_BY_EXERCISES = {*re.findall(r"^# (\S+), new$", LEARN, re.MULTILINE), "/api/{user_id}/tags"}
DELETED_WITH_EXERCISES = {"tests/real/test_exercises.py"}

every_doc = pytest.mark.parametrize("doc", DOCS)


# What the docs name


@every_doc
def test_files_exist(doc: str) -> None:
    pattern = re.compile(r"([\w./-]*\.(?:html|mako|md|png|py|toml|txt)|[\w.-]+/|\.ci/\w+)(::\w+)?")
    found = [match for name in NAMED[doc] if (match := pattern.fullmatch(name))]
    files = {match[1] for match in found} - MADE_BY_EXERCISES - DELETED_WITH_EXERCISES
    assert [file for file in files if not any(path.endswith(f"/{file}") for path in PATHS)] == []


@every_doc
def test_tests_exist(doc: str) -> None:
    named = [name.split("::") for name in NAMED[doc] if "::" in name]
    for file, function in named:
        assert any(f"def {function}(" in CODE[path] for path in CODE if path.endswith(f"/{file}")), function


@every_doc
def test_linked_files_exist(doc: str) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", BOX.sub("", DOCS[doc]))
    assert [target for target in targets if not (ROOT / doc).parent.joinpath(target).exists()] == []


@every_doc
def test_functions_and_classes_are_where_links_say(doc: str) -> None:
    for name, target in re.findall(r"\[`(\w+)`\]\(([^)]+)\)", DOCS[doc]):
        code = (ROOT / doc).parent.joinpath(target).read_text(encoding="utf-8")
        assert re.search(rf"^(?:(?:async )?def |class )?{name}\b", code, re.MULTILINE), name


OF_OTHERS = {
    "due_date",
    "drop_column",
    "FORWARDED_ALLOW_IPS",
    "NEXT_PUBLIC_API_URL",
    "is_completed",
    "max_client_conn",
}


@every_doc
def test_names_exist(doc: str) -> None:
    """Names of functions, classes, constants and settings: all that look like a name in code."""
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", DOCS[doc]))
    named |= {name for name in NAMED[doc] if re.fullmatch(r"[a-z]+_\w+|(?:[A-Z][a-z]+){2,}", name)}
    code = [CODE[path] for path in CODE if path != "/tests/test_markdown.py"]
    code += [content for language, content in boxes(LEARN) if language == "python"]
    unknown = named - set(re.findall(r"\w+", "\n".join(code))) - OF_OTHERS
    assert [name for name in unknown if "OTEL_" not in name] == []


def test_every_setting_is_described() -> None:
    for name in Settings.model_fields:
        assert f"`{name.upper()}`" in DOCS["CLAUDE.md"]
        assert f"\n{name.upper()}=" in read(".env.example")


OF_BETTER_AUTH = {"/api/auth", "/api/auth/token"}


@every_doc
def test_endpoints_exist(client: TestClient, doc: str) -> None:
    pattern = re.compile(r"(?:([A-Z]+) )?(/(?:api|demo|docs|health|openapi|redoc)[\w{}/.]*)")
    for match in filter(None, map(pattern.fullmatch, NAMED[doc] - OF_BETTER_AUTH - MADE_BY_EXERCISES)):
        response = client.request(match[1] or "GET", match[2].replace("{", "").replace("}", ""))
        assert response.status_code not in ({404, 405} if match[1] else {404}), match[0]


@every_doc
def test_programs_are_installed_by_our_requirements(doc: str) -> None:
    requirements = read("requirements.txt") + read("pyproject.toml")
    for name in re.findall(r"\.venv[/\\](?:bin|Scripts)[/\\](\w+)", DOCS[doc]):
        assert name in ("python", "pip") or re.search(rf"\b{name}\b.*>=", requirements), name


def test_workflow_runs_the_test_commands_of_the_readme() -> None:
    commands = re.findall(r"command: (.+)", read(".github/workflows/ci.yml"))
    lines = "\n".join(content for _, content in boxes(DOCS["README.md"])).splitlines()
    assert commands[0] == ".ci/run"
    assert len(commands) == 3
    assert [command for command in commands[1:] if command not in lines] == []


# docs/learn.md


def test_quoted_code_is_in_its_file() -> None:
    quotes = [content.splitlines() for _, content in boxes(LEARN) if re.match(r"# \S+\.py\n", content)]
    assert quotes
    for file, *lines in quotes:
        code = read(file.removeprefix("# ")).splitlines()
        assert [line for line in lines if line not in code] == []


(CLEAN_UP,) = (content for _, content in boxes(LEARN) if "clean_up" in content)


@pytest.mark.parametrize("built_in_login", [True, False])
def test_two_statements_in_a_transaction_happen_both_or_not_at_all(
    user: UserClient, ann: Account, built_in_login: bool
) -> None:
    """The endpoint of docs/learn.md. At first its second statement fails."""
    if built_in_login:
        user = UserClient(user.client, ann.id)
        user.headers = {"Authorization": f"Bearer {ann.login()}"}
    router = APIRouter(prefix="/api/{user_id}/tasks")
    exec(CLEAN_UP, vars(routes.tasks) | {"router": router, "transaction": db.transaction})
    app = another_app()
    app.include_router(router)
    user.create("done", completed=True)
    user.create("open")

    def fail(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        if "INSERT" in sql:
            raise RuntimeError

    with TestClient(app, raise_server_exceptions=False) as client:
        event.listen(db.engine, "before_cursor_execute", fail)
        response = client.post(f"{user.path}/clean-up", headers=user.headers)
        event.remove(db.engine, "before_cursor_execute", fail)
        check_error(response, 500, "internal_error")
        assert user.titles() == ["open", "done"]
        assert client.post(f"{user.path}/clean-up", headers=user.headers).status_code == 204
        assert user.titles() == ["Celebrate", "open"]
