"""Tokens as Better Auth issues them, and a key server that rotates keys, hangs or sends garbage."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from fastapi.testclient import TestClient

import auth
from hardening.keys import KeyRing
from tests.conftest import Clock, app_with, check_error, check_refused, check_unavailable, until
from tests.support.counting import counted
from tests.support.environment import SECRET
from tests.support.server import copy_project, serving

RSA = rsa.generate_private_key(65537, 2048)


class Key:
    """A private key, and its public half as Better Auth lists it: with alg and kid, without use."""

    def __init__(self, alg: str = "EdDSA") -> None:
        self.alg, self.kid = alg, uuid.uuid4().hex
        curves: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES512": ec.SECP521R1()}
        self.private: Any = RSA
        if alg == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        elif alg in curves:
            self.private = ec.generate_private_key(curves[alg])
        public = jwt.get_algorithm_by_name(alg).to_jwk(self.private.public_key())
        listed = {name: value for name, value in json.loads(public).items() if name not in ("key_ops", "use")}
        self.jwk = listed | {"alg": alg, "kid": self.kid}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        header = {"kid": self.kid, "typ": None} | header
        return jwt.encode(claims, self.private, header.pop("alg", self.alg), header)


USER = "kf3RE1FJHOUvMJqXKjBJnFEP7boZdP9K"


class BetterAuth:
    """A key server, and an app that trusts it."""

    client: TestClient

    def __init__(self) -> None:
        self.awake = threading.Event()
        self.reset()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(BrokenPipeError):  # the client has timed out
                    self.respond()

            def respond(self) -> None:
                assert self.path == outer.path
                outer.asked += 1
                if outer.drips:
                    self.send_response(200)
                    self.end_headers()
                while not outer.awake.wait(0.2):
                    if outer.drips:
                        self.wfile.write(b" ")
                status, body = outer.response()
                if not outer.drips:
                    self.send_response(status)
                    self.send_header("Location", "http://127.0.0.1:1/")
                    self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def reset(self) -> None:
        self.keys = [Key()]
        self.path = "/api/auth/jwks"
        self.asked = 0
        self.drips = False  # while it is not awake: whether it sends one byte now and then
        self.response: Any = lambda: (200, json.dumps({"keys": [key.jwk for key in self.keys]}).encode())
        self.awake.set()

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iat": now, "exp": now + 900, "sub": USER, "iss": self.origin}
        claims |= {"aud": self.origin, "name": "Ann", "email": "ann@example.com", "emailVerified": False}
        return claims | {"image": None, "id": claims["sub"]} | changes

    def token(self, key: Key | None = None, **changes: Any) -> str:
        return (key or self.keys[0]).sign(self.claims(**changes))

    def get(self, bearer: str, path: str = f"/api/{USER}/tasks") -> Any:
        return self.client.get(path, headers={"Authorization": f"Bearer {bearer}"})

    def rotate(self, alg: str = "EdDSA") -> None:
        self.keys.insert(0, Key(alg))

    def close(self) -> None:
        self.awake.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[BetterAuth]:
    server = BetterAuth()
    yield server
    server.close()


@pytest.fixture(scope="module")
def app(server: BetterAuth, client: TestClient) -> Iterator[TestClient]:  # client has made the tables
    with app_with(BETTER_AUTH_URL=server.origin, CORS_ORIGINS="") as app:
        yield app


@pytest.fixture
def better_auth(server: BetterAuth, app: TestClient, monkeypatch: pytest.MonkeyPatch) -> BetterAuth:
    """The server, reset, and an app that has not asked it for keys yet."""
    server.reset()
    server.client = app
    monkeypatch.setattr(auth, "key_ring", KeyRing(f"{server.origin}/api/auth"))
    return server


WRONG_ALGORITHM = "Token is signed with the wrong algorithm"
UNKNOWN_KEY = "Token is signed with an unknown key"
FORGED = "Token was changed, or signed with another secret or key"

# Good tokens


@pytest.mark.parametrize("alg", ["EdDSA", "ES256", "ES512", "PS256", "RS256"])
def test_tokens_of_each_algorithm_are_accepted(better_auth: BetterAuth, alg: str) -> None:
    better_auth.rotate(alg)
    with counted() as cost:
        assert better_auth.get(better_auth.token()).status_code == 200
    assert (cost(), better_auth.asked) == (1, 1)
    me = better_auth.get(better_auth.token(), "/api/auth/me").json()
    assert (me["id"], me["email"], me["created_at"]) == (USER, "ann@example.com", None)


def test_token_with_our_own_issuer_is_refused(better_auth: BetterAuth) -> None:
    response = better_auth.get(better_auth.token(iss="todo-api", generation=0))
    check_refused(response, f"Token's issuer is not {better_auth.origin}")


def test_built_in_accounts_and_demo_are_off(better_auth: BetterAuth) -> None:
    paths = better_auth.client.get("/openapi.json").json()["paths"]
    for path in ("register", "signup", "login", "signin", "logout", "password"):
        check_error(better_auth.client.post(f"/api/auth/{path}"), 404, "not_found")
        assert f"/api/auth/{path}" not in paths
    check_error(better_auth.client.delete("/api/auth/me"), 405, "method_not_allowed")
    assert list(paths["/api/auth/me"]) == ["get"]
    check_error(better_auth.client.get("/demo"), 404, "not_found")
    assert "demo" not in better_auth.client.get("/").json()


def test_keys_are_fetched_below_the_base_path(better_auth: BetterAuth) -> None:
    better_auth.path = "/sign-in/jwks"
    with app_with(BETTER_AUTH_URL=f"{better_auth.origin}/sign-in/", CORS_ORIGINS="") as client:
        better_auth.client = client
        assert better_auth.get(better_auth.token()).status_code == 200
        url = f"{better_auth.origin}/sign-in"
        response = better_auth.get(better_auth.token(iss=url, aud=url))
        assert check_error(response, 401, "unauthorized").startswith("Token's issuer is not")
        assert f"{better_auth.origin}/sign-in/token" in client.get("/openapi.json").text


CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "another issuer": ({"iss": "http://elsewhere.example"}, "Token's issuer is not {}"),
    "another audience": ({"aud": "http://elsewhere.example"}, "Token's audience is not {}"),
    "no iss": ({"iss": None}, "Token lacks a required claim"),
    "no aud": ({"aud": None}, "Token lacks a required claim"),
    "expired": ({"exp": 1}, "Token has expired"),
}


@pytest.mark.parametrize(("changes", "message"), CLAIMS.values(), ids=CLAIMS)
def test_claims_are_checked_and_the_message_names_the_mistake(
    better_auth: BetterAuth, changes: dict[str, Any], message: str
) -> None:
    claims = better_auth.claims(**changes)
    bearer = better_auth.keys[0].sign({name: value for name, value in claims.items() if value is not None})
    check_refused(better_auth.get(bearer), message.format(better_auth.origin))


# Which keys count, and when they are fetched


def test_each_rotated_key_is_accepted_on_its_first_use(better_auth: BetterAuth) -> None:
    for _ in range(4):
        assert better_auth.get(better_auth.token()).status_code == 200
        better_auth.rotate()
    assert better_auth.asked == 4
    assert better_auth.get(better_auth.token(better_auth.keys[-1])).status_code == 200
    assert better_auth.asked == 4


def test_withdrawn_key_is_forgotten_after_an_hour(better_auth: BetterAuth, uptime: Clock) -> None:
    """A token whose signature was checked before is refused too."""
    bearer = better_auth.token()
    assert better_auth.get(bearer).status_code == 200
    old = better_auth.keys[0]
    better_auth.keys = [Key()]
    uptime.forward(3590)
    assert better_auth.get(bearer).status_code == 200
    assert better_auth.asked == 1
    uptime.forward(20)
    check_refused(better_auth.get(bearer), UNKNOWN_KEY)
    check_refused(better_auth.get(better_auth.token(old, n=1)), UNKNOWN_KEY)
    assert better_auth.asked == 2
    uptime.forward(11)
    assert better_auth.get(better_auth.token()).status_code == 200


def test_known_keys_work_while_server_is_down(
    better_auth: BetterAuth, uptime: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert better_auth.get(better_auth.token()).status_code == 200
    better_auth.response = lambda: (500, b"")
    for hour in range(24):
        uptime.forward(3600)
        assert better_auth.get(better_auth.token(hour=hour)).status_code == 200
    check_unavailable(better_auth.get(Key().sign(better_auth.claims())))
    assert f"No keys from {better_auth.origin}/api/auth/jwks: " in caplog.text
    assert better_auth.asked == 1 + 24  # once an hour: a server that has just failed is not asked again


def test_failed_server_is_asked_again_after_ten_seconds(better_auth: BetterAuth, uptime: Clock) -> None:
    working = better_auth.response
    better_auth.response = lambda: (500, b"")
    bearer = better_auth.token()
    check_unavailable(better_auth.get(bearer))
    better_auth.response = working
    check_unavailable(better_auth.get(bearer))
    assert better_auth.asked == 1
    uptime.forward(10.1)
    assert better_auth.get(bearer).status_code == 200
    check_refused(better_auth.get(Key().sign(better_auth.claims())), UNKNOWN_KEY)


def test_flood_of_unknown_kids_fetches_once_in_ten_seconds(better_auth: BetterAuth, uptime: Clock) -> None:
    assert better_auth.get(better_auth.token()).status_code == 200
    for _ in range(3):
        for seconds in (0, 0, 0, 0, 7, 3.1):
            check_refused(better_auth.get(Key().sign(better_auth.claims())), UNKNOWN_KEY)
            uptime.forward(seconds)
    assert better_auth.asked == 1 + 3


def test_flood_delays_a_rotated_key_ten_seconds_at_most(better_auth: BetterAuth, uptime: Clock) -> None:
    check_refused(better_auth.get(Key().sign(better_auth.claims())), UNKNOWN_KEY)
    better_auth.rotate()
    bearer = better_auth.token()
    check_refused(better_auth.get(bearer), UNKNOWN_KEY)
    uptime.forward(10.5)
    assert better_auth.get(bearer).status_code == 200


def be_patient(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app waits a minute for keys, since this machine may be slow; returns its key ring."""
    ring = auth.key_ring
    monkeypatch.setattr(ring, "TIMEOUT", 60)
    return ring


