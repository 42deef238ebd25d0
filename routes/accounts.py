"""The built-in accounts: from register to delete. Better Auth has its own; with it, only GET /me is left."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import jwt
from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import Secret
from sqlalchemy import exc
from sqlmodel import Session, SQLModel, and_, col, delete, select, update

from auth import ISSUER, Claims, ClaimsDep, CurrentUser, account_of, revoked, unauthorized
from db import SessionDep, transaction
from hardening.guesses import DUMMY_HASH, hash_password, limited, password_matches
from hardening.settings import settings
from hardening.turns import take_turn
from models import (
    AccountDeletion,
    Credentials,
    Login,
    NewAccount,
    PasswordChange,
    Registered,
    User,
    UserPublic,
    now,
)
from routes.errors import can_fail

router = APIRouter(prefix="/api/auth", tags=["accounts"], responses=can_fail(500, 503))
built_in = APIRouter(prefix="/api/auth", tags=["accounts"], responses=can_fail(500, 503))

SEVEN_DAYS = 604_800  # seconds; logout ends a token earlier, as each request checks it
HASHING = "/hashing"  # the id of no user: all hashing together has the turns of one user, which are three


# Each takes the body or the token, and passes it on to the endpoint. An attempt is counted first, and then
# waits for its turn: so too many get their 429 without waiting.


async def limit_register(account: NewAccount, request: Request) -> AsyncIterator[NewAccount]:
    async with limited("register", account.email, request, success_counts=True), take_turn(HASHING):
        yield account  # the endpoint runs here


async def limit_login(credentials: Credentials, request: Request) -> AsyncIterator[Credentials]:
    async with limited("login", credentials.email, request), take_turn(HASHING):
        yield credentials


# For a user who has a token, and must give the password as well. (It takes no turn of the user: requests that
# hold one kind of turn and wait for another could block each other for ever.)
async def limit_password(claims: ClaimsDep, request: Request) -> AsyncIterator[Claims]:
    if claims.get("iss") != ISSUER:
        raise not_our_token()
    async with limited("login", claims["sub"], request), take_turn(HASHING):
        yield claims


def not_our_token() -> HTTPException:
    return HTTPException(400, "This token is not from our login: do this where you got it")


LimitedRegister = Annotated[NewAccount, Depends(limit_register, scope="function")]
LimitedLogin = Annotated[Credentials, Depends(limit_login, scope="function")]
LimitedClaims = Annotated[Claims, Depends(limit_password, scope="function")]
REGISTER: dict[str, Any] = {"status_code": 201, "responses": can_fail(400, 409, 413, 422, 429)}
CHECKED = can_fail(400, 401, 413, 422, 429)


@built_in.post("/signup", **REGISTER, summary="Same as register", name="signup")
@built_in.post("/register", **REGISTER, summary="Create an account")
def register(account: LimitedRegister, session: SessionDep) -> Registered:
    """Create an account, and get a token for it as from login."""
    taken = HTTPException(409, "There is already an account with this email")
    # This only saves an expensive hash: the unique column prevents duplicates, see IntegrityError.
    if session.exec(select(User.id).where(User.email == account.email)).first():
        raise taken
    password_hash = hash_password(account.password.get_secret_value())
    user = User(id=secrets.token_hex(16), email=account.email, password_hash=password_hash, created_at=now())
    session.add(user)
    try:
        session.commit()
    except exc.IntegrityError:  # another request took it in this very moment
        raise taken from None
    login = login_of(user)
    return Registered(**login.user.model_dump(), **login.model_dump())


@built_in.post("/signin", responses=CHECKED, summary="Same as login", name="signin")
@built_in.post("/login", responses=CHECKED, summary="Log in")
def login(credentials: LimitedLogin, session: SessionDep) -> Login:
    """Get a token. It is good for seven days, or until you log out."""
    user = session.exec(select(User).where(User.email == credentials.email)).first()
    password_hash = user.password_hash if user else DUMMY_HASH  # so that an unknown email takes as long
    if not password_matches(credentials.password.get_secret_value(), password_hash) or user is None:
        raise unauthorized("Wrong email or password")
    return login_of(user)


def login_of(user: User) -> Login:
    issued = int(time.time())
    claims = {"iss": ISSUER, "sub": user.id, "iat": issued, "exp": issued + SEVEN_DAYS}
    claims["generation"] = user.token_generation  # logout increments it
    token = jwt.encode(claims, settings.better_auth_secret, "HS256")
    return Login(access_token=token, expires_in=SEVEN_DAYS, user=UserPublic.model_validate(user))


@built_in.post("/logout", status_code=204, responses=can_fail(400, 401), summary="Log out everywhere")
def logout(user: CurrentUser, session: SessionDep) -> None:
    """Revokes all your tokens, on every device."""
    if user.created_at is None:  # only accounts of our own have one
        raise not_our_token()
    generation = User.token_generation + 1  # SQL, not Python: the database adds
    session.exec(update(User).where(col(User.id) == user.id).values(token_generation=generation))
    session.commit()


@built_in.post("/password", responses=CHECKED, summary="Change your password")
def change_password(claims: LimitedClaims, session: SessionDep, passwords: PasswordChange) -> Login:
    """All your tokens are revoked, and you get a new one as from login."""
    account = account_with_password(claims, session, passwords.password)
    generation = account.token_generation
    values = {
        "password_hash": hash_password(passwords.new_password.get_secret_value()),
        "token_generation": generation + 1,
    }
    unchanged = and_(col(User.id) == account.id, col(User.token_generation) == generation)
    statement = update(User).where(unchanged).values(**values).returning(User)
    changed = session.exec(statement, execution_options={"populate_existing": True}).scalar_one_or_none()
    session.commit()
    if changed is None:  # another request has logged out, or changed the password, meanwhile
        raise revoked()
    return login_of(changed)


def account_with_password(claims: Claims, session: Session, password: Secret[str]) -> User:
    account = account_of(claims, session)
    if not password_matches(password.get_secret_value(), account.password_hash):
        raise unauthorized("Wrong password")
    return account


@built_in.delete("/me", status_code=204, responses=CHECKED, summary="Delete your account")
def delete_account(claims: LimitedClaims, session: SessionDep, proof: AccountDeletion) -> None:
    """Your account and everything in it are deleted for ever."""
    account_with_password(claims, session, proof.password)
    with transaction(session):
        account = account_of(claims, session, lock=True)  # again: a moment ago it was not locked
        for table in reversed(SQLModel.metadata.sorted_tables):  # children before their parents
            if "user_id" in table.c:
                rows = delete(table).where(table.c.user_id == account.id)
                # all_users: the guard knows no owner here, and would refuse. The where() is ours to write.
                session.exec(rows, execution_options={"all_users": True})
        session.exec(delete(User).where(col(User.id) == account.id))


@router.get("/me", responses=can_fail(401), summary="Who am I?")
async def me(user: CurrentUser) -> UserPublic:
    return user
