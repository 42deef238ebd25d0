"""Each setting: valid values, the default, and what is refused at startup. No server is started."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from limits.storage import MemoryStorage
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from hardening.first_start import ensure_secret
from hardening.settings import ROOT, Settings, load
from tests.conftest import Clock, Refusal
from tests.support.environment import SECRET, SETTINGS


def read(**variables: str) -> Settings:
    """The settings, if some variables differ from the usual ones of the tests."""
    return Settings.model_validate(SETTINGS | variables)


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, refusal: Refusal, tmp_path: Path) -> Refused:
    """Starts with some other variables, which must be refused; returns the line that says why."""

    def start(**variables: str) -> str:
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        return refusal(load, tmp_path / "no .env")

    return start


def test_settings_show_no_secrets() -> None:
    shown = repr(read(DATABASE_URL="postgresql://u:pa55@h/d"))
    assert "u:***@/d" in shown
    assert "pa55" not in shown
    assert SECRET not in shown


# .env, and the first start


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of .env before the first start, without a secret in the environment."""
    monkeypatch.setenv("BETTER_AUTH_SECRET", "")
    return tmp_path / ".env"


def start(file: Path) -> str:
    """Start as a worker does, which imports the app first; returns the secret."""
    settings = load(file)
    ensure_secret(settings, file)
    return settings.better_auth_secret


def test_first_start_creates_env_file_with_a_secret_and_the_next_keeps_it(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "link", raising=False)  # as on exFAT, which has no hard links
    secret = start(env)
    assert len(bytes.fromhex(secret)) == 32
    if os.name != "nt":  # where a file's mode says nothing about its readers
        assert env.stat().st_mode & 0o777 == 0o600
    text = env.read_text(encoding="utf-8")
    assert f"\nBETTER_AUTH_SECRET={secret}\n" in text
    assert text.replace(secret, "") == (ROOT / ".env.example").read_text(encoding="utf-8")
    assert start(env) == secret
    assert list(env.parent.iterdir()) == [env]
    env.unlink()
    assert start(env) != secret


def test_reading_the_settings_creates_no_file(env: Path) -> None:
    load(env)
    assert not list(env.parent.iterdir())


def test_workers_that_start_together_use_one_secret(env: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(start, [env] * 8))
    assert len(secrets) == 1
    assert secrets == {start(env)}
    assert list(env.parent.iterdir()) == [env]


THEIRS = f"BETTER_AUTH_SECRET={'o' * 64}\n"


