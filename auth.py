"""Who is calling: every request brings a signed token (JWT), and its `sub` claim is the user's id."""

import os
import re
import secrets
import tempfile
import time
from functools import lru_cache
from typing import Annotated, Any

import jwt
from dotenv import dotenv_values
from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from db import ENVIRONMENT, ROOT, logger, refuse_to_start

PLACEHOLDER = re.compile(r"change|replace|example|placeholder|your[-_ ]|better-auth-secret", re.IGNORECASE)


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
        refuse_to_start("BETTER_AUTH_SECRET is a placeholder; make one with: openssl rand -hex 32")
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


SECRET = shared_secret()

# Said to the client: enough to find the mistake, nothing that the token's bearer does not know.
REASONS: dict[type[jwt.InvalidTokenError], str] = {
    jwt.ExpiredSignatureError: "Token has expired",
    jwt.ImmatureSignatureError: "Token is not valid yet",
    jwt.InvalidAlgorithmError: "Token is signed with the wrong algorithm",
    jwt.InvalidAudienceError: "Token is for another audience",
    jwt.MissingRequiredClaimError: "Token lacks a required claim",
}


def unauthorized(message: str) -> HTTPException:
    return HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


@lru_cache(maxsize=4096)
def verified_claims(token: str) -> dict[str, Any]:
    """The claims of a token, once its signature has proved them. Remembered: the check is the dearest
    part of many a request. A token that fails is not remembered."""
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], options={"require": ["sub", "exp"]})
    sub = claims["sub"]
    if not (sub.strip() and sub.isprintable() and len(sub) <= 255):
        raise jwt.DecodeError("sub is no user id")
    if not isinstance(claims["exp"], int | float):
        raise jwt.DecodeError("exp is no number")
    return claims


bearer = HTTPBearer(auto_error=False, bearerFormat="JWT")


async def current_claims(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> dict[str, Any]:
    if credentials is None:
        raise unauthorized("Not authenticated")
    if len(request.headers.getlist("authorization")) > 1:
        raise unauthorized("More than one token")
    try:
        claims = verified_claims(credentials.credentials)
    except jwt.InvalidTokenError as error:
        raise unauthorized(REASONS.get(type(error), "Token is invalid")) from None
    if claims["exp"] <= time.time():  # a remembered token may have expired since
        raise unauthorized(REASONS[jwt.ExpiredSignatureError])
    return claims


CurrentClaims = Annotated[dict[str, Any], Depends(current_claims)]


async def current_owner(user_id: str, claims: CurrentClaims) -> str:
    if claims["sub"] != user_id:
        raise HTTPException(403, "These tasks belong to another user")
    return user_id


CurrentOwner = Annotated[str, Depends(current_owner)]