def test_many_requests_that_need_a_new_key_share_one_fetch(
    better_auth: BetterAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = be_patient(monkeypatch)
    better_auth.awake.clear()
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(better_auth.get, better_auth.token(n=number)) for number in range(20)]
        try:
            until(lambda: ring.fetching.statistics().tasks_waiting == 19)
        finally:
            better_auth.awake.set()
        assert {request.result().status_code for request in waiting} == {200}
    assert better_auth.asked == 1


def test_empty_key_list_is_valid(better_auth: BetterAuth) -> None:
    """Better Auth has none between the end of the old keys and the first use of a new one."""
    better_auth.response = lambda: (200, b'{"keys": []}')
    check_refused(better_auth.get(better_auth.token()), UNKNOWN_KEY)


# When the server fails


@pytest.mark.slow
@pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
def test_hanging_server_costs_one_timeout_for_all(better_auth: BetterAuth, drips: bool) -> None:
    """No request waits for two timeouts. A server that only sends a byte now and then hangs, too."""
    better_auth.drips = drips
    better_auth.awake.clear()
    bearers = [better_auth.token(n=number) for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        try:
            for response in pool.map(better_auth.get, bearers, timeout=15):
                check_unavailable(response)
        finally:
            better_auth.awake.set()
    assert better_auth.asked == 1


def test_other_requests_do_not_wait_while_the_server_hangs(
    better_auth: BetterAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    assert better_auth.get(better_auth.token()).status_code == 200
    better_auth.awake.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(better_auth.get, Key().sign(better_auth.claims()))
        until(lambda: better_auth.asked == 2)
        assert better_auth.client.get("/health").status_code == 200
        assert better_auth.get(better_auth.token(another="token")).status_code == 200
        assert not waiting.done()
        better_auth.awake.set()
        check_refused(waiting.result(), UNKNOWN_KEY)


def test_tokens_with_a_known_key_do_not_wait_while_the_keys_are_refreshed(
    better_auth: BetterAuth, uptime: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = be_patient(monkeypatch)
    assert better_auth.get(better_auth.token()).status_code == 200
    uptime.forward(3601)
    better_auth.awake.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(better_auth.get, better_auth.token(n=1))
        until(lambda: better_auth.asked == 2)
        assert better_auth.get(better_auth.token(n=2)).status_code == 200
        assert ring.fetching.locked()
        better_auth.awake.set()
        assert first.result().status_code == 200


BAD_RESPONSES = {
    "HTML": (200, b"<!doctype html>"),
    "not UTF-8": (200, b"\xff\xfe"),
    "array": (200, b"[]"),
    "no keys": (200, b"{}"),
    "keys of text": (200, b'{"keys": ["x"]}'),
    "unusable keys": (200, b'{"keys": [{"kty": "OKP"}]}'),
    "404": (404, b"{}"),
    "redirect": (302, b""),
    "too deep": (200, b"[" * 100_000),
}


@pytest.mark.parametrize("bad", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_bad_key_response_is_a_logged_503(
    better_auth: BetterAuth, caplog: pytest.LogCaptureFixture, bad: tuple[int, bytes]
) -> None:
    better_auth.response = lambda: bad
    check_unavailable(better_auth.get(better_auth.token()))
    assert f"No keys from {better_auth.origin}/api/auth/jwks: " in caplog.text


# Hostile tokens


def test_tokens_signed_with_the_shared_secret_are_refused(better_auth: BetterAuth) -> None:
    """Not even Better Auth's own: it signs email verifications and its cookie cache with HS256."""
    claims = better_auth.claims()
    public = better_auth.keys[0].private.public_key()
    public_bytes = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    for key in (SECRET.encode(), public_bytes, better_auth.keys[0].jwk["x"].encode()):
        for header in ({}, {"kid": better_auth.keys[0].kid}):
            check_refused(better_auth.get(jwt.encode(claims, key, "HS256", header)), WRONG_ALGORITHM)
    check_refused(better_auth.get(jwt.encode(claims, "", "none")), WRONG_ALGORITHM)
    assert better_auth.asked == 0


def test_algorithm_and_key_must_belong_together(better_auth: BetterAuth) -> None:
    better_auth.rotate("PS256")
    pss, eddsa = better_auth.keys
    check_refused(better_auth.get(pss.sign(better_auth.claims(), alg="RS256")), WRONG_ALGORITHM)
    check_refused(better_auth.get(Key().sign(better_auth.claims(), kid=pss.kid)), WRONG_ALGORITHM)
    check_refused(better_auth.get(Key().sign(better_auth.claims(), kid=eddsa.kid)), FORGED)


def test_symmetric_key_in_the_list_is_not_used(better_auth: BetterAuth) -> None:
    octets = jwt.utils.base64url_encode(b"0" * 32).decode()
    body = {"keys": [{"kty": "oct", "alg": "HS256", "kid": "o", "k": octets}, better_auth.keys[0].jwk]}
    better_auth.response = lambda: (200, json.dumps(body).encode())
    bearer = jwt.encode(better_auth.claims(), b"0" * 32, "HS256", {"kid": "o"})
    check_refused(better_auth.get(bearer), WRONG_ALGORITHM)
    assert better_auth.get(better_auth.token()).status_code == 200


def with_header(header: dict[str, Any], key: Key, claims: dict[str, Any]) -> str:
    """A token with a true signature over a header that PyJWT would not write."""
    head = [jwt.utils.base64url_encode(json.dumps(part).encode()).decode() for part in (header, claims)]
    signature = key.private.sign(".".join(head).encode())
    return ".".join([*head, jwt.utils.base64url_encode(signature).decode()])


KIDS: dict[str, dict[str, Any]] = {
    "missing": {},
    "empty": {"kid": ""},
    "path": {"kid": "../../../../etc/passwd"},
    "number": {"kid": 1},
    "null": {"kid": None},
    "list": {"kid": ["x"]},
}


@pytest.mark.parametrize("header", KIDS.values(), ids=KIDS)
def test_odd_kids_are_refused(better_auth: BetterAuth, header: dict[str, Any]) -> None:
    bearer = with_header({"alg": "EdDSA"} | header, better_auth.keys[0], better_auth.claims())
    check_error(better_auth.get(bearer), 401, "unauthorized")


def test_keys_in_the_token_itself_are_not_used(better_auth: BetterAuth) -> None:
    forged, attacker = Key(), BetterAuth()
    attacker.keys = [forged]
    for header in (
        {"jwk": forged.jwk},
        {"jku": f"{attacker.origin}/api/auth/jwks"},
        {"x5u": f"{attacker.origin}/api/auth/jwks"},
        {"x5c": ["AAAA"]},
    ):
        check_refused(better_auth.get(forged.sign(better_auth.claims(), **header)), UNKNOWN_KEY)
        known = forged.sign(better_auth.claims(), **header, kid=better_auth.keys[0].kid)
        check_refused(better_auth.get(known), FORGED)
    assert attacker.asked == 0
    attacker.close()


@pytest.mark.slow
def test_real_server_in_production_needs_only_the_url(tmp_path: Path) -> None:
    keys = BetterAuth()
    settings = {"ENVIRONMENT": "production", "DATABASE_URL": "sqlite:///x.db", "BETTER_AUTH_URL": keys.origin}
    with serving(copy_project(tmp_path), **settings) as server:
        path = f"/api/{USER}/tasks"
        assert server.status(path, {"Authorization": f"Bearer {keys.token()}"}) == 200
        assert server.status(path, {"Authorization": f"Bearer {Key().sign(keys.claims())}"}) == 401
        assert server.status("/api/auth/register", {}) == 404
        _, output = server.end()
    assert f"Tokens: of {keys.origin}" in output
    assert not (tmp_path / ".env").exists()
    keys.close()
