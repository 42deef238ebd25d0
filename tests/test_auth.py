"""Tokens signed with the shared secret; the user in the path must be the user in the token."""

import asyncio
import base64
import hmac
import json
import logging
import math
import re
import time
import unicodedata
import uuid
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from fastapi.testclient import TestClient

from auth import get_current_owner
from hardening.settings import warn_once
from models import UserPublic
from tests.conftest import Clock, UserClient, app_with, check_error, check_refused, token
from tests.support.environment import ORIGIN, SECRET

SOON = int(time.time()) + 3600


def get(client: TestClient, bearer: str) -> Any:
    return client.get("/api/someone/tasks", headers={"Authorization": f"Bearer {bearer}"})


# Good tokens

GOOD_TOKENS = {
    "more claims": token(iat=int(time.time()), nbf=int(time.time()), iss="anyone", name="Ann", jti="1"),
    "exp as a fraction": token(exp=SOON + 0.5),
    "exp of 400 digits": token(exp=10**400),
    "kid in the header": jwt.encode({"sub": "someone", "exp": SOON}, SECRET, "HS256", {"kid": "k1"}),
    "8 KiB": token(filler="x" * 6035),
}


@pytest.mark.parametrize("bearer", GOOD_TOKENS.values(), ids=GOOD_TOKENS)
def test_good_tokens_are_accepted(client: TestClient, bearer: str) -> None:
    assert len(bearer) <= 8192
    assert get(client, bearer).status_code == 200


@pytest.mark.parametrize("user_id", ["x" * 255, "用户 é#%"], ids=["255 characters", "beyond ASCII"])
def test_long_and_international_user_ids_work(client: TestClient, user_id: str) -> None:
    user = UserClient(client, user_id)
    task = user.create()
    assert task["user_id"] == user_id
    assert user("GET", f"/{task['id']}").json() == task
    assert user("DELETE", f"/{task['id']}").status_code == 204


AUDIENCES: dict[str, tuple[object, bool]] = {
    "the frontend": (ORIGIN, True),
    "the other frontend": ("https://app.example.com", True),
    "a list with a frontend": (["https://elsewhere.example", ORIGIN], True),
    "null": (None, True),
    "a list of others": (["https://elsewhere.example", "x"], False),
    "a frontend and more": (f"{ORIGIN}.evil.example", False),
    "a frontend with a slash": (f"{ORIGIN}/", False),
    "number": (1, False),
    "object": ({ORIGIN: 1}, False),
}


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(("audience", "accepted"), AUDIENCES.values(), ids=AUDIENCES)
def test_audience_must_be_one_of_the_frontends_if_there_is_one(audience: object, accepted: bool) -> None:
    with app_with(CORS_ORIGINS=f"{ORIGIN}, https://app.example.com") as app:
        response = get(app, token(aud=audience))
    if accepted:
        assert response.status_code == 200
    else:
        check_refused(response, f"Token's audience is not {ORIGIN} or https://app.example.com")


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_signing_clock_may_be_a_few_seconds_ahead(client: TestClient, claim: str) -> None:
    """Better Auth says when it signed, and may run on another machine."""
    soon, later = (signed(HS256, GOOD | {claim: int(time.time()) + seconds}) for seconds in (3, 10))
    assert get(client, soon).status_code == 200
    check_refused(get(client, later), "Token is not valid yet")


def test_accepted_token_still_expires(client: TestClient, clock: Clock) -> None:
    clock.forward(-(time.time() % 1))  # to the beginning of a second
    bearer = token(exp=int(time.time()) + 60)
    for seconds in (0, 59):
        clock.forward(seconds)
        assert get(client, bearer).status_code == 200
    clock.forward(1)
    check_refused(get(client, bearer), "Token has expired")


# Bad tokens, and messages that name the mistake

WRONG_ALGORITHM = (
    "Token is signed with the wrong algorithm; for Better Auth tokens, set BETTER_AUTH_URL on this API"
)
FORGED = "Token was changed, or signed with another secret or key"


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: object, payload: object) -> str:
    """A token with a true HMAC over whatever is in it."""
    head = f"{segment(header)}.{segment(payload)}"
    return f"{head}.{segment(hmac.digest(SECRET.encode(), head.encode(), 'sha256'))}"


