"""The built-in accounts: register, log in, log out. Better Auth has its own; with it, only /me is left."""

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import jwt
from fastapi import APIRouter, Depends, HTTPException, Request
from sqlalchemy import exc
from sqlmodel import col, select, update

from auth import ISSUER, CurrentUser, unauthorized
from db import SessionDep
from hardening.guesses import NOBODYS_HASH, counted, hash_password, password_matches
from hardening.settings import settings
from hardening.turns import take_turn
from models import Credentials, Login, NewAccount, Registered, User, UserPublic, now
from routes.errors import can_fail

router = APIRouter(prefix="/api/auth", tags=["accounts"], responses=can_fail(500, 503))
built_in = APIRouter(prefix="/api/auth", tags=["accounts"], responses=can_fail(500, 503))

SEVEN_DAYS = 604_800  # seconds; a token is checked at each request, so that a log-out ends it at once


def count_register(account: NewAccount, request: Request) -> Iterator[NewAccount]:
    with counted("register", account.email, request, success_counts=True):
        yield account


def count_login(credentials: Credentials, request: Request) -> Iterator[Credentials]:
    with counted("login", credentials.email, request, success_counts=False):
        yield credentials


async def hashing_turn() -> AsyncIterator[None]:
    async with take_turn("/hashing"):  # which is no user's id: all who register or log in share a few turns
        yield


# In each of these, the endpoint runs at the yield. Endpoints name them in this order: so that who tries too
# often is told so before waiting for a turn.
CountedRegister = Annotated[NewAccount, Depends(count_register, scope="function")]
CountedLogin = Annotated[Credentials, Depends(count_login, scope="function")]
HashingTurn = Annotated[None, Depends(hashing_turn, scope="function")]
REGISTER: dict[str, Any] = {"status_code": 201, "responses": can_fail(400, 409, 413, 422, 429)}


@built_in.post("/signup", **REGISTER, summary="The same under another name", name="signup")
@built_in.post("/register", **REGISTER, summary="Make an account")
def register(account: CountedRegister, _turn: HashingTurn, session: SessionDep) -> Registered:
    """Make an account, and get a token for it as from log-in."""
    taken = HTTPException(409, "There is already an account with this e-mail address")
    # This saves an expensive hash. What forbids a second account is the unique column, see IntegrityError.
    if session.exec(select(User.id).where(User.email == account.email)).first():
        raise taken
    phc = hash_password(account.password.get_secret_value())
    user = User(id=secrets.token_hex(16), email=account.email, password_hash=phc, created_at=now())
    session.add(user)
    try:
        session.commit()
    except exc.IntegrityError:  # somebody else took it in this very moment
        raise taken from None
    login = login_of(user)
    return Registered(**login.user.model_dump(), **login.model_dump())


@built_in.post("/login", responses=can_fail(400, 401, 413, 422, 429), summary="Log in")
def login(credentials: CountedLogin, _turn: HashingTurn, session: SessionDep) -> Login:
    """Get a token. It is good for seven days, or until you log out."""
    user = session.exec(select(User).where(User.email == credentials.email)).first()
    phc = user.password_hash if user else NOBODYS_HASH  # so that an unknown address takes as long
    if not password_matches(credentials.password.get_secret_value(), phc) or user is None:
        raise unauthorized("Wrong e-mail address or password")
    return login_of(user)


def login_of(user: User) -> Login:
    issued = int(time.time())
    claims = {"iss": ISSUER, "sub": user.id, "iat": issued, "exp": issued + SEVEN_DAYS}
    claims["generation"] = user.token_generation  # which logging out counts up
    token = jwt.encode(claims, settings.better_auth_secret, "HS256")
    return Login(access_token=token, expires_in=SEVEN_DAYS, user=UserPublic.model_validate(user))


@built_in.post("/logout", status_code=204, responses=can_fail(400, 401), summary="Log out everywhere")
def logout(user: CurrentUser, session: SessionDep) -> None:
    """All tokens that this login has given you so far stop working."""
    if user.created_at is None:  # only accounts of our own have one
        raise HTTPException(400, "This token is not from our login: sign out where you signed in")
    generation = User.token_generation + 1  # SQL, not Python: the database adds
    session.exec(update(User).where(col(User.id) == user.id).values(token_generation=generation))
    session.commit()


@router.get("/me", responses=can_fail(401), summary="Whose token is this?")
async def me(user: CurrentUser) -> UserPublic:
    return user
