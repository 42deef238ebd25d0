"""The built-in accounts: passwords, tokens and limits. Better Auth has its own; with it, only /me is left."""

import ipaddress
import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import jwt
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from fastapi import APIRouter, Depends, HTTPException, Request
from limits import RateLimitItem, errors, parse_many, storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import exc, update
from sqlmodel import col, select

from auth import ISSUER, SECRET, CurrentToken, CurrentUser, unauthorized
from db import SessionDep, refuse_to_start
from models import Credentials, Login, NewAccount, User, UserPublic, now
from routes.errors import can_fail

router = APIRouter(prefix="/api/auth", tags=["accounts"], responses=can_fail(500, 503))
accounts = APIRouter(prefix="/api/auth", tags=["accounts"], responses=can_fail(500, 503))

# Passwords. A hash is made to be expensive: it takes 19 MiB and all of a core, as OWASP asks of Argon2id.


def hash_password(password: str) -> str:
    kdf = Argon2id(salt=os.urandom(16), length=32, memory_cost=19_456, iterations=2, lanes=1)
    return kdf.derive_phc_encoded(password.encode())


def password_matches(password: str, phc: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password.encode(), phc)
    except InvalidKey:
        return False
    return True


# Checked when the address is unknown, so that it takes as long as a wrong password.
NOBODYS_HASH = hash_password(secrets.token_hex())


async def hashing_slot() -> AsyncIterator[None]:
    # Empty on purpose: of HashingSlot below, FastAPI lets two at a time be between here and the end of their
    # request. Others wait, without a thread.
    yield


# Limits on guessing passwords.


def rate_limit() -> tuple[RateLimitItem, FixedWindowRateLimiter]:
    try:
        parsed = parse_many(os.environ.get("AUTH_RATE_LIMIT") or "10/minute")
        (limit,) = (one for one in parsed if one.amount > 0)  # a ValueError, unless there is just one
    except ValueError:
        refuse_to_start("AUTH_RATE_LIMIT is not one limit such as 10/minute.")
    uri = (os.environ.get("RATE_LIMIT_STORAGE") or "memory://").removeprefix("async+")
    timeouts = {"socket_timeout": 1, "socket_connect_timeout": 1} if uri.startswith("redis") else {}
    try:
        counter = storage.storage_from_string(uri, wrap_exceptions=True, **timeouts)
        if not counter.check():
            refuse_to_start("RATE_LIMIT_STORAGE cannot be reached.")
    except (errors.ConfigurationError, errors.StorageError, ValueError) as error:
        refuse_to_start(f"RATE_LIMIT_STORAGE cannot be used: {str(error).replace(uri, 'its URI')}")
    return limit, FixedWindowRateLimiter(counter)


LIMIT, limiter = rate_limit()


def client_network(request: Request) -> str:
    # Each customer of an IPv6 provider has a whole /64, so that counts as one client.
    host = request.client.host.removeprefix("::ffff:") if request.client else ""
    try:
        return str(ipaddress.ip_network((host, 64 if ":" in host else 32), strict=False))
    except ValueError:
        return host


@contextmanager
def counted(action: str, email: str, request: Request, *, success_counts: bool) -> Iterator[None]:
    # An attempt counts for the client and for the account; one that should not is subtracted afterwards.
    keys = [(action, "client", client_network(request)), (action, "account", email)]
    for key in keys:
        if not limiter.hit(LIMIT, *key):
            wait = math.ceil(limiter.get_window_stats(LIMIT, *key).reset_time - time.time())
            raise HTTPException(429, "Too many attempts, try again later", {"Retry-After": f"{max(1, wait)}"})
    counts = success_counts
    try:
        yield
    except Exception as error:
        counts = isinstance(error, HTTPException)  # a wrong password counts, an outage does not
        raise
    finally:
        if not counts:
            for key in keys:
                limiter.hit(LIMIT, *key, cost=-1)


def count_register(account: NewAccount, request: Request) -> Iterator[NewAccount]:
    with counted("register", account.email, request, success_counts=True):
        yield account


def count_login(credentials: Credentials, request: Request) -> Iterator[Credentials]:
    with counted("login", credentials.email, request, success_counts=False):
        yield credentials


# An endpoint names them in this order, so that who asks too often is told so before waiting for a slot.
CountedRegister = Annotated[NewAccount, Depends(count_register, scope="function")]
CountedLogin = Annotated[Credentials, Depends(count_login, scope="function")]
HashingSlot = Annotated[None, Depends(hashing_slot, scope="function", max_concurrency=2)]
REGISTER: dict[str, Any] = {"status_code": 201, "responses": can_fail(400, 409, 413, 422, 429)}


@accounts.post("/signup", **REGISTER, summary="The same under another name", name="signup")
@accounts.post("/register", **REGISTER, summary="Make an account")
def register(account: CountedRegister, _slot: HashingSlot, session: SessionDep) -> UserPublic:
    """Make an account. Then log in to get a token."""
    taken = HTTPException(409, "There is already an account with this e-mail address")
    if session.exec(select(User.id).where(User.email == account.email)).first():
        raise taken
    phc = hash_password(account.password.get_secret_value())
    user = User(id=secrets.token_hex(16), email=account.email, password_hash=phc, created_at=now())
    session.add(user)
    try:
        session.commit()
    except exc.IntegrityError:  # somebody else took it in this very moment
        raise taken from None
    return UserPublic.model_validate(user)


@accounts.post("/login", responses=can_fail(400, 401, 413, 422, 429), summary="Log in")
def login(credentials: CountedLogin, _slot: HashingSlot, session: SessionDep) -> Login:
    """Get a token. It is good for an hour, or until you log out."""
    user = session.exec(select(User).where(User.email == credentials.email)).first()
    phc = user.password_hash if user else NOBODYS_HASH
    if not password_matches(credentials.password.get_secret_value(), phc) or user is None:
        raise unauthorized("Wrong e-mail address or password")
    issued = int(time.time())
    claims = {"iss": ISSUER, "sub": user.id, "iat": issued, "exp": issued + 3600}
    token = jwt.encode(claims | {"generation": user.token_generation}, SECRET, "HS256")
    return Login(access_token=token, expires_in=3600, user=UserPublic.model_validate(user))


@accounts.post("/logout", status_code=204, responses=can_fail(400, 401), summary="Log out everywhere")
def logout(user: CurrentUser, token: CurrentToken, session: SessionDep) -> None:
    """All tokens that this login has given you so far stop working."""
    if not token.issued_here:
        raise HTTPException(400, "This token is not from our login: sign out where you signed in")
    generation = User.token_generation + 1  # SQL, not Python: the database adds
    session.exec(update(User).where(col(User.id) == user.id).values(token_generation=generation))
    session.commit()


@router.get("/me", responses=can_fail(401), summary="Whose token is this?")
def me(user: CurrentUser) -> UserPublic:
    return user
