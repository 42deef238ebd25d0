"""Settings are understood as people paste them, or refused at the start in one line that tells no secret."""

import logging
import os
import re
import secrets
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Self

import psycopg2
from dotenv import dotenv_values, load_dotenv
from limits import RateLimitItem, errors, parse, parse_many, storage
from limits.strategies import FixedWindowRateLimiter
from psycopg2 import extensions
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from sqlalchemy import URL, make_url

ROOT = Path(__file__).parent.parent
logger = logging.getLogger("uvicorn.error")  # the one that uvicorn shows without further settings
warn_once = lru_cache(maxsize=100)(logger.warning)  # so a repeated call does nothing

# How the text of each variable is understood. A ValueError here ends the start, see load().


def origin_and_path(text: str) -> tuple[str, str]:
    pattern = r"(https?)://([a-z\d_.-]+|\[[a-f\d:.]+\])(:\d{1,5})?(/[\w./-]*)?"
    match = re.fullmatch(pattern, text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        without_password = text.rpartition("@")[2]
        raise ValueError(f"{without_password!r} is not an origin such as https://app.example.com")
    scheme, host, port, path = match.groups(default="")
    if f"{scheme}{port}".lower() in ("http:80", "https:443"):
        port = ""  # as browsers write it
    return f"{scheme}://{host}{port}".lower(), path.rstrip("/")


def auth_server(text: str) -> str:
    origin, path = origin_and_path(text)
    return origin + (path or "/api/auth")


def origins(text: str) -> list[str]:
    return [origin_and_path(url)[0] for url in text.split(",") if url.strip()]


def url_of_database(text: str) -> URL:
    text = re.sub(r"^psql\s+", "", text).strip("'\" ")  # Neon offers its URL in a command
    dialect, is_url, rest = text.partition("://")
    backend = dialect.partition("+")[0]
    if backend == "sqlite":
        return sqlite_url(f"sqlite://{rest}")
    if is_url and backend not in ("postgres", "postgresql"):
        raise ValueError(f"{backend!r} is not supported; PostgreSQL and SQLite are")
    return postgres_url(f"postgresql://{rest}" if is_url else text)


def sqlite_url(text: str) -> URL:
    url = make_url(text)
    if url.host:
        raise ValueError("three slashes before a file, as in sqlite:///todo.db")
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise ValueError("names no file; in memory, each connection has tasks of its own")
    return url


def postgres_url(text: str) -> URL:
    try:  # libpq reads its own URLs: several hosts, sockets, all its options
        given = extensions.parse_dsn(text)
    except psycopg2.ProgrammingError as error:
        unknown_option = re.search(r'invalid URI query parameter: "\w+"', str(error))
        reason = unknown_option[0] if unknown_option else "postgresql://user:password@host/name"
        raise ValueError(f"not a database URL: {reason}") from None
    if "@" in given.get("host", ""):
        raise ValueError("two @; the one in the password is written %40")
    if re.search(r"[^\d,]", given.get("port", "")):
        raise ValueError("not a database URL: the port is not a number")
    user, password, name = (given.pop(key, None) for key in ("user", "password", "dbname"))
    options = {"client_encoding": "utf8", "connect_timeout": "5", "keepalives_idle": "30"}
    options["tcp_user_timeout"] = "3000"  # milliseconds until a host without power is given up for the next
    return URL.create("postgresql+psycopg2", user, password, database=name, query=options | given)


def rate_limit(text: str) -> RateLimitItem:
    try:
        (limit,) = (limit for limit in parse_many(text) if limit.amount > 0)
    except ValueError:
        raise ValueError("not one limit such as 10/minute") from None
    return limit


def counters(text: str) -> FixedWindowRateLimiter:
    uri = text.removeprefix("async+")
    timeouts = {"socket_timeout": 1, "socket_connect_timeout": 1} if uri.startswith("redis") else {}
    try:
        counter = storage.storage_from_string(uri, wrap_exceptions=True, **timeouts)
        reachable = counter.check()
    except errors.ConfigurationError as error:
        raise ValueError(f"cannot be used: {str(error).replace(uri, 'its URI')}") from None
    except Exception as error:  # noqa: BLE001  (whatever it is, it may quote a part of the password)
        raise ValueError(f"cannot be used: {type(error).__name__}") from None
    if not reachable:
        raise ValueError("cannot be reached")
    return FixedWindowRateLimiter(counter)


class Settings(BaseModel, arbitrary_types_allowed=True):
    """Each field is a variable; .env.example describes them."""

    environment: Literal["development", "staging", "production"] = "development"
    database_url: Annotated[URL, BeforeValidator(url_of_database)] = make_url("sqlite:///todo.db")
    better_auth_url: Annotated[str, AfterValidator(auth_server)] = ""
    better_auth_secret: str = Field(default="", repr=False)
    cors_origins: Annotated[list[str], BeforeValidator(origins)] = []
    auth_rate_limit: Annotated[RateLimitItem, BeforeValidator(rate_limit)] = parse("10/minute")
    rate_limit_storage: Annotated[FixedWindowRateLimiter, BeforeValidator(counters)] = counters("memory://")

    @property
    def better_auth_origin(self) -> str:
        return "/".join(self.better_auth_url.split("/")[:3])

    @model_validator(mode="after")
    def is_complete_and_safe(self) -> Self:
        in_development = self.environment == "development"
        if "database_url" not in self.model_fields_set and not in_development:
            raise ValueError(f"DATABASE_URL: not set, and ENVIRONMENT is {self.environment}")
        if not self.cors_origins:
            self.cors_origins = [self.better_auth_origin or "http://localhost:3000"]
        if self.better_auth_url:
            return self  # nobody uses the secret
        if not self.better_auth_secret:
            raise ValueError("BETTER_AUTH_SECRET: not set; make one with: openssl rand -hex 32")
        if not in_development and is_weak(self.better_auth_secret):
            raise ValueError("BETTER_AUTH_SECRET: short, a placeholder or public; see openssl rand -hex 32")
        return self


def is_weak(secret: str) -> bool:
    placeholder = r"change|replace|example|placeholder|your[-_ ]|better-auth-secret|^ssh-|^-----BEGIN"
    short = len(secret.encode()) < 32 or len(set(secret)) < 8
    return short or re.search(placeholder, secret, re.IGNORECASE) is not None


def load(file: Path = ROOT / ".env") -> Settings:
    try:
        load_dotenv(file)  # the environment wins
        given = {name: os.environ.get(name.upper(), "").strip() for name in Settings.model_fields}
        given = {name: text for name, text in given.items() if text}  # empty means the default
        in_development = given.get("environment", "development") == "development"
        if in_development and not given.keys() & {"better_auth_url", "better_auth_secret"}:
            given["better_auth_secret"] = secret_of_a_new(file)
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        names = [str(name).upper() for name in first["loc"][:1]]
        refuse_to_start(": ".join([*names, first["msg"].removeprefix("Value error, ")]))
    except ValueError:
        refuse_to_start(".env is not UTF-8 text (PowerShell's > writes UTF-16)")
    except OSError as error:
        refuse_to_start(f".env cannot be read or made: {error}")


# The first start makes .env from .env.example, with a fresh secret in it.
def secret_of_a_new(file: Path) -> str:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    text = text.replace("BETTER_AUTH_SECRET=", f"BETTER_AUTH_SECRET={secrets.token_hex(32)}")
    # Workers may start together: one of them links a complete file into place, and all read that.
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".env.") as folder:
        draft = Path(folder, "draft")
        draft.touch(0o600)  # a secret is for its owner alone to read
        draft.write_text(text, encoding="utf-8")
        with suppress(FileExistsError):
            os.link(draft, file)
            logger.info("Made .env from .env.example, with a fresh BETTER_AUTH_SECRET.")
    return dotenv_values(file).get("BETTER_AUTH_SECRET") or ""


def refuse_to_start(reason: str) -> NoReturn:
    logger.critical("Not started: %s", reason)
    sys.tracebacklimit = 0  # that line says it all
    raise SystemExit(3) from None  # on any other code uvicorn's supervisor would try again for ever


settings = load()
