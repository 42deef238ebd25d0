"""Tokens as Better Auth issues them, and a server of keys that can rotate, hang and talk nonsense."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from fastapi.testclient import TestClient

import auth
from tests.conftest import SECRET, check_error
from tests.server import copy_project, serving
from tests.test_start import refusal

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


class BetterAuth:
    """The keys' endpoint, and how it behaves."""

    def __init__(self) -> None:
        self.keys = [Key()]
        self.asked = 0
        self.answer: Any = lambda: (200, json.dumps({"keys": [key.jwk for key in self.keys]}).encode())
        self.awake = threading.Event()
        self.awake.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/api/auth/jwks"
                outer.asked += 1
                outer.awake.wait()
                status, body = outer.answer()
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

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iat": now, "exp": now + 900, "sub": "kf3RE1FJHOUvMJqXKjBJnFEP7boZdP9K", "iss": self.origin}
        claims |= {"aud": self.origin, "name": "Ann", "email": "ann@example.com", "emailVerified": False}
        return claims | {"image": None, "id": claims["sub"]} | changes

    def token(self, key: Key | None = None, **changes: Any) -> str:
        return (key or self.keys[0]).sign(self.claims(**changes))

    def rotate(self, alg: str = "EdDSA") -> None:
        self.keys.insert(0, Key(alg))

    def close(self) -> None:
        self.awake.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def better_auth(monkeypatch: pytest.MonkeyPatch) -> Iterator[BetterAuth]:
    server = BetterAuth()
    monkeypatch.setattr(auth, "ORIGIN", server.origin)
    monkeypatch.setattr(auth, "LEEWAY", 5)
    monkeypatch.setattr(auth, "key_ring", auth.KeyRing(server.origin))
    monkeypatch.setattr(auth, "remembered", {})
    yield server
    server.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the key ring."""
    ahead = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead[0])
    return ahead


def get(client: TestClient, bearer: str, user_id: str = "kf3RE1FJHOUvMJqXKjBJnFEP7boZdP9K") -> Any:
    return client.get(f"/api/{user_id}/tasks", headers={"Authorization": f"Bearer {bearer}"})


def refused(answer: Any, message: str) -> None:
    assert check_error(answer, 401, "unauthorized") == message
    assert answer.headers["www-authenticate"] == "Bearer"


WRONG_ALGORITHM = "Token is signed with the wrong algorithm"
UNKNOWN_KEY = "Token is signed with an unknown key"


@pytest.mark.parametrize("alg", auth.KeyRing.ALGORITHMS)
def test_tokens_of_all_its_algorithms_are_taken(
    client: TestClient, better_auth: BetterAuth, alg: str
) -> None:
    better_auth.rotate(alg)
    assert get(client, better_auth.token()).status_code == 200
    assert better_auth.asked == 1


@pytest.mark.parametrize(
    "sub", ["kf3RE1FJHOUvMJqXKjBJnFEP7boZdP9K", "1", "0193e2b4-7c1c-7bd5-8c55-0e5a1a3c2f4e"]
)
def test_user_ids_of_all_its_kinds_work(client: TestClient, better_auth: BetterAuth, sub: str) -> None:
    bearer = better_auth.token(sub=sub)
    assert get(client, bearer, sub).status_code == 200
    check_error(get(client, bearer, sub + "0"), 403, "forbidden")


def test_claims_are_checked_and_the_message_tells_which(client: TestClient, better_auth: BetterAuth) -> None:
    now = int(time.time())
    refused(get(client, better_auth.token(exp=now - 10)), "Token has expired")
    refused(get(client, better_auth.token(iat=now + 60)), "Token is not valid yet")
    refused(get(client, better_auth.token(iss="http://elsewhere.example")), "Token is from another issuer")
    refused(get(client, better_auth.token(aud="http://elsewhere.example")), "Token is for another audience")
    for name in ("sub", "exp", "iss", "aud"):
        claims = better_auth.claims()
        del claims[name]
        refused(get(client, better_auth.keys[0].sign(claims)), "Token lacks a required claim")
    refused(get(client, better_auth.token(sub=" ")), "Token is invalid")
    refused(get(client, better_auth.token()[:-8] + "AAAAAAAA"), "Token is invalid")


def test_a_few_seconds_of_clock_skew_are_forgiven(client: TestClient, better_auth: BetterAuth) -> None:
    now = int(time.time())
    for claims in ({"exp": now - 2}, {"iat": now + 3}, {"nbf": now + 3}):
        assert get(client, better_auth.keys[0].sign(better_auth.claims() | claims)).status_code == 200


def test_a_remembered_token_expires_all_the_same(
    client: TestClient, better_auth: BetterAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    bearer = better_auth.token()
    assert get(client, bearer).status_code == 200
    later = time.time() + 906
    monkeypatch.setattr(time, "time", lambda: later)
    refused(get(client, bearer), "Token has expired")


def test_memory_of_tokens_is_bounded(
    client: TestClient, better_auth: BetterAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_REMEMBERED", 3)
    for number in range(8):
        assert get(client, better_auth.token(n=number)).status_code == 200
        assert len(auth.remembered) <= 3
    get(client, better_auth.token(exp=1))
    assert all(claims["exp"] > 1 for claims in auth.remembered.values())


def test_tokens_signed_with_the_shared_secret_open_nothing(
    client: TestClient, better_auth: BetterAuth
) -> None:
    """Not even Better Auth's own: those of e-mail verification and of its cookie cache are HS256."""
    claims = better_auth.claims()
    public = better_auth.keys[0].private.public_key()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    for key in (SECRET.encode(), raw, better_auth.keys[0].jwk["x"].encode()):
        for header in ({}, {"kid": better_auth.keys[0].kid}):
            refused(get(client, jwt.encode(claims, key, "HS256", header)), WRONG_ALGORITHM)
    refused(get(client, jwt.encode(claims, "", "none")), WRONG_ALGORITHM)
    assert better_auth.asked == 0