HS256 = {"alg": "HS256", "typ": "JWT"}
GOOD = {"sub": "someone", "exp": SOON}
EDDSA = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
MISTAKES = {
    "session token": ("kLm3xZ0q8bN1", "Token is not a JWT"),
    "four segments": (token() + ".x", "Token is not a JWT"),
    "expired": (token(exp=1), "Token has expired"),
    "not yet valid": (token(nbf=SOON), "Token is not valid yet"),
    "EdDSA, as Better Auth signs": (jwt.encode(GOOD, EDDSA, "EdDSA"), WRONG_ALGORITHM),
    "no exp": (signed(HS256, {"sub": "someone"}), "Token lacks a required claim"),
    "no sub": (signed(HS256, {"exp": SOON}), "Token lacks a required claim"),
    "another secret": (token(key="0" * 64), FORGED),
    "sub of a space": (token(" "), "The sub of the token is not a user id"),
    "sub of 256 characters": (token("x" * 256), "The sub of the token is not a user id"),
    "sub with a slash": (token("some/one"), "The sub of the token is not a user id"),
    "sub with a control character": (token("some\none"), "The sub of the token is not a user id"),
    "over 8 KiB": (token(filler="x" * 6200), "Token is longer than 8 KiB"),
}


@pytest.mark.parametrize(("bearer", "message"), MISTAKES.values(), ids=MISTAKES)
def test_message_names_the_mistake(client: TestClient, bearer: str, message: str) -> None:
    check_refused(get(client, bearer), message)


