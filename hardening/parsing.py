"""The text of a variable is understood, or refused with a ValueError that shows no part of a password."""

import re

import psycopg2
from limits import RateLimitItem, errors, parse_many, storage
from limits.strategies import FixedWindowRateLimiter
from psycopg2 import extensions
from sqlalchemy import URL, make_url


def parse_origin(text: str) -> tuple[str, str]:
    """Return the origin as browsers write it, and the path."""
    pattern = r"(https?)://([a-z\d_.-]+|\[[a-f\d:.]+\])(:\d{1,5})?(/[\w./-]*)?"
    match = re.fullmatch(pattern, text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        without_password = text.rpartition("@")[2]
        raise ValueError(f"{without_password!r} is not an origin such as https://app.example.com")
    scheme, host, port, path = match.groups(default="")
    if f"{scheme}{port}".lower() in ("http:80", "https:443"):
        port = ""
    return f"{scheme}://{host}{port}".lower(), path.rstrip("/")


def parse_origins(text: str) -> list[str]:
    return [parse_origin(url)[0] for url in text.split(",") if url.strip()]


def parse_auth_server(text: str) -> str:
    origin, path = parse_origin(text)
    return origin + (path or "/api/auth")


def parse_database(text: str) -> URL:
    text = re.sub(r"^psql\s+", "", text).strip("'\" ")  # Neon offers its URL in a command
    match = re.fullmatch(r"(sqlite|postgres|postgresql)(?:\+\w+)?(://.*)", text)
    if not match:
        raise ValueError(f"not a PostgreSQL or SQLite URL such as {EXAMPLE}")
    backend, rest = match.groups()
    return parse_sqlite(f"sqlite{rest}") if backend == "sqlite" else parse_postgres(f"postgresql{rest}")


def parse_sqlite(text: str) -> URL:
    if not text.startswith("sqlite:///"):
        raise ValueError("use three slashes, as in sqlite:///todo.db")
    url = make_url(text)
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise ValueError("needs a file: in memory, each connection has its own tasks")
    return url


EXAMPLE = "postgresql://user:password@host/name"


def parse_postgres(text: str) -> URL:
    refuse_unescaped(text)
    try:  # libpq reads its own URLs: several hosts, sockets, all its options
        given = extensions.parse_dsn(text)
    except psycopg2.ProgrammingError as error:
        unknown_option = re.search(r'invalid URI query parameter: "\w+"', str(error))
        reason = unknown_option[0] if unknown_option else f"not such as {EXAMPLE}, with %25 for a %"
        raise ValueError(reason) from None
    repeated = re.search(r"[?&]host=.*[?&]host=", text)  # as SQLAlchemy's docs write several hosts
    if repeated or has_a_port(given.get("host", "")):
        raise ValueError("hosts and ports are written postgresql://user:password@a:5432,b:5432/name")
    if re.search(r"[^\d,]", given.get("port", "")):
        raise ValueError("the port is not a number")
    user, password, name = (given.pop(key, None) for key in ("user", "password", "dbname"))
    options = {"client_encoding": "utf8", "connect_timeout": "5", "keepalives_idle": "30"}
    options["tcp_user_timeout"] = "3000"  # milliseconds until a host without power is left for the next
    return URL.create("postgresql+psycopg2", user, password, database=name, query=options | given)


def has_a_port(hosts: str) -> bool:
    return any(host.count(":") == 1 for host in hosts.split(","))  # an IPv6 address has more


# Each of these would end the password too early. Its rest would be taken for a host, and looked up in DNS.
def refuse_unescaped(url: str) -> None:
    user_and_password = url.partition("://")[2].rpartition("@")[0]
    if re.search("[@/?]", user_and_password):
        raise ValueError("in a user name or password, write @ as %40, / as %2F, and ? as %3F")


def parse_limit(text: str) -> RateLimitItem:
    try:
        (limit,) = (limit for limit in parse_many(text) if limit.amount > 0)
    except ValueError:
        raise ValueError("give one limit, like 10/minute") from None
    return limit


def limiter(text: str) -> FixedWindowRateLimiter:
    uri = text.removeprefix("async+")
    refuse_unescaped(uri)
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
