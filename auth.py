"""Who is calling: every request brings a signed token (JWT), and its `sub` claim is the user's id.

The configuration alone decides whose tokens count. With BETTER_AUTH_URL they are those of that Better
Auth server, verified with the public keys that it lists. Without, they are those signed with
BETTER_AUTH_SECRET, among them those that the built-in accounts get in routes/auth.py.
"""

import json
import os
import re
import secrets
import tempfile
import time
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import jwt
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from dotenv import dotenv_values
from fastapi import Depends, HTTPException, Path, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from jwt.utils import base64url_decode
from sqlalchemy import bindparam
from sqlmodel import SQLModel, select

import models  # noqa: F401  (fills the metadata)
from db import ENVIRONMENT, ROOT, SessionDep, logger, refuse_to_start

Claims = dict[str, Any]

PLACEHOLDER = re.compile(
    r"change|replace|example|placeholder|your[-_ ]|better-auth-secret|^ssh-|^-----BEGIN", re.IGNORECASE
)


def shared_secret() -> str:
    """The secret that signs tokens; on the first start of a fresh clone, a new one in a new .env."""
    secret = os.environ.get("BETTER_AUTH_SECRET")
    if ENVIRONMENT == "development":
        return secret or secret_of_new_env_file()
    if not secret:
        refuse_to_start(f"BETTER_AUTH_SECRET is not set, and ENVIRONMENT is {ENVIRONMENT}.")
    if len(secret.encode()) < 32:
        refuse_to_start("BETTER_AUTH_SECRET is shorter than 32 bytes.")
    if PLACEHOLDER.search(secret) or len(set(secret)) < 8:
        refuse_to_start("BETTER_AUTH_SECRET is a placeholder or public; make one with: openssl rand -hex 32")
    return secret


def secret_of_new_env_file() -> str:
    path = ROOT / ".env"
    try:
        text = (ROOT / ".env.example").read_text()
        text = text.replace("BETTER_AUTH_SECRET=", f"BETTER_AUTH_SECRET={secrets.token_hex(32)}")
        # Linked into place whole: of several workers one makes the file, and none reads half of it.
        with tempfile.NamedTemporaryFile("w", dir=ROOT, prefix=".env.") as draft:  # for our eyes only
            draft.write(text)
            draft.flush()
            os.link(draft.name, path)
        logger.info("Made .env from .env.example, with a fresh BETTER_AUTH_SECRET.")
    except FileExistsError:
        pass
    except OSError as error:
        refuse_to_start(f"BETTER_AUTH_SECRET is not set, and .env cannot be made: {error}")
    secret = dotenv_values(path).get("BETTER_AUTH_SECRET")
    if not secret:
        refuse_to_start(
            "there is no BETTER_AUTH_SECRET in .env: add a line BETTER_AUTH_SECRET=... with what"
            " `openssl rand -hex 32` prints, or delete .env to have a fresh one made."
        )
    return secret


def better_auth_origin() -> str | None:
    """The origin as Better Auth writes it into its tokens: no path, no default port, lower case."""
    text = os.environ.get("BETTER_AUTH_URL")
    if not text:
        return None
    try:
        url = urlsplit(text.strip())
        port = "" if url.port in (None, {"http": 80, "https": 443}.get(url.scheme)) else f":{url.port}"
    except ValueError:
        url, port = urlsplit(""), ""
    rest = url.path.rstrip("/").removesuffix("/api/auth") + url.query + url.fragment
    if url.scheme not in ("http", "https") or not url.hostname or rest or "@" in url.netloc:
        refuse_to_start(f"BETTER_AUTH_URL is {text!r}, not an origin such as https://app.example.com")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}{port}"


class UnknownKeyError(jwt.InvalidTokenError):
    pass