def test_algorithm_and_key_must_belong_together(client: TestClient, better_auth: BetterAuth) -> None:
    better_auth.rotate("PS256")
    refused(get(client, better_auth.keys[0].sign(better_auth.claims(), alg="RS256")), WRONG_ALGORITHM)
    forged = Key("EdDSA")
    forged.kid = better_auth.keys[0].kid
    refused(get(client, better_auth.token(forged)), WRONG_ALGORITHM)
    forged = Key("EdDSA")
    forged.kid = better_auth.keys[1].kid
    refused(get(client, better_auth.token(forged)), "Token is invalid")


def test_a_symmetric_key_in_the_list_is_no_key(client: TestClient, better_auth: BetterAuth) -> None:
    octets = jwt.utils.base64url_encode(b"0" * 32).decode()
    body = {"keys": [{"kty": "oct", "alg": "HS256", "kid": "o", "k": octets}, better_auth.keys[0].jwk]}
    better_auth.answer = lambda: (200, json.dumps(body).encode())
    refused(get(client, jwt.encode(better_auth.claims(), b"0" * 32, "HS256", {"kid": "o"})), WRONG_ALGORITHM)
    assert get(client, better_auth.token()).status_code == 200


KIDS = ["", "../../../../etc/passwd", "' OR 1=1 --", "http://127.0.0.1:1/keys", "x" * 10_000, "\x00"]


@pytest.mark.parametrize("kid", KIDS)
def test_odd_kids_are_unknown_keys(client: TestClient, better_auth: BetterAuth, kid: str) -> None:
    refused(get(client, better_auth.keys[0].sign(better_auth.claims(), kid=kid)), UNKNOWN_KEY)


def raw(header: dict[str, Any], key: Key, claims: dict[str, Any]) -> str:
    """A token with a true signature over a header that PyJWT would not write."""
    head = [jwt.utils.base64url_encode(json.dumps(part).encode()).decode() for part in (header, claims)]
    signature = key.private.sign(".".join(head).encode())
    return ".".join([*head, jwt.utils.base64url_encode(signature).decode()])


@pytest.mark.parametrize("kid", [1, None, ["x"], {"x": 1}, True])
def test_kids_of_other_types_are_refused(client: TestClient, better_auth: BetterAuth, kid: Any) -> None:
    key = better_auth.keys[0]
    answer = get(client, raw({"alg": "EdDSA", "kid": kid}, key, better_auth.claims()))
    check_error(answer, 401, "unauthorized")


def test_a_missing_kid_is_an_unknown_key(client: TestClient, better_auth: BetterAuth) -> None:
    refused(get(client, raw({"alg": "EdDSA"}, better_auth.keys[0], better_auth.claims())), UNKNOWN_KEY)