def test_worker_waits_while_another_creates_the_env_file(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.with_name(".env.new").mkdir()
    monkeypatch.setattr(time, "sleep", lambda _seconds: env.write_text(THEIRS, encoding="utf-8"))
    assert start(env) == "o" * 64


def test_env_file_of_a_faster_worker_is_kept(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def mkdir_too_late(folder: Path, mode: int) -> None:
        env.write_text(THEIRS, encoding="utf-8")
        mkdir(folder, mode)

    monkeypatch.setattr(Path, "mkdir", mkdir_too_late)
    assert start(env) == "o" * 64
    assert list(env.parent.iterdir()) == [env]


def test_full_disk_leaves_no_incomplete_env_file(
    env: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    write_text = Path.write_text

    def write_half(file: Path, text: str, **options: Any) -> None:
        write_text(file, text[: len(text) // 2], **options)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    assert ".env cannot be created: No space left on device" in refusal(start, env)
    assert not list(env.parent.iterdir())


def test_folder_left_by_a_killed_start_is_named(
    env: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal, uptime: Clock
) -> None:
    left_behind = env.with_name(".env.new")
    left_behind.mkdir()
    monkeypatch.setattr(time, "sleep", uptime.forward)
    line = refusal(start, env)
    assert f".env cannot be created: a start that was killed has left {left_behind}: delete it" in line


def test_env_file_without_a_secret_is_refused_and_not_changed(env: Path, refusal: Refusal) -> None:
    env.write_text("DATABASE_URL=\nBETTER_AUTH_SECRET='  '\n", encoding="utf-8")
    before = env.read_bytes()
    assert "BETTER_AUTH_SECRET: not set; use: openssl rand -hex 32" in refusal(start, env)
    assert env.read_bytes() == before


def test_env_file_is_read_and_the_environment_wins(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "ENVIRONMENT=staging\nDATABASE_URL=sqlite:///of_the_file.db\n"
    env.write_text(text, encoding="utf-8-sig")  # as Windows PowerShell writes UTF-8
    monkeypatch.delenv("ENVIRONMENT")
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///of_the_environment.db")
    settings = load(env)
    assert settings.environment == "staging"
    assert settings.database_url.database == "of_the_environment.db"


@pytest.mark.parametrize(
    ("variable", "value"), [("BETTER_AUTH_URL", "https://app.example.com"), ("BETTER_AUTH_SECRET", SECRET)]
)
def test_env_file_is_not_needed_with_a_secret_or_better_auth(
    env: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    start(env)
    assert not env.exists()


@pytest.mark.parametrize("content", ["a".encode("utf-16"), b"X_OF_A_TEST=a\0b\n"], ids=["UTF-16", "NUL"])
def test_env_file_must_be_utf8(env: Path, refusal: Refusal, content: bytes) -> None:
    env.write_bytes(content)
    assert ".env is not UTF-8 text" in refusal(load, env)


def test_env_file_that_cannot_be_read_is_refused(
    env: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    def fail(*_: object, **_options: object) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr("hardening.settings.load_dotenv", fail)  # a test that runs as root may read all files
    assert ".env cannot be read: Permission denied" in refusal(load, env)


# ENVIRONMENT


def test_empty_environment_is_development() -> None:
    assert read(ENVIRONMENT="").environment == "development"


def test_unknown_environment_is_refused(refused: Refused) -> None:
    line = refused(ENVIRONMENT="prod")
    assert "ENVIRONMENT: Input should be 'development', 'staging' or 'production'" in line


# BETTER_AUTH_SECRET

STRICT = ["staging", "production"]


def test_secret_of_32_bytes_is_accepted() -> None:
    secret = "äöüßéèñç" * 2
    assert read(ENVIRONMENT="production", BETTER_AUTH_SECRET=secret).better_auth_secret == secret


RANDOM = "x7Kq4mW9pR2tY8vB3nL6cD1fG5hJ0sZa"
WEAK_SECRETS = {
    "31 bytes": RANDOM[:31],
    "change": f"change-me-{RANDOM}",
    "replace": f"replace-{RANDOM}",
    "example": f"example-{RANDOM}",
    "placeholder": f"{RANDOM}-placeholder",
    "your-": f"your-secret-{RANDOM}",
    "your_": f"YOUR_SECRET_{RANDOM}",
    "your and a space": f"your secret {RANDOM}",
    "Better Auth's default": "better-auth-secret-123456789012345",
    "SSH key": f"ssh-ed25519 {RANDOM}",
    "PEM": f"-----BEGIN PUBLIC KEY-----{RANDOM}",
    "seven letters": "abcdefg" * 6,
}


@pytest.mark.parametrize("secret", WEAK_SECRETS.values(), ids=WEAK_SECRETS)
def test_weak_secrets_are_refused_outside_development(refused: Refused, secret: str) -> None:
    line = refused(ENVIRONMENT="production", BETTER_AUTH_SECRET=secret)
    assert "BETTER_AUTH_SECRET: too short or a placeholder; use: openssl rand -hex 32" in line
    assert secret not in line
    assert read(ENVIRONMENT="development", BETTER_AUTH_SECRET=secret).better_auth_secret == secret


@pytest.mark.parametrize("environment", STRICT)
@pytest.mark.parametrize("variable", ["BETTER_AUTH_SECRET", "DATABASE_URL"])
def test_secret_and_database_must_be_set_outside_development(
    refused: Refused, environment: str, variable: str
) -> None:
    assert f"{variable}: not set" in refused(**{"ENVIRONMENT": environment, variable: "  "})


# BETTER_AUTH_URL and CORS_ORIGINS

ORIGINS = {
    "https://app.example.com/": "https://app.example.com",
    "HTTPS://App.Example.COM:443": "https://app.example.com",
    "  http://localhost:3000 ": "http://localhost:3000",
    "http://localhost:80": "http://localhost",
    "http://localhost:443": "http://localhost:443",
    "http://my_host": "http://my_host",
    "http://[::1]:3000": "http://[::1]:3000",
    "http://[2001:DB8::1]": "http://[2001:db8::1]",
}


@pytest.mark.parametrize(("given", "origin"), ORIGINS.items())
def test_origins_are_written_as_browsers_write_them(given: str, origin: str) -> None:
    settings = read(BETTER_AUTH_URL=given, CORS_ORIGINS=given)
    assert (settings.better_auth_origin, settings.better_auth_url) == (origin, f"{origin}/api/auth")
    assert settings.cors_origins == [origin]


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://a.example/api/auth/", "https://a.example/api/auth"),
        ("https://a.example:443/Sign-In/v1.0", "https://a.example/Sign-In/v1.0"),
    ],
)
def test_better_auth_url_may_have_a_base_path(given: str, url: str) -> None:
    settings = read(BETTER_AUTH_URL=given)
    assert (settings.better_auth_origin, settings.better_auth_url) == ("https://a.example", url)


INVALID_ORIGINS = ["*", "localhost:3000", "ftp://a.example", "https://", "https://a.example?x=1"]
INVALID_ORIGINS += ["https://a.example:port", "https://a.example:123456", "http://[::1"]
INVALID_ORIGINS += ["https://a b.example", "https://a.example\nx"]


@pytest.mark.parametrize("given", INVALID_ORIGINS)
@pytest.mark.parametrize("variable", ["BETTER_AUTH_URL", "CORS_ORIGINS"])
def test_invalid_origins_are_refused(refused: Refused, variable: str, given: str) -> None:
    line = refused(**{variable: given})
    assert f"{variable}: {given!r} is not an origin such as https://app.example.com" in line


def test_password_in_an_origin_is_not_logged(refused: Refused) -> None:
    line = refused(BETTER_AUTH_URL="https://u:pa55@a.example")
    assert "BETTER_AUTH_URL: 'a.example' is not" in line
    assert "pa55" not in line


def test_cors_origins_are_separated_by_commas(refused: Refused) -> None:
    given = " https://A.example/ ,, http://b.example:80,http://[::1]:3000 , "
    assert read(CORS_ORIGINS=given).cors_origins == [
        "https://a.example",
        "http://b.example",
        "http://[::1]:3000",
    ]
    assert "CORS_ORIGINS: 'b.example' is not" in refused(CORS_ORIGINS="https://a.example,b.example")


def test_cors_origins_default_to_the_frontend() -> None:
    better_auth = "https://app.example.com/sign-in"
    assert read(CORS_ORIGINS="").cors_origins == ["http://localhost:3000"]
    assert read(CORS_ORIGINS="", BETTER_AUTH_URL=better_auth).cors_origins == ["https://app.example.com"]
    other = "https://other.example"
    assert read(CORS_ORIGINS=other, BETTER_AUTH_URL=better_auth).cors_origins == [other]


# DATABASE_URL


@pytest.mark.parametrize(("pasted", "file"), [("", "todo.db"), ("sqlite+aiosqlite:///other.db", "other.db")])
def test_pasted_sqlite_urls_work(pasted: str, file: str) -> None:
    url = read(DATABASE_URL=pasted).database_url
    assert (url.drivername, url.database) == ("sqlite", file)


def connect_arguments(url: str) -> dict[str, Any]:
    """What libpq would be asked to connect with."""
    used = read(DATABASE_URL=url).database_url
    assert used.drivername == "postgresql+psycopg2"
    dialect: Any = PGDialect_psycopg2
    positional, named = dialect().create_connect_args(used)
    assert not positional
    return dict(named)


def test_connections_use_utf8_and_notice_dead_servers() -> None:
    assert connect_arguments("postgresql://u:p@h/d") == {
        "host": "h",
        "user": "u",
        "password": "p",
        "dbname": "d",
        "client_encoding": "utf8",
        "connect_timeout": "5",
        "keepalives_idle": "30",
        "tcp_user_timeout": "3000",
    }


USUAL = {"host": "h", "user": "u", "password": "p", "dbname": "d"}
NEON = "postgresql://u:p@h/d?sslmode=require&channel_binding=require&connect_timeout=3"
DATABASE_URLS = {
    "postgres://u:p@h/d": USUAL,
    "postgresql+asyncpg://u:p@h:6543/d": USUAL | {"port": "6543"},
    "postgresql+psycopg2://u:p%40ss%2F%3F%25@h/d": USUAL | {"password": "p@ss/?%"},
    "postgresql://u:p,#:w@h/d": USUAL | {"password": "p,#:w"},
    "psql  'postgresql://u:p@h/d'": USUAL,
    NEON: USUAL | {"sslmode": "require", "channel_binding": "require", "connect_timeout": "3"},
    "postgresql:///d": {"host": None, "dbname": "d"},
    "postgresql://u@/d?host=/run/postgresql": {"host": "/run/postgresql", "user": "u", "dbname": "d"},
    "postgresql://[2001:db8::1]:5433/d": {"host": "2001:db8::1", "port": "5433"},
    "postgresql:///d?host=2001:db8::1,b": {"host": "2001:db8::1,b"},
    "postgresql://u@a:5432,b:5433/d": {"host": "a,b", "port": "5432,5433", "user": "u"},
    "postgresql://u:p@a,b/d?target_session_attrs=read-write": {
        "host": "a,b",
        "password": "p",
        "target_session_attrs": "read-write",
    },
}


@pytest.mark.parametrize(("pasted", "used"), DATABASE_URLS.items())
def test_pasted_database_urls_work(pasted: str, used: dict[str, str | None]) -> None:
    arguments = connect_arguments(pasted)
    assert {name: arguments.get(name) for name in used} == used


EXAMPLE = "postgresql://user:password@host/name"
UNESCAPED = "in a user name or password, write @ as %40, / as %2F, and ? as %3F"
HOSTS = "hosts and ports are written postgresql://user:password@a:5432,b:5432/name"
BAD_DATABASE_URLS = {
    "words": ("my pa55 database", f"not a PostgreSQL or SQLite URL such as {EXAMPLE}"),
    "no host": ("postgresql://u:pa55/d", "the port is not a number"),
    "@": ("postgresql://u:pa55@pa55@h/d", UNESCAPED),
    "/": ("postgresql://u:12/pa55@h/d", UNESCAPED),
    "?": ("postgresql://u?password=a@pa55", UNESCAPED),
    "%": ("postgresql://u:%pa55@h/d", f"not such as {EXAMPLE}, with %25 for a %"),
    "unknown option": ("postgresql://u:pa55@h/d?x=1", 'invalid URI query parameter: "x"'),
    "port in host=": ("postgresql://u:pa55@/d?host=a:5432,b:5432", HOSTS),
    "repeated host=": ("postgresql://u:pa55@/d?host=a&host=b", HOSTS),
    "SQLite with two slashes": ("sqlite://data/todo.db", "use three slashes, as in sqlite:///todo.db"),
    "SQLite without a file": ("sqlite:///", "needs a file"),
    "SQLite in memory": ("sqlite:///:memory:", "needs a file"),
    "SQLite with a file: URL": ("sqlite:///file:x?mode=memory&uri=true", "needs a file"),
}


@pytest.mark.parametrize(("given", "reason"), BAD_DATABASE_URLS.values(), ids=BAD_DATABASE_URLS)
def test_unusable_database_urls_are_refused(refused: Refused, given: str, reason: str) -> None:
    line = refused(DATABASE_URL=given)
    assert f"DATABASE_URL: {reason}" in line
    assert "pa55" not in line


# AUTH_RATE_LIMIT and RATE_LIMIT_STORAGE


@pytest.mark.parametrize(
    ("given", "attempts", "seconds"), [("", 10, 60), ("1/hour", 1, 3600), ("100 per 2 minutes", 100, 120)]
)
def test_valid_rate_limits(given: str, attempts: int, seconds: int) -> None:
    limit = read(AUTH_RATE_LIMIT=given).auth_rate_limit
    assert (limit.amount, limit.get_expiry()) == (attempts, seconds)


@pytest.mark.parametrize("given", ["a lot", "10/minute;100/hour", "0/minute"])
def test_unusable_rate_limits_are_refused(refused: Refused, given: str) -> None:
    assert "AUTH_RATE_LIMIT: give one limit, like 10/minute" in refused(AUTH_RATE_LIMIT=given)


BAD_STORAGES = {
    "unknown": ("floppy://u:pa55@a", "cannot be used: unknown"),
    "asynchronous and unknown": ("async+floppy://u:pa55@a", "cannot be used"),
    "@ and /": ("redis://:abc@pa55/x@127.0.0.1:1", UNESCAPED),
}


@pytest.mark.parametrize(("given", "reason"), BAD_STORAGES.values(), ids=BAD_STORAGES)
def test_unusable_storages_are_refused_without_their_password(
    refused: Refused, given: str, reason: str
) -> None:
    line = refused(RATE_LIMIT_STORAGE=given)
    assert f"RATE_LIMIT_STORAGE: {reason}" in line
    assert "pa55" not in line


def test_password_in_a_storage_error_is_not_logged(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def fail(_uri: str, **_options: Any) -> None:
        raise ValueError("Port could not be cast to integer value as 'pa55'")

    monkeypatch.setattr("limits.storage.storage_from_string", fail)
    line = refused(RATE_LIMIT_STORAGE="redis://:pa55#x@h:1")
    assert "RATE_LIMIT_STORAGE: cannot be used" in line
    assert "pa55" not in line


@pytest.mark.parametrize("uri", ["rediss://h", "async+redis://h"])
def test_redis_times_out_after_a_second(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def remember(uri: str, **options: Any) -> MemoryStorage:
        asked.append((uri, options))
        return MemoryStorage()

    monkeypatch.setattr("limits.storage.storage_from_string", remember)
    read(RATE_LIMIT_STORAGE=uri)
    ((used, options),) = asked
    assert used == uri.removeprefix("async+")
    assert options == {"wrap_exceptions": True, "socket_timeout": 1, "socket_connect_timeout": 1}


def test_storage_that_is_down_is_refused(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setattr(MemoryStorage, "check", lambda _storage: False)
    assert "RATE_LIMIT_STORAGE: cannot be reached" in refused(RATE_LIMIT_STORAGE="memory://")
