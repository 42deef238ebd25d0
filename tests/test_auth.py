"""Who may reach what: the token decides, and the path must match it."""

import base64
import hmac
import json
import math
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from fastapi.testclient import TestClient

from tests.conftest import SECRET, Caller, check_error, token


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: object, payload: object, key: str = SECRET, digest: str = "sha256") -> str:
    """A token with a true HMAC over whatever is in it."""
    head = f"{segment(header)}.{segment(payload)}"
    return f"{head}.{segment(hmac.digest(key.encode(), head.encode(), digest))}"


HS256 = {"alg": "HS256", "typ": "JWT"}
SOON = int(time.time()) + 3600
GOOD = {"sub": "someone", "exp": SOON}
EDDSA = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)

HOSTILE: dict[str, str] = {
    "empty": "",
    "one segment": "abc",
    "two segments": token().rpartition(".")[0],
    "four segments": token() + ".x",
    "five segments": token() + ".x.y",
    "signature stripped": token().rpartition(".")[0] + ".",
    "signature edited": token()[:-2] + ("AA" if token()[-2:] != "AA" else "BB"),
    "payload edited": ".".join([token().split(".")[0], segment({"sub": "x"}), token().split(".")[2]]),
    "another secret": token(key="0" * 64),
    "secret as text of a key": signed(HS256, GOOD, PEM.decode()),
    "HS384": jwt.encode(GOOD, SECRET, "HS384"),
    "HS512": jwt.encode(GOOD, SECRET, "HS512"),
    "RS256": jwt.encode(GOOD, RSA, "RS256"),
    "ES256": jwt.encode(GOOD, EC, "ES256"),
    "EdDSA": jwt.encode(GOOD, EDDSA, "EdDSA"),
    "crit unknown": signed(HS256 | {"crit": ["x"], "x": 1}, GOOD),
    "crit empty": signed(HS256 | {"crit": []}, GOOD),
    "b64 false": signed(HS256 | {"b64": False, "crit": ["b64"]}, GOOD),
    "deep payload": signed(HS256, b"[" * 50_000 + b"]" * 50_000),
    "deep header": signed(b"[" * 50_000 + b"]" * 50_000, GOOD),
    "payload is an array": signed(HS256, [1]),
    "payload is no JSON": signed(HS256, b"{"),
    "header is an array": signed(["HS256"], GOOD),
    "payload is not UTF-8": signed(HS256, b'{"sub": "\xff"}'),
    "100 KiB of it": token(filler="x" * 100_000)[:-3] + "abc",
    "100 KiB of anything": "x" * 100_000,
    "non-ASCII": "ü" + token(),
    "padding": token() + "=",
    "more padding": token() + "====",
    "a claim twice": signed(HS256, b'{"sub": "x", "sub": "someone", "exp": %d}' % SOON),
    "a claim twice, deeper": signed(HS256, b'{"sub": "someone", "exp": %d, "a": {"b": 1, "b": 2}}' % SOON),
    "spaces inside": token().replace(".", " . "),
    "for another audience": token(aud="someone else"),
}
UNSIGNED: list[object] = ["none", "None", "NONE", "nOnE", "", None, 0, [], {}, ["HS256"]]
OTHER: list[object] = [
    "none",
    "NONE",
    "hs256",
    "HS 256",
    "RS256",
    "ES256",
    "EdDSA",
    ["HS256"],
    {"a": 1},
    None,
]
TIMES: list[object] = [
    None,
    "",
    "soon",
    str(SOON),
    [SOON],
    {},
    -1,
    0,
    math.nan,
    math.inf,
    -1e308,
    1e308,
    True,
]
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
HOSTILE |= {f"exp {shift} s ago": token(exp=int(time.time()) - shift) for shift in (0, 1, 3600)}
HOSTILE |= {"iat in the future": token(iat=SOON), "nbf in the future": token(nbf=SOON)}
HOSTILE |= {
    f"{name} {value!r}": signed(HS256, GOOD | {name: value})
    for name in ("iat", "nbf")
    for value in ("x", math.nan, math.inf)
}
HOSTILE |= {f"sub {sub!r}": signed(HS256, GOOD | {"sub": sub}) for sub in SUBJECTS}
HOSTILE |= {f"without {name}": signed(HS256, {k: v for k, v in GOOD.items() if k != name}) for name in GOOD}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tokens_open_nothing(client: TestClient, hostile: str) -> None:
    headers = {b"authorization": b"Bearer " + hostile.encode()}
    answer = client.get("/api/someone/tasks", headers=headers)
    check_error(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


SCHEMES = [
    "",
    "Bearer",
    "Bearer ",
    "Basic dXNlcjpwdw==",
    "Token {}",
    "{}",
    "Bearer Bearer {}",
    "Bearer {}, Bearer {}",
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_schemes_open_nothing(client: TestClient, scheme: str) -> None:
    answer = client.get("/api/someone/tasks", headers={"Authorization": scheme.format(token(), token())})
    check_error(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_two_tokens_are_one_too_many(client: TestClient) -> None:
    headers = [("Authorization", f"Bearer {token()}"), ("Authorization", f"Bearer {token('other')}")]
    check_error(client.get("/api/someone/tasks", headers=headers), 401, "unauthorized")


def test_a_token_in_the_query_or_a_cookie_does_not_count(client: TestClient) -> None:
    answer = client.get(f"/api/someone/tasks?token={token()}", headers={"Cookie": f"token={token()}"})
    check_error(answer, 401, "unauthorized")


GOOD_TOKENS = {
    "plain": token(),
    "more claims": token(iat=int(time.time()), nbf=int(time.time()), iss="anyone", name="Ann", jti="1"),
    "exp as a fraction": token(exp=SOON + 0.5),
    "kid in the header": jwt.encode(GOOD, SECRET, "HS256", {"kid": "k1"}),
    "no typ": jwt.encode(GOOD, SECRET, "HS256", {"typ": None}),
}


@pytest.mark.parametrize("good", GOOD_TOKENS.values(), ids=GOOD_TOKENS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_good_tokens_open_the_door(client: TestClient, good: str, scheme: str) -> None:
    assert client.get("/api/someone/tasks", headers={"Authorization": f"{scheme} {good}"}).status_code == 200


def test_the_messages_tell_the_mistake(client: TestClient) -> None:
    def message(bearer: str) -> Any:
        answer = client.get("/api/someone/tasks", headers={"Authorization": f"Bearer {bearer}"})
        return check_error(answer, 401, "unauthorized")

    assert message(token(exp=1)) == "Token has expired"
    assert message(token(nbf=SOON)) == "Token is not valid yet"
    assert message(jwt.encode(GOOD, EDDSA, "EdDSA")) == "Token is signed with the wrong algorithm"
    assert message(token(aud="x")) == "Token is for another audience"
    assert message(signed(HS256, {"sub": "someone"})) == "Token lacks a required claim"
    assert message(token(key="0" * 64)) == "Token is invalid"
    assert check_error(client.get("/api/someone/tasks"), 401, "unauthorized") == "Not authenticated"


def test_a_remembered_token_expires_all_the_same(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Authorization": f"Bearer {token(exp=SOON)}"}
    assert client.get("/api/someone/tasks", headers=headers).status_code == 200
    monkeypatch.setattr(time, "time", lambda: SOON)
    answer = client.get("/api/someone/tasks", headers=headers)
    assert check_error(answer, 401, "unauthorized") == "Token has expired"


def test_no_route_serves_another_users_path(user: Caller, stranger: Caller) -> None:
    task = user.make()
    own, other = user.user_id, stranger.user_id
    spellings = [own, own.upper() + "A", f"{own}%20", f"%20{own}", f"{own}%00", f"{own}%2F..%2F{other}"]
    spellings += [f"{own}%E2%80%8B", own.replace("0", "%D9%A0") + "0", f"{other}%2F..%2F{own}"]
    body = {"title": "stolen", "user_id": other, "id": task["id"]}
    paths = user.client.get("/openapi.json").json()["paths"]  # from the app: no route can be forgotten
    routes = [(m.upper(), path) for path in paths if "{user_id}" in path for m in paths[path]]
    assert len(routes) >= 7
    for method, path in routes:
        url = path.replace("{task_id}", str(task["id"]))
        for spelling in spellings:
            there = url.replace("{user_id}", spelling)
            answer = user.client.request(method, there, json=body, headers=stranger.headers)
            assert answer.status_code in ({403} if spelling == own else {403, 404}), (method, there)
        check_error(
            user.client.request(method, url.replace("{user_id}", own), json=body), 401, "unauthorized"
        )
    assert user("GET").json() == [task]
    assert stranger.titles() == []


def test_the_checks_come_in_the_order_401_403_404(user: Caller, stranger: Caller) -> None:
    path = f"{user.path}/999999999999"
    assert user.client.get(path).status_code == 401
    assert user.client.get(path, headers=stranger.headers).status_code == 403
    assert user.client.get(path, headers=user.headers).status_code == 404
