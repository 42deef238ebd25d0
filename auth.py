"""Who is calling? Each request brings a signed token (a JWT), and its `sub` claim is the user's id.

Read from top to bottom: the token, its claims, the current user, the current owner."""

import time
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Annotated, Any

import jwt
from anyio import to_thread
from fastapi import Depends, HTTPException, Path
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import exc
from sqlmodel import Session

from db import SessionDep
from hardening.isolation import require_owner
from hardening.keys import ALGORITHMS, KeyRing, UnknownKeyError
from hardening.leftovers import need_account
from hardening.settings import settings
from hardening.turns import take_turn
from models import User, UserPublic

Claims = dict[str, Any]
ISSUER = "todo-api"  # the `iss` of built-in login tokens, see routes/accounts.py
LEEWAY = 5  # seconds that the clock of the signing server may be ahead


# 1. The token. There are two kinds, and the settings say which one counts: never the token itself.


# Without BETTER_AUTH_URL: from our own login, or any server that signs with the same secret.
# (BETTER_AUTH_SECRET is the name that Better Auth frontends use for it.)
async def decode_with_secret(token: str) -> Claims:
    claims = decode(token, settings.better_auth_secret, ("HS256",), None)
    # A token may have no aud (its audience). If it has one, that must be one of our frontends.
    audience = claims.get("aud") or []
    audience = audience if isinstance(audience, list) else [audience]
    if audience and not any(origin in settings.cors_origins for origin in audience):
        raise jwt.InvalidAudienceError
    return claims


key_ring = KeyRing(settings.better_auth_url)


# With BETTER_AUTH_URL: from that Better Auth server, which publishes keys to check its tokens with.
async def decode_with_public_key(token: str) -> Claims:
    return decode(token, await key_ring.key_for(token), ALGORITHMS, settings.better_auth_origin)


# Checking a signature is expensive, so it is done once for each token and key. Without an origin, aud is
# checked above, and iss may be anything.
@lru_cache(maxsize=4096)
def decode(token: str, key: str | jwt.PyJWK, algorithms: tuple[str, ...], origin: str | None) -> Claims:
    options = jwt.types.Options(require=["sub", "exp"], verify_aud=bool(origin))
    return jwt.decode(token, key, algorithms, options, audience=origin, issuer=origin, leeway=LEEWAY)


bearer = HTTPBearer(scheme_name="token", bearerFormat="JWT")
BearerToken = Annotated[HTTPAuthorizationCredentials, Depends(bearer)]


# 2. Its claims: what it says about the user, and until when.
async def get_claims(credentials: BearerToken) -> Claims:
    token = credentials.credentials
    if len(token) > 8192:
        raise unauthorized("Token is longer than 8 KiB")
    try:
        decode_token = decode_with_public_key if settings.better_auth_url else decode_with_secret
        claims = await decode_token(token)
        if time.time() >= int(claims["exp"]):  # we may have decoded it long ago
            raise jwt.ExpiredSignatureError
    except jwt.InvalidTokenError as error:
        raise unauthorized(reason(error)) from None
    sub = claims["sub"]
    if not (sub.strip() and sub.isprintable() and "/" not in sub and len(sub) <= 255):
        raise unauthorized("The sub of the token is not a user id")
    return claims


ClaimsDep = Annotated[Claims, Depends(get_claims)]


# Enough to find the mistake, but nothing secret.
def reason(error: jwt.InvalidTokenError) -> str:
    expected = settings.better_auth_origin or " or ".join(settings.cors_origins)
    missing = "; for Better Auth tokens, set BETTER_AUTH_URL on this API"
    hint = "" if settings.better_auth_url else missing
    reasons: dict[type, str] = {
        jwt.ExpiredSignatureError: "Token has expired",
        jwt.ImmatureSignatureError: "Token is not valid yet",
        jwt.InvalidAlgorithmError: f"Token is signed with the wrong algorithm{hint}",
        jwt.InvalidAudienceError: f"Token's audience is not {expected}",
        jwt.InvalidIssuerError: f"Token's issuer is not {expected}",
        jwt.MissingRequiredClaimError: "Token lacks a required claim",
        jwt.InvalidSignatureError: "Token was changed, or signed with another secret or key",
        UnknownKeyError: "Token is signed with an unknown key",
        jwt.DecodeError: "Token is not a JWT",
    }
    return reasons.get(type(error), "Token is invalid")


def unauthorized(message: str) -> HTTPException:
    return HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


# 3. The current user. From here to the end of the request, a statement on tasks must name the owner, as in
# Task.user_id == owner, or it is refused. The other tables in it that have a user_id get the same condition.
# (session.get() need not name the owner: it finds only the owner's rows. `users` has no user_id.)


# A user may have only a few requests at a time. The next ones wait for these.
async def wait_for_turn(claims: ClaimsDep) -> AsyncIterator[None]:
    async with take_turn(claims["sub"]):
        yield


Turn = Annotated[None, Depends(wait_for_turn, scope="function")]


async def get_current_user(claims: ClaimsDep, _turn: Turn, session: SessionDep) -> AsyncIterator[UserPublic]:
    with require_owner(session, claims["sub"]):
        user = await user_of(claims, session)
        try:
            yield user  # the endpoint runs here
        except (exc.IntegrityError, exc.DataError):
            # A new row fails if its account was just deleted (hardening/leftovers.py).
            if claims.get("iss") == ISSUER:
                session.rollback()
                await user_of(claims, session)  # then this raises a 401
            raise


async def user_of(claims: Claims, session: Session) -> UserPublic:
    if claims.get("iss") == ISSUER:
        account = await to_thread.run_sync(account_of, claims, session)  # a thread: it waits for the database
        need_account(session, account.id)  # new rows will check it once more, see hardening/leftovers.py
        return UserPublic.model_validate(account)
    email = claims.get("email")
    email = email if isinstance(email, str) and email.isprintable() else None
    return UserPublic(id=claims["sub"], email=email, created_at=None)


# Logging out begins a new generation of the account's tokens. So one statement tells whether a token still
# counts, in every worker and at once.
def account_of(claims: Claims, session: Session, *, lock: bool = False) -> User:
    account = session.get(User, claims["sub"], with_for_update=lock)
    if account is None or account.token_generation != claims.get("generation"):
        raise revoked()
    return account


def revoked() -> HTTPException:
    return unauthorized("Token was revoked")


CurrentUser = Annotated[UserPublic, Depends(get_current_user, scope="function")]


# 4. The current owner: the user in the path. It must be the user in the token.
UserId = Annotated[str, Path(description="Your user's id, the sub of your token")]


async def get_current_owner(user_id: UserId, user: CurrentUser) -> str:
    if user_id != user.id:
        raise HTTPException(403, "The user id in the path is not the `sub` of your token")
    return user.id


CurrentOwner = Annotated[str, Depends(get_current_owner)]