def test_refusal_is_logged_once_without_the_token(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Many frontends leave the page on a 401, so that no one can read its message."""
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for bearer in (token(exp=1), token(exp=2), "undefined", "null", jwt.encode(GOOD, EDDSA, "EdDSA")):
            assert get(client, bearer).status_code == 401
            assert bearer not in caplog.text
        assert client.get("/api/someone/tasks").status_code == 401
    reasons = [line.removeprefix("A request was refused with 401: ") for line in caplog.messages]
    assert reasons == ["Token has expired", "Token is not a JWT", WRONG_ALGORITHM, "Not authenticated"]


NO_TOKENS = {
    "no header": {},
    "no token": {"Authorization": "Bearer "},
    "another scheme": {"Authorization": f"Basic {token()}"},
    "no scheme": {"Authorization": token()},
    "cookie": {"Cookie": f"token={token()}"},
}


@pytest.mark.parametrize("headers", NO_TOKENS.values(), ids=NO_TOKENS)
def test_only_a_bearer_token_in_the_header_counts(client: TestClient, headers: dict[str, str]) -> None:
    response = client.get(f"/api/someone/tasks?token={token()}", headers=headers)
    check_refused(response, "Not authenticated")


# The owner in the path


def spellings(user_id: str) -> dict[str, str]:
    """To some programs, each of these looks like the id."""
    return {
        "upper case": user_id.upper(),
        "space": f"{user_id}%20",
        "NUL": f"{user_id}%00",
        "zero-width space": f"{user_id}%E2%80%8B",
        "combining accent": quote(unicodedata.normalize("NFD", user_id)),
        "compatibility form": quote(unicodedata.normalize("NFKC", user_id)),
        "Turkish i": user_id.replace("i", quote("ı")),  # noqa: RUF001  (that is the point)
        "Cyrillic a": user_id.replace("a", quote("а")),  # noqa: RUF001  (so is that)
        "slash": f"{user_id}%2F",
        "dots": f"x%2F..%2F{user_id}",
        "a part": quote(user_id[:-1]),
        "more": f"{quote(user_id)}A",
        "pattern": "%25",
    }


@pytest.mark.parametrize("kind", spellings("AnnaiéﬁA"))
def test_path_must_match_the_token_id_exactly(client: TestClient, kind: str) -> None:
    user_id = "Anna" + uuid.uuid4().hex + "iéﬁA"
    user = UserClient(client, user_id)
    user.create("Mine")
    path = f"/api/{spellings(user_id)[kind]}/tasks"
    assert client.get(path, headers=user.headers).status_code in (403, 404)
    assert client.post(path, headers=user.headers, json={"title": "x"}).status_code in (403, 404)
    assert user.titles() == ["Mine"]


def test_owner_comes_from_the_token() -> None:
    """Even if the comparison with the path were wrong."""

    class SameAsAnything(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __ne__(self, _other: object) -> bool:
            return False

    user = UserPublic(id="ann", email=None, created_at=None)
    assert asyncio.run(get_current_owner(SameAsAnything("bob"), user)) == "ann"


def test_no_route_serves_another_users_path(user: UserClient, another_user: UserClient) -> None:
    """All routes with parameters in their path, from /openapi.json: so new ones, too."""
    task = user.create()
    paths = user.client.get("/openapi.json").json()["paths"]
    routes = [(method.upper(), path) for path in paths if "{" in path for method in paths[path]]
    assert len(routes) >= 7
    for method, path in routes:
        assert path.startswith("/api/{user_id}/"), "a route without an owner"
        url = path.replace("{user_id}", user.user_id)
        url = re.sub(r"{\w+}", str(task["id"]), url)
        body = {"title": "stolen", "user_id": another_user.user_id, "id": task["id"]}
        response = user.client.request(method, url, json=body, headers=another_user.headers)
        check_error(response, 403, "forbidden")
        check_error(user.client.request(method, url, json=body), 401, "unauthorized")
    assert user("GET").json() == [task]
    assert another_user.titles() == []


def test_the_checks_come_in_the_order_401_403_404(user: UserClient, another_user: UserClient) -> None:
    path = f"{user.path}/999999999999"
    assert user.client.get(path).status_code == 401
    assert user.client.get(path, headers=another_user.headers).status_code == 403
    assert user.client.get(path, headers=user.headers).status_code == 404


# Hostile tokens

HOSTILE: dict[str, str] = {
    "two segments": token().rpartition(".")[0],
    "signature stripped": token().rpartition(".")[0] + ".",
    "signature edited": token()[:-2] + ("AA" if token()[-2:] != "AA" else "BB"),
    "payload edited": ".".join([token().split(".")[0], segment({"sub": "x"}), token().split(".")[2]]),
    "HS384": jwt.encode(GOOD, SECRET, "HS384"),
    "HS512": jwt.encode(GOOD, SECRET, "HS512"),
    "RS256": jwt.encode(GOOD, RSA, "RS256"),
    "ES256": jwt.encode(GOOD, EC, "ES256"),
    "EdDSA": jwt.encode(GOOD, EDDSA, "EdDSA"),
    "crit unknown": signed(HS256 | {"crit": ["x"], "x": 1}, GOOD),
    "crit empty": signed(HS256 | {"crit": []}, GOOD),
    "b64 false": signed(HS256 | {"b64": False, "crit": ["b64"]}, GOOD),
    "deep payload": signed(HS256, b"[" * 3_000),
    "deep header": signed(b"[" * 3_000, GOOD),
    "payload is an array": signed(HS256, [1]),
    "payload is no JSON": signed(HS256, b"{"),
    "header is an array": signed(["HS256"], GOOD),
    "payload is not UTF-8": signed(HS256, b'{"sub": "\xff"}'),
    "100 KiB": "x" * 100_000,
    "non-ASCII": "ü" + token(),
    "more padding": token() + "====",
    "spaces inside": token().replace(".", " . "),
    "two tokens": f"{token()}, Bearer {token()}",
    "Bearer twice": f"Bearer {token()}",
}
UNSIGNED: list[object] = ["none", "None", "NONE", "nOnE", "", None, 0, [], {}, ["HS256"]]
OTHER: list[object] = ["none", "hs256", "HS 256", "RS256", "ES256", "EdDSA", ["HS256"], {"a": 1}, None]
TIMES: list[object] = [None, "", "soon", [SOON], {}, -1, 0, math.nan, math.inf, -1e308, True]
SUBJECTS: list[object] = ["", " ", "\t", None, 1, True, [], ["someone"], {}, "a\x00b", "\ud800", "x" * 256]
HOSTILE |= {f"alg {alg!r} unsigned": f"{segment({'alg': alg})}.{segment(GOOD)}." for alg in UNSIGNED}
HOSTILE |= {f"alg {alg!r} signed": signed({"alg": alg}, GOOD) for alg in OTHER}
HOSTILE |= {
    f"kid {kid!r}": signed({"alg": "RS256", "kid": kid}, GOOD)
    for kid in ("../../../dev/null", "' OR 1=1 --", ["x"], {"x": 1}, None, 1)
}
HOSTILE |= {
    f"{name} in the header": jwt.encode(GOOD, RSA, "RS256", {name: value})
    for name, value in {
        "jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key())),
        "jku": "http://127.0.0.1:1/keys",
        "x5u": "http://127.0.0.1:1/cert",
        "x5c": ["abc"],
    }.items()
}
HOSTILE |= {f"exp {exp!r}": signed(HS256, {"sub": "someone", "exp": exp}) for exp in TIMES}
HOSTILE |= {
    f"{name} {value!r}": signed(HS256, GOOD | {name: value})
    for name in ("iat", "nbf")
    for value in ("x", math.nan, math.inf)
}
HOSTILE |= {f"sub {sub!r}": signed(HS256, GOOD | {"sub": sub}) for sub in SUBJECTS}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tokens_are_refused(client: TestClient, hostile: str) -> None:
    bearer = b"Bearer " + hostile.encode()
    response = client.get("/api/someone/tasks", headers={b"authorization": bearer})
    check_error(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
