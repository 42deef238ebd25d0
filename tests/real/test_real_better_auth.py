"""Tokens of a real Better Auth server, which runs in Node.js: see better_auth/server.js."""

import os
import re
import secrets
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hardening.settings import ROOT
from tests.conftest import check_error, until
from tests.faults.conftest import Cluster, running
from tests.support.node import install
from tests.support.server import free_port, serving

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
HTTP: dict[str, Any] = {"trust_env": False, "timeout": 60}  # Node may be slow at first


class Member:
    """A user who signed up at Better Auth and calls the API with its tokens."""

    def __init__(self, auth_url: str, api_url: str) -> None:
        self.auth_url, self.api_url = auth_url, api_url
        self.email = f"{uuid.uuid4().hex}@example.com"
        account = {"email": self.email, "password": PASSWORD, "name": "Ann"}
        signed_up = httpx2.post(f"{auth_url}/sign-up/email", json=account, **HTTP)
        assert signed_up.status_code == 200, signed_up.text
        self.cookies = signed_up.cookies
        self.session_token = signed_up.json()["token"]
        self.id = signed_up.json()["user"]["id"]
        self.tasks = f"/api/{self.id}/tasks"

    def token(self) -> str:
        response = httpx2.get(f"{self.auth_url}/token", cookies=self.cookies, **HTTP)
        assert response.status_code == 200, response.text
        return str(response.json()["token"])

    def call(self, token: str, method: str, path: str, json: object = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.request(method, self.api_url + path, headers=headers, json=json, **HTTP)

    def check_access(self, token: str) -> None:
        created = self.call(token, "POST", self.tasks, json={"title": "Water the plants"})
        assert created.status_code == 201, created.text
        assert created.json()["user_id"] == self.id
        assert created.json() in self.call(token, "GET", self.tasks).json()
        me = self.call(token, "GET", "/api/auth/me").json()
        assert me == {"id": self.id, "email": self.email, "created_at": None}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install("better_auth", tmp_path_factory.mktemp("node"))


@contextmanager
def better_auth(node: Path, path: str = "", **variables: str) -> Iterator[str]:
    """The BETTER_AUTH_URL of a server."""
    url = f"http://localhost:{free_port()}{path}"
    environment = os.environ | {"BETTER_AUTH_URL": url, "BETTER_AUTH_SECRET": secrets.token_hex(32)}
    with Path(node, "log").open("w") as log:
        process = subprocess.Popen(
            ["node", "server.js"], cwd=node, env=environment | variables, stdout=log, stderr=log
        )
        try:
            until(lambda: process.poll() is not None or listens(url), 60)
            assert process.poll() is None, Path(node, "log").read_text(encoding="utf-8")
            yield url
        finally:
            process.kill()
            process.wait()


def listens(url: str) -> bool:
    try:
        return httpx2.get(url, **HTTP).status_code > 0
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize(
    ("path", "base_path"), [("", "/api/auth"), ("/auth", "")], ids=["usual path", "another base path"]
)
def test_members_have_access_to_their_own_tasks_only(
    node: Path, clone: Path, path: str, base_path: str
) -> None:
    with better_auth(node, path) as url, serving(clone, BETTER_AUTH_URL=url) as api:
        ann, ben = Member(url + base_path, api.url), Member(url + base_path, api.url)
        ann.check_access(ann.token())
        ben.check_access(ben.token())
        check_error(ben.call(ben.token(), "GET", ann.tasks), 403, "forbidden")
        message = check_error(ann.call(ann.session_token, "GET", ann.tasks), 401, "unauthorized")
        assert message == "Token is not a JWT"


def test_new_key_is_accepted_at_once_and_a_withdrawn_one_is_refused(node: Path, clone: Path) -> None:
    with better_auth(node) as url, serving(clone, BETTER_AUTH_URL=url) as api:

        def keys(change: str) -> None:
            assert httpx2.post(f"{url}/{change}-keys", **HTTP).status_code == 200

        ann = Member(f"{url}/api/auth", api.url)
        first = ann.token()
        ann.check_access(first)
        keys("expire")
        second = ann.token()
        ann.check_access(second)
        ann.check_access(first)  # its key has expired, but is listed for 30 days

        keys("withdraw-expired")
        keys("expire")
        ann.check_access(ann.token())  # which makes the API fetch the keys
        ann.check_access(second)
        message = check_error(ann.call(first, "GET", ann.tasks), 401, "unauthorized")
        assert message == "Token is signed with an unknown key"


def test_custom_signer_works_with_the_shared_secret(node: Path, clone: Path) -> None:
    secret = secrets.token_hex(32)
    with (
        better_auth(node, BETTER_AUTH_SECRET=secret, SIGNER="HS256") as url,
        serving(clone, BETTER_AUTH_SECRET=secret, CORS_ORIGINS=url) as api,
    ):
        ann = Member(f"{url}/api/auth", api.url)
        ann.check_access(ann.token())


def test_deleting_an_account_deletes_its_tasks(node: Path, clone: Path) -> None:
    """With the file of docs/better-auth.md, which runs as JavaScript."""
    guide = (ROOT / "docs" / "better-auth.md").read_text(encoding="utf-8")
    (file,) = [box for box in re.findall(r"```ts\n(.*?)```", guide, re.DOTALL) if "beforeDelete" in box]
    (node / "auth.mjs").write_text(file, encoding="utf-8")
    with (
        running(Cluster()) as cluster,
        better_auth(node, DATABASE_URL=cluster.url, AUTH_FILE="./auth.mjs") as auth_url,
        serving(clone, BETTER_AUTH_URL=auth_url, DATABASE_URL=cluster.url) as api,
    ):
        ann, ben = (Member(f"{auth_url}/api/auth", api.url) for _ in range(2))
        ann.check_access(ann.token())
        ben.check_access(ben.token())

        def delete(password: str) -> int:
            options = HTTP | {"cookies": ann.cookies, "headers": {"Origin": auth_url}}
            path = f"{ann.auth_url}/delete-user"
            return int(httpx2.post(path, json={"password": password}, **options).status_code)

        assert delete("wrong") == 400
        assert cluster.sql("SELECT user_id FROM tasks ORDER BY id") == [(ann.id,), (ben.id,)]
        assert delete(PASSWORD) == 200
        assert cluster.sql("SELECT user_id FROM tasks") == [(ben.id,)]
        assert cluster.sql('SELECT id FROM "user"') == [(ben.id,)]
