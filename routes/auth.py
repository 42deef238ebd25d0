"""The built-in accounts: sign up, log in, log out. Only without Better Auth, which has its own."""

import math
import os
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from limits import RateLimitItem, parse
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import bindparam, exc, insert, update
from sqlmodel import select

from auth import (
    TOKEN_LIFETIME,
    CurrentUser,
    hash_password,
    is_outdated,
    issue_token,
    password_matches,
    unauthorized,
    users,
)
from db import SessionDep, refuse_to_start
from models import Credentials, Login, Me, UserPublic, errors, now

router = APIRouter(prefix="/api/auth", tags=["accounts"], responses=errors(500, 503))

REGISTER = insert(users).returning(*users.c)
BY_EMAIL = select(*users.c).where(users.c.email == bindparam("address"))
own_account = users.c.id == bindparam("account_id")
REHASH = update(users).where(own_account).values(password_hash=bindparam("new_hash")).returning(users.c.id)
SIGN_OUT = (
    update(users)
    .where(own_account)
    .values(token_generation=users.c.token_generation + 1)
    .returning(users.c.id)
)

# Somebody's, so that an unknown address costs as much time as a wrong password.
NOBODYS_HASH = hash_password(secrets.token_hex())


async def hashing_turn() -> AsyncIterator[None]:
    yield


# A hash takes 19 MiB and all of a core; a flood of logins waits here, without a thread or a connection.
HASHES_AT_ONCE = 2
in_turn = [Depends(hashing_turn, scope="function", max_concurrency=HASHES_AT_ONCE)]


def rate_limit() -> tuple[RateLimitItem, FixedWindowRateLimiter]:
    try:
        limit = parse(os.environ.get("AUTH_RATE_LIMIT") or "10/minute")
    except ValueError:
        refuse_to_start("AUTH_RATE_LIMIT is not a limit such as 10/minute.")
    uri = os.environ.get("RATE_LIMIT_STORAGE") or "memory://"
    try:
        storage = storage_from_string(uri, wrap_exceptions=True)
        if not storage.check():
            refuse_to_start("RATE_LIMIT_STORAGE cannot be reached.")
    except (ConfigurationError, StorageError, ValueError) as error:
        refuse_to_start(f"RATE_LIMIT_STORAGE cannot be used: {str(error).replace(uri, 'its URI')}")
    return limit, FixedWindowRateLimiter(storage)


LIMIT, limiter = rate_limit()


def count_attempt(*key: str) -> None:
    if not limiter.hit(LIMIT, *key):
        wait = math.ceil(limiter.get_window_stats(LIMIT, *key).reset_time - time.time())
        raise HTTPException(429, "Too many attempts, try again later", {"Retry-After": str(max(1, wait))})


def client_address(request: Request) -> str:
    return request.client.host if request.client else ""


new_account: dict[str, Any] = {
    "status_code": 201,
    "response_model": UserPublic,
    "dependencies": in_turn,
    "responses": errors(400, 409, 413, 422, 429),
}


@router.post("/signup", **new_account, summary="Sign Up", operation_id="signup")
@router.post("/register", **new_account)
def register(credentials: Credentials, request: Request, session: SessionDep) -> Any:
    """Make an account. Then log in to get a token."""
    count_attempt("register", client_address(request))
    account = {
        "id": secrets.token_hex(16),
        "email": credentials.email,
        "password_hash": hash_password(credentials.password.get_secret_value()),
        "token_generation": 0,
        "created_at": now(),
    }
    try:
        return session.exec(REGISTER, **account)[0]
    except exc.IntegrityError:
        raise HTTPException(409, "There is already an account with this e-mail address") from None


@router.post("/login", response_model=Login, dependencies=in_turn, responses=errors(400, 401, 413, 422, 429))
def login(credentials: Credentials, request: Request, session: SessionDep) -> Any:
    """Get a token. It is good for an hour, or until you log out."""
    keys = [("client", client_address(request)), ("account", credentials.email)]
    for key in keys:
        count_attempt("login", *key)
    password = credentials.password.get_secret_value()
    account = next(iter(session.exec(BY_EMAIL, address=credentials.email)), None)
    matches = password_matches(password, account.password_hash if account else NOBODYS_HASH)
    if account is None or not matches:
        raise unauthorized("Wrong e-mail address or password")
    for key in keys:
        limiter.hit(LIMIT, "login", *key, cost=-1)  # who knows the password was not guessing
    if is_outdated(account.password_hash):
        session.exec(REHASH, account_id=account.id, new_hash=hash_password(password))
    token = issue_token(account.id, account.token_generation)
    return {"access_token": token, "expires_in": TOKEN_LIFETIME, "user": account}


@router.post("/logout", status_code=204, responses=errors(401))
def logout(user: CurrentUser, session: SessionDep) -> None:
    """Sign out everywhere: no token that this login issued to you until now is accepted any more."""
    session.exec(SIGN_OUT, account_id=user.id)


@router.get("/me", response_model=Me, responses=errors(401))
def me(user: CurrentUser) -> Any:
    """Who you are, as your token says."""
    return user