def test_keys_that_a_token_brings_along_are_not_used(client: TestClient, better_auth: BetterAuth) -> None:
    forged = Key()
    elsewhere = BetterAuth()
    elsewhere.keys = [forged]
    for header in (
        {"jwk": forged.jwk},
        {"jku": f"{elsewhere.origin}/api/auth/jwks"},
        {"x5u": f"{elsewhere.origin}/api/auth/jwks"},
        {"x5c": ["AAAA"]},
    ):
        refused(get(client, forged.sign(better_auth.claims(), **header)), UNKNOWN_KEY)
        forged_kid = better_auth.keys[0].kid
        refused(get(client, forged.sign(better_auth.claims(), **header, kid=forged_kid)), "Token is invalid")
    assert elsewhere.asked == 0
    elsewhere.close()


def test_unknown_critical_extensions_are_refused(client: TestClient, better_auth: BetterAuth) -> None:
    key = better_auth.keys[0]
    header = {"alg": "EdDSA", "kid": key.kid, "crit": ["x"], "x": 1}
    refused(get(client, raw(header, key, better_auth.claims())), "Token is invalid")


def test_a_rotated_key_is_taken_on_its_first_use_and_so_is_the_next(
    client: TestClient, better_auth: BetterAuth
) -> None:
    for _ in range(4):
        assert get(client, better_auth.token()).status_code == 200
        better_auth.rotate()
    assert better_auth.asked == 4
    assert get(client, better_auth.token(better_auth.keys[-1])).status_code == 200
    assert better_auth.asked == 4


def test_a_flood_of_unknown_kids_asks_once_in_ten_seconds(
    client: TestClient, better_auth: BetterAuth, clock: list[float]
) -> None:
    assert get(client, better_auth.token()).status_code == 200
    for second in range(30):
        clock[0] = float(second)
        refused(get(client, Key().sign(better_auth.claims())), UNKNOWN_KEY)
    assert better_auth.asked == 1 + 3
    better_auth.rotate()
    clock[0] = 45.0
    assert get(client, better_auth.token()).status_code == 200


def test_a_rotated_key_waits_ten_seconds_at_most_for_a_flood(
    client: TestClient, better_auth: BetterAuth, clock: list[float]
) -> None:
    refused(get(client, Key().sign(better_auth.claims())), UNKNOWN_KEY)
    better_auth.rotate()
    bearer = better_auth.token()
    refused(get(client, bearer), UNKNOWN_KEY)
    clock[0] = 10.5
    assert get(client, bearer).status_code == 200


def together(client: TestClient, bearers: list[str]) -> list[Any]:
    with ThreadPoolExecutor(len(bearers)) as pool:
        return list(pool.map(lambda bearer: get(client, bearer), bearers))


def test_a_hundred_who_need_a_new_key_cost_one_fetch(client: TestClient, better_auth: BetterAuth) -> None:
    answers = together(client, [better_auth.token(n=number) for number in range(100)])
    assert {answer.status_code for answer in answers} == {200}
    assert better_auth.asked == 1


