"""Who is calling? Each request brings a signed token (JWT), and its `sub` claim is the user's id."""

import os
import re
import time
from functools import lru_cache
from typing import Annotated, NamedTuple

import anyio.to_thread
import jwt
from fastapi import Depends, HTTPException, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from db import ENVIRONMENT, SessionDep, logger, refuse_to_start
from models import User, UserPublic

# At start: whose tokens count. The configuration alone decides, never the token: with BETTER_AUTH_URL those
# of that Better Auth server, without it those signed with BETTER_AUTH_SECRET.


def origin_and_path(variable: str, url: str) -> tuple[str, str]:
    # The origin as browsers and Better Auth write it: in lower case, without the default port.
    pattern = r"(https?)://([a-z\d_.-]+|\[[a-f\d:.]+\])(:\d{1,5})?(/[\w./-]*)?"
    match = re.fullmatch(pattern, url.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        refuse_to_start(
            f"{variable} has {url.rpartition('@')[2]!r}, which is not an origin such as https://app.example.com"
        )
    scheme, host, port, path = match.groups(default="")
    if f"{scheme}{port}".lower() in ("http:80", "https:443"):
        port = ""
    return f"{scheme}://{host}{port}".lower(), path.rstrip("/")


def cors_origins() -> list[str]:
    urls = os.environ.get("CORS_ORIGINS") or ORIGIN or "http://localhost:3000"
    return [origin_and_path("CORS_ORIGINS", url)[0] for url in urls.split(",") if url.strip()]


def shared_secret() -> str:
    secret = os.environ.get("BETTER_AUTH_SECRET")
    if not secret:
        refuse_to_start("BETTER_AUTH_SECRET is not set; make one with: openssl rand -hex 32")
    if ENVIRONMENT == "development":
        return secret
    placeholder = r"change|replace|example|placeholder|your[-_ ]|better-auth-secret|^ssh-|^-----BEGIN"
    if len(secret.encode()) < 32 or len(set(secret)) < 8 or re.search(placeholder, secret, re.IGNORECASE):
        refuse_to_start("BETTER_AUTH_SECRET is short, a placeholder or public: see openssl rand -hex 32")
    return secret


def unauthorized(message: str) -> HTTPException:
    return HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


ALGORITHMS = ("EdDSA", "ES256", "ES512", "PS256", "RS256")  # of Better Auth's jwt plugin


# The public keys of a Better Auth server (its JWKS), fetched when a token needs one not seen before.
# PyJWT's own client fetches, but is not asked to remember: it would forget all keys after a while even
# if the server is away, and while the server hangs let requests wait for one timeout after the other.
class KeyRing:
    REFRESH = 3600.0  # seconds until the keys are fetched again, and withdrawn ones forgotten
    PAUSE = 10.0  # seconds to leave the server alone, once it had nothing for us
    TIMEOUT = 4.0

    def __init__(self, url: str) -> None:
        self.client = jwt.PyJWKClient(f"{url}/jwks", cache_jwk_set=False, timeout=self.TIMEOUT)
        self.keys: dict[str, jwt.PyJWK] = {}
        self.fresh_until = self.paused_until = 0.0
        self.failed = False
        self.fetching = anyio.Lock()

    async def key_for(self, token: str) -> jwt.PyJWK:
        kid = key_id(token)
        if kid in self.keys and self.fetching.locked():
            return self.keys[kid]  # another request is fetching the list anew; until then this will do
        if self.needs_fetch(kid):
            async with self.fetching:  # a hundred who need a key wait here for one response,
                if self.needs_fetch(kid):  # and find it now
                    await self.fetch(kid)
        if kid in self.keys:
            return self.keys[kid]
        if self.failed:
            raise HTTPException(503, "The sign-in server cannot be reached", {"Retry-After": "10"})
        raise unauthorized("Token is signed with an unknown key")

    def needs_fetch(self, kid: str) -> bool:
        now = time.monotonic()
        return (kid not in self.keys or now > self.fresh_until) and now > self.paused_until

    async def fetch(self, kid: str) -> None:
        try:
            with anyio.fail_after(self.TIMEOUT):
                listed = await anyio.to_thread.run_sync(self.client.fetch_data, abandon_on_cancel=True)
            # PyJWKSet refuses an empty list; here it means that all keys were withdrawn.
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


# Without Better Auth, ORIGIN is "": `if ORIGIN` asks which of the two it is.
URL = os.environ.get("BETTER_AUTH_URL")
ORIGIN, BASE_PATH = origin_and_path("BETTER_AUTH_URL", URL) if URL else ("", "")
AUTH_URL = ORIGIN + (BASE_PATH or "/api/auth")
CORS_ORIGINS = cors_origins()
SECRET = "" if ORIGIN else shared_secret()
LEEWAY = 5  # seconds by which another machine's clock may differ
key_ring = KeyRing(AUTH_URL) if ORIGIN else None

# In each request: what its token says.

ISSUER = "todo-api"  # of the tokens that our own login issues, in routes/auth.py
WHERE_TOKENS_ARE = "*Make an account* and *Log in*: the response has an access_token."
if ORIGIN:
    WHERE_TOKENS_ARE = f"Sign in at <{ORIGIN}>; then <{AUTH_URL}/token> shows your token."
# Enough to find the mistake, and nothing that the caller does not know.
REASONS: dict[type[jwt.InvalidTokenError], str] = {
    jwt.ExpiredSignatureError: "Token has expired",
    jwt.ImmatureSignatureError: "Token is not valid yet",
    jwt.InvalidAlgorithmError: "Token is signed with the wrong algorithm"
    + ("" if ORIGIN else "; if it is from Better Auth, BETTER_AUTH_URL is missing on this API"),
    jwt.InvalidAudienceError: f"Token is for another audience than {ORIGIN or ' or '.join(CORS_ORIGINS)}",
    jwt.InvalidIssuerError: f"Token is from another issuer than {ORIGIN}",
    jwt.MissingRequiredClaimError: "Token lacks a required claim",
    jwt.InvalidSignatureError: "Token was changed, or signed with another secret or key",
    jwt.DecodeError: "Token is not a JWT",
}


class Token(NamedTuple):
    user_id: str
    email: str | None
    expires_at: int
    issued_here: bool
    generation: object  # see get_current_user


@lru_cache(maxsize=4096)
def key_id(token: str) -> str:
    header = jwt.get_unverified_header(token)
    if header.get("alg") not in ALGORITHMS:
        raise jwt.InvalidAlgorithmError
    return str(header.get("kid", ""))


# Checking a signature is expensive, so it is done once for each token and key.
@lru_cache(maxsize=4096)
def read_token(token: str, key: jwt.PyJWK | str) -> Token:
    options = jwt.types.Options(require=["sub", "exp"], verify_aud=bool(ORIGIN))
    if ORIGIN:
        claims = jwt.decode(token, key, ALGORITHMS, options, audience=ORIGIN, issuer=ORIGIN, leeway=LEEWAY)
    else:
        claims = jwt.decode(token, key, ["HS256"], options, leeway=LEEWAY)
        # A token needs no aud; if it has one, that must name one of CORS_ORIGINS.
        audience = claims.get("aud") or []
        audience = audience if isinstance(audience, list) else [audience]
        if audience and not any(origin in CORS_ORIGINS for origin in audience):
            raise jwt.InvalidAudienceError
    sub, email = claims["sub"], claims.get("email")
    if not (sub.strip() and sub.isprintable() and "/" not in sub and len(sub) <= 255):
        raise unauthorized("The sub of the token is not a user id")
    return Token(
        user_id=sub,
        email=email if isinstance(email, str) and email.isprintable() else None,
        expires_at=int(claims["exp"]) + (LEEWAY if ORIGIN else 0),  # with a shared secret, to the second
        issued_here=not ORIGIN and claims.get("iss") == ISSUER,
        generation=claims.get("generation"),
    )


bearer = HTTPBearer(scheme_name="token", bearerFormat="JWT", description=WHERE_TOKENS_ARE)
BearerToken = Annotated[HTTPAuthorizationCredentials, Depends(bearer)]


async def get_token(request: Request, bearer_token: BearerToken) -> Token:
    text = bearer_token.credentials
    if len(text) > 8192:
        raise unauthorized("Token is longer than 8 KiB")
    try:
        key = await key_ring.key_for(text) if key_ring else SECRET
        token = read_token(text, key)
    except jwt.InvalidTokenError as error:
        raise unauthorized(REASONS.get(type(error), "Token is invalid")) from None
    if token.expires_at <= time.time():
        raise unauthorized(REASONS[jwt.ExpiredSignatureError])
    request.state.user_id = token.user_id  # whose slot the session takes, see db.py
    return token


CurrentToken = Annotated[Token, Depends(get_token)]


async def get_current_user(token: CurrentToken, session: SessionDep) -> UserPublic:
    if not token.issued_here:
        return UserPublic(id=token.user_id, email=token.email, created_at=None)
    # Logging out begins a new generation of the account's tokens. So one statement tells whether a token
    # still counts, in every worker and at once. (It blocks, and so gets a thread; the rest needs none.)
    account = await anyio.to_thread.run_sync(session.get, User, token.user_id)
    if account is None or account.token_generation != token.generation:
        raise unauthorized("Token was signed out")
    return UserPublic.model_validate(account)


CurrentUser = Annotated[UserPublic, Depends(get_current_user)]
UserId = Annotated[str, Path(description="Your user's id, the sub of your token")]


async def get_current_owner(user_id: UserId, user: CurrentUser) -> str:
    if user_id != user.id:
        raise HTTPException(403, "The user id in the path is not the `sub` of your token")
    return user_id


CurrentOwner = Annotated[str, Depends(get_current_owner)]