class KeyRing:
    """The public keys of a Better Auth server, fetched when a token needs one that is not here yet.

    PyJWT's own client fetches, but is not asked to remember: it would forget all keys after a while even
    if the server is away, and while the server hangs let requests wait for one time-out after the other.
    """

    ALGORITHMS = ("EdDSA", "ES256", "ES512", "PS256", "RS256")
    REFRESH = 3600.0  # seconds after which a key that the server withdrew is forgotten
    PAUSE = 10.0  # seconds to leave the server alone, once it had nothing for us
    PATIENCE = 4.0

    def __init__(self, origin: str) -> None:
        self.client = jwt.PyJWKClient(f"{origin}/api/auth/jwks", cache_jwk_set=False, timeout=self.PATIENCE)
        self.keys: dict[str, jwt.PyJWK] = {}
        self.fresh_until = self.paused_until = 0.0
        self.failed = False
        self.fetching = anyio.Lock()
        self.one_thread = anyio.CapacityLimiter(1)

    async def key_for(self, token: str) -> jwt.PyJWK:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in self.ALGORITHMS:
            raise jwt.InvalidAlgorithmError
        kid = header.get("kid", "")
        if self.wants(kid) and not (kid in self.keys and self.fetching.locked()):
            async with self.fetching:  # a hundred who need a key wait for one answer
                if self.wants(kid) and time.monotonic() > self.paused_until:
                    await self.fetch(kid)
        if kid in self.keys:
            return self.keys[kid]
        if self.failed:
            raise HTTPException(503, "The sign-in server cannot be reached", {"Retry-After": "10"})
        raise UnknownKeyError

    def wants(self, kid: str) -> bool:
        return kid not in self.keys or time.monotonic() > self.fresh_until

    async def fetch(self, kid: str) -> None:
        try:
            with anyio.fail_after(self.PATIENCE):
                listed = await anyio.to_thread.run_sync(
                    self.client.fetch_data, abandon_on_cancel=True, limiter=self.one_thread
                )
            usable = jwt.PyJWKSet(listed["keys"]).keys if listed["keys"] != [] else []
            self.keys = {key.key_id: key for key in usable if key.key_id}
            self.fresh_until = time.monotonic() + self.REFRESH
            self.failed = False
        except Exception as error:  # noqa: BLE001  (whatever it is, it is not the caller's fault)
            logger.error("No keys from %s: %r", self.client.uri, error)
            self.failed = True
        # After a fetch that brought the key another may follow at once, so that a rotated key is taken on
        # its first use. One that did not bring it may have been caused by anybody.
        if self.failed or kid not in self.keys:
            self.paused_until = time.monotonic() + self.PAUSE


ORIGIN = better_auth_origin()
key_ring = KeyRing(ORIGIN) if ORIGIN else None
SECRET = "" if ORIGIN else shared_secret()
LEEWAY = 5 if ORIGIN else 0  # seconds by which another machine's clock may differ

# Said to the client: enough to find the mistake, nothing that who made the token does not know.
REASONS: dict[type[jwt.InvalidTokenError], str] = {
    jwt.ExpiredSignatureError: "Token has expired",
    jwt.ImmatureSignatureError: "Token is not valid yet",
    jwt.InvalidAlgorithmError: "Token is signed with the wrong algorithm",
    jwt.InvalidAudienceError: "Token is for another audience",
    jwt.InvalidIssuerError: "Token is from another issuer",
    jwt.MissingRequiredClaimError: "Token lacks a required claim",
    UnknownKeyError: "Token is signed with an unknown key",
}


def unauthorized(message: str) -> HTTPException:
    return HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


def no_claim_twice(pairs: list[tuple[str, Any]]) -> Claims:
    if len(dict(pairs)) < len(pairs):
        raise jwt.DecodeError("of two claims of one name, programs differ in which one counts")
    return dict(pairs)


async def verified_claims(token: str) -> Claims:
    """The claims of a token, once its signature has proved them."""
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]*", token, re.ASCII):
        raise jwt.DecodeError("not three segments of base64url, without padding")
    if key_ring:
        key = await key_ring.key_for(token)
        rules: Any = {"algorithms": key_ring.ALGORITHMS, "issuer": ORIGIN, "audience": ORIGIN}
        claims = jwt.decode(token, key, **rules, leeway=LEEWAY, options={"require": ["sub", "exp"]})
    else:
        claims = jwt.decode(token, SECRET, ["HS256"], leeway=LEEWAY, options={"require": ["sub", "exp"]})
    json.loads(base64url_decode(token.split(".")[1]), object_pairs_hook=no_claim_twice)
    sub, exp = claims["sub"], claims["exp"]
    if not (sub.strip() and sub.isprintable() and len(sub) <= 255):
        raise jwt.DecodeError("sub is no user id")
    if not isinstance(exp, int | float) or exp > 1e11:
        raise jwt.DecodeError("exp is no time, or one in thousands of years")
    return claims


