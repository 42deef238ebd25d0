"""Settings are accepted as people paste them, or refused at startup in one line without secrets."""

import logging
import os
import re
import secrets
import sys
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Self

from dotenv import load_dotenv
from limits import RateLimitItem
from limits.strategies import FixedWindowRateLimiter
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from sqlalchemy import URL

from hardening.parsing import limiter, parse_auth_server, parse_database, parse_limit, parse_origins


class Settings(BaseModel, alias_generator=str.upper, arbitrary_types_allowed=True):
    """Each field is set by the variable with its name in capitals, see .env.example.

    The default of better_auth_secret is a random one, which first_start.py keeps for later starts.
    """

    environment: Literal["development", "staging", "production"] = "development"
    database_url: Annotated[URL, BeforeValidator(parse_database)] = parse_database("sqlite:///todo.db")
    better_auth_url: Annotated[str, BeforeValidator(parse_auth_server)] = ""
    better_auth_secret: str = Field(default_factory=lambda: secrets.token_hex(32), repr=False)
    cors_origins: Annotated[list[str], BeforeValidator(parse_origins)] = []
    auth_rate_limit: Annotated[RateLimitItem, BeforeValidator(parse_limit)] = parse_limit("10/minute")
    rate_limit_storage: Annotated[FixedWindowRateLimiter, BeforeValidator(limiter)] = limiter("memory://")

    @property
    def better_auth_origin(self) -> str:
        return "/".join(self.better_auth_url.split("/")[:3])

    @model_validator(mode="before")
    @classmethod
    def drop_empty_variables(cls, variables: dict[str, str]) -> dict[str, str]:
        stripped = {name: text.strip() for name, text in variables.items()}
        return {name: text for name, text in stripped.items() if text}

    @model_validator(mode="after")
    def check_and_complete(self) -> Self:
        given = self.model_fields_set
        strict = self.environment != "development"
        if strict and "database_url" not in given:
            raise ValueError(f"DATABASE_URL: not set, and ENVIRONMENT is {self.environment}")
        if strict and not self.better_auth_url:  # with that URL, nobody uses the secret
            if "better_auth_secret" not in given:
                raise ValueError("BETTER_AUTH_SECRET: not set; use: openssl rand -hex 32")
            if is_weak(self.better_auth_secret):
                raise ValueError("BETTER_AUTH_SECRET: too short or a placeholder; use: openssl rand -hex 32")
        if not self.cors_origins:
            self.cors_origins = [self.better_auth_origin or "http://localhost:3000"]
        return self


def is_weak(secret: str) -> bool:
    placeholder = r"change|replace|example|placeholder|your[-_ ]|better-auth-secret|^ssh-|^-----BEGIN"
    short = len(secret.encode()) < 32 or len(set(secret)) < 8
    return short or re.search(placeholder, secret, re.IGNORECASE) is not None


ROOT = Path(__file__).parent.parent
ENV_FILE = ROOT / ".env"
logger = logging.getLogger("uvicorn.error")  # the one that uvicorn shows without further settings
warn_once = lru_cache(maxsize=100)(logger.warning)  # so a repeated call does nothing


def load(file: Path = ENV_FILE) -> Settings:
    try:
        load_dotenv(file, encoding="utf-8-sig")  # the environment wins
        return Settings.model_validate(dict(os.environ))
    except ValidationError as error:
        first = error.errors()[0]
        variable = [str(name) for name in first["loc"][:1]]  # none for check_and_complete, whose text has it
        refuse_to_start(": ".join([*variable, first["msg"].removeprefix("Value error, ")]))
    except ValueError:
        refuse_to_start(".env is not UTF-8 text (PowerShell's > writes UTF-16)")
    except OSError as error:
        refuse_to_start(f".env cannot be read: {error}")


def refuse_to_start(reason: str) -> NoReturn:
    logger.critical("Not started: %s", reason)
    sys.tracebacklimit = 0  # hides the traceback
    raise SystemExit(3) from None  # with any other code, uvicorn would restart it forever


settings = load()