def test_a_hundred_are_answered_together_while_the_server_hangs(
    client: TestClient, better_auth: BetterAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth.KeyRing, "PATIENCE", 0.3)
    better_auth.awake.clear()
    answers = together(client, [better_auth.token(n=number) for number in range(100)])
    for answer in answers:
        check_error(answer, 503, "service_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert better_auth.asked == 1


def test_nobody_else_waits_while_the_server_hangs(
    client: TestClient, better_auth: BetterAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    bearer = better_auth.token()
    assert get(client, bearer).status_code == 200
    better_auth.awake.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, client, Key().sign(better_auth.claims()))
        while better_auth.asked < 2:
            time.sleep(0.01)
        assert client.get("/health").status_code == 200
        assert get(client, better_auth.token(another="token")).status_code == 200
        monkeypatch.setattr(auth.key_ring, "fresh_until", 0.0)
        assert get(client, better_auth.token(yet="another")).status_code == 200
        assert not waiting.done()
        better_auth.awake.set()
        refused(waiting.result(), UNKNOWN_KEY)


NONSENSE = {
    "HTML": (200, b"<!doctype html>"),
    "not UTF-8": (200, b"\xff\xfe"),
    "array": (200, b"[]"),
    "null": (200, b"null"),
    "no keys": (200, b"{}"),
    "keys null": (200, b'{"keys": null}'),
    "keys of text": (200, b'{"keys": ["x"]}'),
    "keys a number": (200, b'{"keys": 1}'),
    "unusable keys": (200, b'{"keys": [{"kty": "OKP"}]}'),
    "404": (404, b"{}"),
    "500": (500, b"oops"),
    "429": (429, b"{}"),
    "redirect": (302, b""),
    "cut short": (200, b'{"keys": ['),
    "too deep": (200, b"[" * 100_000),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_not_the_callers_fault_and_is_logged(
    client: TestClient, better_auth: BetterAuth, caplog: pytest.LogCaptureFixture, answer: tuple[int, bytes]
) -> None:
    better_auth.answer = lambda: answer
    response = get(client, better_auth.token())
    check_error(response, 503, "service_unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert f"No keys from {better_auth.origin}/api/auth/jwks: " in caplog.text


def test_no_keys_at_all_is_an_answer(client: TestClient, better_auth: BetterAuth) -> None:
    """It lists none between the end of the old keys and the first use of a new one."""
    better_auth.answer = lambda: (200, b'{"keys": []}')
    refused(get(client, better_auth.token()), UNKNOWN_KEY)


def test_known_keys_outlast_the_server_by_hours(
    client: TestClient, better_auth: BetterAuth, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    assert get(client, better_auth.token()).status_code == 200
    better_auth.close()
    for hour in range(1, 49):
        clock[0] = hour * 3600.0
        assert get(client, better_auth.token(hour=hour)).status_code == 200
    check_error(get(client, Key().sign(better_auth.claims())), 503, "service_unavailable")
    assert "No keys from" in caplog.text


def test_a_withdrawn_key_is_forgotten_within_the_hour(
    client: TestClient, better_auth: BetterAuth, clock: list[float]
) -> None:
    old = better_auth.keys[0]
    assert get(client, better_auth.token()).status_code == 200
    better_auth.keys = [Key()]
    clock[0] = auth.KeyRing.REFRESH + 1
    refused(get(client, better_auth.token(old, n=1)), UNKNOWN_KEY)
    assert get(client, better_auth.token()).status_code == 200


ORIGINS = {
    "https://app.example.com": "https://app.example.com",
    "https://app.example.com/": "https://app.example.com",
    "https://app.example.com/api/auth": "https://app.example.com",
    "https://app.example.com/api/auth/": "https://app.example.com",
    "https://App.Example.com:443": "https://app.example.com",
    "http://localhost:3000": "http://localhost:3000",
    " http://localhost:80 ": "http://localhost",
    "http://[::1]:3000": "http://[::1]:3000",
    "": None,
}


@pytest.mark.parametrize(("given", "origin"), ORIGINS.items())
def test_the_origin_is_what_better_auth_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, given: str, origin: str | None
) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", given)
    assert auth.better_auth_origin() == origin


NO_ORIGINS = [
    "localhost:3000",
    "app.example.com",
    "ftp://a.example",
    "https://",
    "https://a.example/app",
    "https://a.example?x=1",
]
NO_ORIGINS += ["https://u:p@a.example", "https://a.example:port", "https://a.example/#x", "http://[::1", "*"]


@pytest.mark.parametrize("given", NO_ORIGINS)
def test_what_is_no_origin_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", given)
    assert "BETTER_AUTH_URL is" in refusal(auth.better_auth_origin, caplog)


def test_a_real_server_needs_the_url_alone(tmp_path: Path) -> None:
    """No secret, in production; the accounts are Better Auth's."""
    keys = BetterAuth()
    settings = {
        "ENVIRONMENT": "production",
        "DATABASE_URL": "sqlite:///x.db",
        "BETTER_AUTH_URL": keys.origin + "/",
    }
    with serving(copy_project(tmp_path), **settings) as server:
        path = f"/api/{keys.claims()['sub']}/tasks"
        assert server.status(path, {"Authorization": f"Bearer {keys.token()}"}) == 200
        assert server.status(path, {"Authorization": f"Bearer {Key().sign(keys.claims())}"}) == 401
        assert server.status("/api/auth/me", {}) == 404
        assert "/api/auth" not in server.get("/openapi.json")
    assert not (tmp_path / ".env").exists()
    keys.close()