MAX_REMEMBERED = 4096
remembered: dict[str, Claims] = {}  # to check a signature is dear, so once is enough


class BearerToken(SecurityBase):
    """What /docs asks for under "Authorize", and the claims of what a request brings."""

    scheme_name = "token"
    model = HTTPBearer(
        bearerFormat="JWT",
        description="The `token` of Better Auth"
        if ORIGIN
        else "The `access_token` of `POST /api/auth/login`",
    )

    async def __call__(self, request: Request) -> Claims:
        headers = request.headers.getlist("authorization")
        if len(headers) > 1:
            raise unauthorized("More than one token")
        scheme, _, token = headers[0].partition(" ") if headers else ("", "", "")
        if scheme.lower() != "bearer":
            raise unauthorized("Not authenticated")
        claims = remembered.get(token)
        if claims is None:
            try:
                claims = await verified_claims(token)
            except jwt.InvalidTokenError as error:
                raise unauthorized(REASONS.get(type(error), "Token is invalid")) from None
            if len(remembered) >= MAX_REMEMBERED:
                remembered.clear()
            remembered[token] = claims
        elif claims["exp"] + LEEWAY <= time.time():
            raise unauthorized(REASONS[jwt.ExpiredSignatureError])
        return claims


CurrentClaims = Annotated[Claims, Depends(BearerToken())]

# The built-in accounts: their passwords, and the tokens that they get.
ISSUER = "todo-api"
TOKEN_LIFETIME = 3600
MEMORY_KIB, ITERATIONS = 19_456, 2  # what OWASP asks of Argon2id, and what each login makes of older hashes
users = SQLModel.metadata.tables["users"]
ACCOUNT = select(*users.c).where(users.c.id == bindparam("id"))


def hash_password(password: str) -> str:
    kdf = Argon2id(salt=os.urandom(16), length=32, memory_cost=MEMORY_KIB, iterations=ITERATIONS, lanes=1)
    return kdf.derive_phc_encoded(password.encode())


def password_matches(password: str, phc: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password.encode(), phc)
    except InvalidKey:
        return False
    return True


def is_outdated(phc: str) -> bool:
    return f"$m={MEMORY_KIB},t={ITERATIONS},p=1$" not in phc


def issue_token(user_id: str, generation: int) -> str:
    issued = int(time.time())
    claims = {"iss": ISSUER, "sub": user_id, "iat": issued, "exp": issued + TOKEN_LIFETIME}
    return jwt.encode(claims | {"generation": generation}, SECRET, "HS256")


class Visitor(NamedTuple):
    """A user whose account is elsewhere."""

    id: str
    email: str | None
    created_at: None = None


async def current_user(claims: CurrentClaims, session: SessionDep) -> Any:
    """The account of a token that our own login issued, or else, at no cost, what the token says.

    Signing out begins a new generation of the account's tokens, so one statement tells whether the
    token still counts, in every worker and at once.
    """
    if claims.get("iss") != ISSUER:
        email = claims.get("email")
        return Visitor(claims["sub"], email if isinstance(email, str) else None)
    accounts = await run_in_threadpool(session.exec, ACCOUNT, id=claims["sub"])
    if not accounts or accounts[0].token_generation != claims.get("generation"):
        raise unauthorized("Token was signed out")
    return accounts[0]


CurrentUser = Annotated[Any, Depends(current_user)]
OwnerId = Annotated[str, Path(description="Your user's id: the `sub` of your token")]


async def current_owner(user_id: OwnerId, user: CurrentUser) -> str:
    if user.id != user_id:
        raise HTTPException(403, "These tasks belong to another user")
    return user_id


CurrentOwner = Annotated[str, Depends(current_owner)]
