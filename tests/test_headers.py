"""Headers that all responses have."""

import base64
import hashlib
import re

import pytest
from fastapi.testclient import TestClient

from tests.conftest import Caller

PATHS = ["/", "/health", "/docs", "/redoc", "/demo", "/openapi.json", "/nowhere", "/api/x/tasks"]


@pytest.mark.parametrize("path", PATHS)
def test_content_types_are_not_guessed(client: TestClient, path: str) -> None:
    assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_responses_with_tasks_are_not_stored(user: Caller) -> None:
    task = user.make()
    for path in ("", f"/{task['id']}", "/999999999999"):
        assert user("GET", path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/api/auth/login", "/api/auth/register", "/api/auth/me"])
def test_responses_about_accounts_are_not_stored(client: TestClient, path: str) -> None:
    assert client.post(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_talk_to_no_other_host(client: TestClient, page: str) -> None:
    policy = client.get(page).headers["content-security-policy"]
    assert policy == "default-src 'self' 'unsafe-inline' data: blob:"


def test_page_may_use_its_own_script_and_style_alone(client: TestClient) -> None:
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
