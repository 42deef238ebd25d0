"""Headers that all responses have."""

import base64
import hashlib
import re

import pytest
from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient

from tests.conftest import UserClient, another_app


@pytest.mark.parametrize("path", ["/", "/docs", "/demo", "/openapi.json", "/nowhere", "/api/x/tasks"])
def test_content_types_are_not_guessed(client: TestClient, path: str) -> None:
    assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_responses_with_tasks_are_not_stored(user: UserClient) -> None:
    task = user.create()
    for path in ("", f"/{task['id']}", "/999999999999"):
        assert user("GET", path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/api/auth/login", "/api/auth/register", "/api/auth/me"])
def test_responses_about_accounts_are_not_stored(client: TestClient, path: str) -> None:
    assert client.post(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_docs_pages_may_only_connect_to_this_api(client: TestClient, page: str) -> None:
    policy = client.get(page).headers["content-security-policy"]
    assert policy == "frame-ancestors 'none'; default-src 'self' 'unsafe-inline' data: blob:"


def test_own_page_may_load_anything_but_cannot_be_framed() -> None:
    app = another_app()

    @app.get("/own", response_class=HTMLResponse)
    def own() -> str:
        return "<script src='https://cdn.example.com/script.js'></script>"

    @app.get("/stricter")
    def stricter() -> HTMLResponse:
        return HTMLResponse("", headers={"Content-Security-Policy": "default-src 'none'"})

    with TestClient(app) as client:
        assert client.get("/own").headers["content-security-policy"] == "frame-ancestors 'none'"
        assert client.get("/stricter").headers["content-security-policy"] == "default-src 'none'"


def test_demo_uses_only_its_own_script_and_style(client: TestClient) -> None:
    response = client.get("/demo")
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[f"{tag}-src"] == f"'sha256-{digest}'"


@pytest.mark.parametrize(
    ("path", "status"), [("/docs//", 200), ("/api/x/tasks///", 401), ("//", 404), ("/nowhere/", 404)]
)
def test_slashes_do_not_redirect_to_the_host_header(client: TestClient, path: str, status: int) -> None:
    response = client.get(f"http://evil.example{path}", follow_redirects=False)
    assert response.status_code == status
    assert "location" not in response.headers


def test_own_route_with_a_slash_at_its_end_works_without_it() -> None:
    app = another_app()
    router = APIRouter(prefix="/tags")

    @router.get("/")
    def tags() -> str:
        return "all tags"

    app.include_router(router)
    with TestClient(app) as client:
        for path in ("/tags", "/tags/"):
            response = client.get(path, follow_redirects=False)
            assert (response.status_code, response.text) == (200, '"all tags"')
