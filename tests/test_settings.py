"""Each setting: what is understood, what is the default, and what ends the start. No server is started."""

import os
from pathlib import Path
from typing import Any

import pytest
from limits.storage import MemoryStorage
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from hardening.settings import ROOT, counters, load
from tests.conftest import Refusal
from tests.support.environment import SECRET

# .env and ENVIRONMENT


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where .env will be after the first start; no secret in the environment."""
    monkeypatch.setenv("BETTER_AUTH_SECRET", "")
    return tmp_path / ".env"


def test_first_start_makes_an_env_file_with_a_secret_and_the_next_keeps_it(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = load(env).better_auth_secret
    assert len(bytes.fromhex(secret)) == 32
    if os.name != "nt":  # where a file's mode says nothing about its readers
        assert env.stat().st_mode & 0o777 == 0o600
    assert env.read_text(encoding="utf-8").replace(secret, "") == (ROOT / ".env.example").read_text(
        encoding="utf-8"
    )
    assert load(env).better_auth_secret == secret
    assert list(env.parent.iterdir()) == [env]
    env.unlink()
    assert load(env).better_auth_secret != secret


def test_env_file_that_another_worker_made_meanwhile_is_kept(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = "o" * 64
    link = os.link

    def link_too_late(source: str, target: Path) -> None:
        target.write_text(f"BETTER_AUTH_SECRET={theirs}\n", encoding="utf-8")
        link(source, target)

    monkeypatch.setattr(os, "link", link_too_late)
    assert load(env).better_auth_secret == theirs


def test_env_file_is_complete_as_soon_as_it_is_there(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker may read it at once."""
    found: list[str] = []
    link = os.link

    def link_and_read(source: str, target: Path) -> None:
        link(source, target)
        found.append(target.read_text(encoding="utf-8"))

    monkeypatch.setattr(os, "link", link_and_read)
    secret = load(env).better_auth_secret
    assert found == [env.read_text(encoding="utf-8")]
    assert f"BETTER_AUTH_SECRET={secret}\n" in found[0]


def test_env_file_without_a_secret_is_not_touched(
    env: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    env.write_text("DATABASE_URL=\n", encoding="utf-8")
    assert "BETTER_AUTH_SECRET: not set" in refusal(load, env)
    assert env.read_text(encoding="utf-8") == "DATABASE_URL=\n"


def test_env_file_is_read_and_the_environment_wins(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.write_text("ENVIRONMENT=staging\nDATABASE_URL=sqlite:///of_the_file.db\n", encoding="utf-8")
    monkeypatch.delenv("ENVIRONMENT")
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///of_the_environment.db")
    started = load(env)
    assert started.environment == "staging"
    assert started.database_url.database == "of_the_environment.db"


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_no_secret_is_made_outside_development(
    env: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal, environment: str
) -> None:
    monkeypatch.setenv("ENVIRONMENT", environment)
    assert "BETTER_AUTH_SECRET: not set" in refusal(load, env)
    assert not env.exists()


def test_no_secret_is_made_beside_better_auth(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", "https://app.example.com")
    load(env)
    assert not env.exists()


def test_env_file_in_utf16_is_refused(env: Path, refusal: Refusal) -> None:
    env.write_text("DATABASE_URL=\n", encoding="utf-16")
    assert ".env is not UTF-8 text" in refusal(load, env)


def test_env_file_with_nul_is_refused(env: Path, refusal: Refusal) -> None:
    env.write_bytes(b"X_OF_A_TEST=a\0b\n")
    assert ".env is not UTF-8 text" in refusal(load, env)


def test_env_file_that_cannot_be_made_is_refused(env: Path, refusal: Refusal) -> None:
    assert ".env cannot be read or made" in refusal(load, env.parent / "nowhere" / ".env")


def test_empty_environment_is_development(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "")
    assert load(env).environment == "development"


def test_unknown_environment_is_refused(env: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    monkeypatch.setenv("ENVIRONMENT", "prod")
    line = refusal(load, env)
    assert "ENVIRONMENT: Input should be 'development', 'staging' or 'production'" in line


# BETTER_AUTH_SECRET


@pytest.fixture(params=["staging", "production"])
def strict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", request.param)


GOOD_SECRETS = {"hex": SECRET, "32 bytes": "x7Kq4mW9" * 4, "16 characters of two bytes": "äöüßéèñç" * 2}


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("secret", GOOD_SECRETS.values(), ids=GOOD_SECRETS)
def test_good_secrets_are_taken(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", secret)
    assert secret == load().better_auth_secret


RANDOM = "x7Kq4mW9pR2tY8vB3nL6cD1fG5hJ0sZa"
PLACEHOLDERS = {
    "change": f"change-me-{RANDOM}",
    "Change": f"{RANDOM} CHANGE THIS",
    "replace": f"replace-{RANDOM}",
    "example": f"example-{RANDOM}",
    "placeholder": f"{RANDOM}-placeholder",
    "your-": f"your-secret-{RANDOM}",
    "your_": f"YOUR_SECRET_{RANDOM}",
    "your and a blank": f"your secret {RANDOM}",
    "Better Auth's default": "better-auth-secret-123456789012345",
    "SSH key": f"ssh-ed25519 {RANDOM}",
    "PEM": f"-----BEGIN PUBLIC KEY-----{RANDOM}",
    "one letter": "x" * 40,
    "seven letters": "abcdefg" * 6,
}


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("secret", PLACEHOLDERS.values(), ids=PLACEHOLDERS)
def test_placeholders_are_refused(monkeypatch: pytest.MonkeyPatch, refusal: Refusal, secret: str) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", secret)
    line = refusal(load)
    assert "BETTER_AUTH_SECRET: short, a placeholder" in line
    assert "openssl rand -hex 32" in line
    assert secret not in line


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("secret", "reason"), [("", "not set"), (RANDOM[:31], "short")], ids=["none", "31 bytes"]
)
def test_short_secrets_are_refused(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal, secret: str, reason: str
) -> None:
    monkeypatch.setenv("BETTER_AUTH_SECRET", secret)
    line = refusal(load)
    assert f"BETTER_AUTH_SECRET: {reason}" in line
    assert "openssl rand -hex 32" in line


# BETTER_AUTH_URL and CORS_ORIGINS

ORIGINS = {
    "https://app.example.com": "https://app.example.com",
    "https://app.example.com/": "https://app.example.com",
    "HTTPS://App.Example.COM": "https://app.example.com",
    "  http://localhost:3000 ": "http://localhost:3000",
    "https://app.example.com:443": "https://app.example.com",
    "http://localhost:80": "http://localhost",
    "http://localhost:443": "http://localhost:443",
    "https://localhost:80": "https://localhost:80",
    "https://a.example:8443": "https://a.example:8443",
    "http://my_host": "http://my_host",
    "http://127.0.0.1:3000": "http://127.0.0.1:3000",
    "http://[::1]:3000": "http://[::1]:3000",
    "http://[2001:DB8::1]": "http://[2001:db8::1]",
}


@pytest.mark.parametrize(("given", "origin"), ORIGINS.items())
def test_origins_are_understood_as_browsers_write_them(
    monkeypatch: pytest.MonkeyPatch, given: str, origin: str
) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", given)
    monkeypatch.setenv("CORS_ORIGINS", given)
    started = load()
    assert (origin, f"{origin}/api/auth") == (started.better_auth_origin, started.better_auth_url)
    assert [origin] == started.cors_origins


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://a.example/api/auth", "https://a.example/api/auth"),
        ("https://a.example/api/auth/", "https://a.example/api/auth"),
        ("https://a.example:443/Sign-In/v1.0", "https://a.example/Sign-In/v1.0"),
    ],
)
def test_better_auth_url_may_have_a_base_path(monkeypatch: pytest.MonkeyPatch, given: str, url: str) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", given)
    started = load()
    assert ("https://a.example", url) == (started.better_auth_origin, started.better_auth_url)


def test_better_auth_url_is_unset_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BETTER_AUTH_URL")
    assert not load().better_auth_url


NO_ORIGINS = ["*", "localhost:3000", "app.example.com", "ftp://a.example", "https://", "https:///", "null"]
NO_ORIGINS += ["https://a.example?x=1", "https://a.example/#x", "https://a.example:port"]
NO_ORIGINS += ["https://a.example:123456", "http://[::1", "https://a b.example", "https://a.example\nx"]


@pytest.mark.parametrize("given", NO_ORIGINS)
@pytest.mark.parametrize("variable", ["BETTER_AUTH_URL", "CORS_ORIGINS"])
def test_what_is_no_origin_is_refused(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal, variable: str, given: str
) -> None:
    monkeypatch.setenv(variable, given)
    line = refusal(load)
    assert f"{variable}: {given!r} is not an origin such as https://app.example.com" in line


@pytest.mark.parametrize("variable", ["BETTER_AUTH_URL", "CORS_ORIGINS"])
def test_password_in_an_origin_is_refused_unseen(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal, variable: str
) -> None:
    monkeypatch.setenv(variable, "https://u:pa55@a.example")
    line = refusal(load)
    assert f"{variable}: 'a.example' is not" in line
    assert "pa55" not in line


def test_cors_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", " https://A.example/ ,, http://b.example:80,http://[::1]:3000 , ")
    assert load().cors_origins == ["https://a.example", "http://b.example", "http://[::1]:3000"]


def test_one_bad_origin_among_good_ones_is_refused(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example,b.example")
    assert "CORS_ORIGINS: 'b.example' is not" in refusal(load)


@pytest.mark.parametrize(
    ("better_auth", "default"),
    [("", "http://localhost:3000"), ("https://app.example.com/sign-in", "https://app.example.com")],
)
def test_cors_origins_default_to_the_frontend(
    monkeypatch: pytest.MonkeyPatch, better_auth: str, default: str
) -> None:
    monkeypatch.setenv("BETTER_AUTH_URL", better_auth)
    monkeypatch.setenv("CORS_ORIGINS", "")
    assert [default] == load().cors_origins
    monkeypatch.setenv("CORS_ORIGINS", "https://other.example")
    assert load().cors_origins == ["https://other.example"]


# DATABASE_URL

DATABASE_URLS = {
    "": "sqlite:///todo.db",
    "sqlite:///other.db": "sqlite:///other.db",
    "sqlite:////absolute/other.db": "sqlite:////absolute/other.db",
    "sqlite+aiosqlite:///other.db": "sqlite:///other.db",
    "postgres://u:p@h/d": "postgresql+psycopg2://u:p@h/d",
    "postgresql://u:p@h/d": "postgresql+psycopg2://u:p@h/d",
    "postgresql+asyncpg://u:p@h:6543/d": "postgresql+psycopg2://u:p@h:6543/d",
    "postgresql+psycopg2://u:p%40ss@h/d": "postgresql+psycopg2://u:p%40ss@h/d",
    "postgresql://u:p,w@h/d": "postgresql+psycopg2://u:p%2Cw@h/d",
    "psql  'postgresql://u:p@h/d'": "postgresql+psycopg2://u:p@h/d",
    "   ": "sqlite:///todo.db",
}


@pytest.mark.parametrize(("pasted", "used"), DATABASE_URLS.items())
def test_database_urls_are_understood_as_people_have_them(
    monkeypatch: pytest.MonkeyPatch, pasted: str, used: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", pasted)
    used_url = load().database_url
    host, port = used_url.query.get("host"), used_url.query.get("port")
    assert isinstance(host, str | None)
    shown = used_url.set(query={}, host=host, port=int(str(port)) if port else None)
    assert shown.render_as_string(hide_password=False) == used


def libpq_arguments() -> dict[str, Any]:
    """What libpq would be asked to connect with."""
    dialect: Any = PGDialect_psycopg2
    positional, named = dialect().create_connect_args(load().database_url)
    assert not positional
    return dict(named)


def test_connection_defaults_utf8_timeout_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@h/d")
    assert libpq_arguments() == {
        "host": "h",
        "user": "u",
        "password": "p",
        "dbname": "d",
        "client_encoding": "utf8",
        "connect_timeout": "5",
        "keepalives_idle": "30",
        "tcp_user_timeout": "3000",
    }


def test_what_the_database_url_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    neon = "postgresql://me:npg_x@ep-a-1-pooler.eu-central-1.aws.neon.tech/neondb?sslmode=require"
    monkeypatch.setenv("DATABASE_URL", neon + "&channel_binding=require&connect_timeout=3")
    arguments = libpq_arguments()
    assert (arguments["sslmode"], arguments["channel_binding"]) == ("require", "require")
    assert (arguments["connect_timeout"], arguments["keepalives_idle"]) == ("3", "30")


SEVERAL_HOSTS = {
    "ports": ("u@a:5432,b:5433", "a,b", "5432,5433"),
    "no ports": ("u:p@a,b,c", "a,b,c", ""),
    "no user": ("a:1,b:2", "a,b", "1,2"),
}


@pytest.mark.parametrize(("hosts", "names", "ports"), SEVERAL_HOSTS.values(), ids=SEVERAL_HOSTS)
def test_database_url_may_have_several_hosts(
    monkeypatch: pytest.MonkeyPatch, hosts: str, names: str, ports: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://{hosts}/d?target_session_attrs=read-write")
    arguments = libpq_arguments()
    assert (arguments["host"], arguments["dbname"]) == (names, "d")
    assert arguments.get("port", "").strip(",") == ports
    assert arguments["target_session_attrs"] == "read-write"


BAD_DATABASE_URLS = {
    "no URL": ("my database", "DATABASE_URL: not a database URL: postgresql://user:password@host/name"),
    "no port": ("postgresql://u:pa55@h:port/d", "DATABASE_URL: not a database URL"),
    "MySQL": (
        "mysql://root:pa55@localhost/d",
        "DATABASE_URL: 'mysql' is not supported; PostgreSQL and SQLite are",
    ),
    "two @": ("postgresql://u:pa55@word@h/d", "DATABASE_URL: two @; the one in the password is written %40"),
    "SQLite with two slashes": ("sqlite://data/todo.db", "DATABASE_URL: three slashes before a file"),
    "unknown option": ("postgresql://u:pa55@h/d?x=1", 'not a database URL: invalid URI query parameter: "x"'),
    "SQLite without a file": ("sqlite://", "DATABASE_URL: names no file"),
    "SQLite in memory": ("sqlite:///:memory:", "DATABASE_URL: names no file"),
    "SQLite with a file: URL": ("sqlite:///file:x?mode=memory&uri=true", "DATABASE_URL: names no file"),
}


@pytest.mark.parametrize(("given", "reason"), BAD_DATABASE_URLS.values(), ids=BAD_DATABASE_URLS)
def test_unusable_database_urls_are_refused(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal, given: str, reason: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    line = refusal(load)
    assert reason in line
    assert "pa55" not in line


@pytest.mark.usefixtures("strict")
def test_database_url_must_be_set_outside_development(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.setenv("DATABASE_URL", "  ")
    assert "DATABASE_URL: not set" in refusal(load)


# AUTH_RATE_LIMIT and RATE_LIMIT_STORAGE


@pytest.mark.parametrize(
    ("given", "attempts", "seconds"), [("", 10, 60), ("3/hour", 3, 3600), ("100 per 2 minutes", 100, 120)]
)
def test_rate_limits_are_understood(
    monkeypatch: pytest.MonkeyPatch, given: str, attempts: int, seconds: int
) -> None:
    monkeypatch.setenv("AUTH_RATE_LIMIT", given)
    limit = load().auth_rate_limit
    assert (limit.amount, limit.get_expiry()) == (attempts, seconds)


BAD_LIMITS = {
    "words": ("a lot", "AUTH_RATE_LIMIT: not one limit such as 10/minute"),
    "no period": ("10", "AUTH_RATE_LIMIT: not one limit"),
    "two limits": ("10/minute;100/hour", "AUTH_RATE_LIMIT: not one limit"),
    "none": ("0/minute", "AUTH_RATE_LIMIT: "),
}


@pytest.mark.parametrize(("given", "reason"), BAD_LIMITS.values(), ids=BAD_LIMITS)
def test_unusable_rate_limits_are_refused(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal, given: str, reason: str
) -> None:
    monkeypatch.setenv("AUTH_RATE_LIMIT", given)
    assert reason in refusal(load)


BAD_STORAGES = {
    "unknown": ("floppy://u:pa55@a", "RATE_LIMIT_STORAGE: cannot be used: unknown"),
    "no URI": ("pa55", "RATE_LIMIT_STORAGE: cannot be used"),
    "asynchronous and unknown": ("async+floppy://u:pa55@a", "RATE_LIMIT_STORAGE: cannot be used"),
}


@pytest.mark.parametrize(("given", "reason"), BAD_STORAGES.values(), ids=BAD_STORAGES)
def test_unusable_storages_are_refused_without_their_password(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal, given: str, reason: str
) -> None:
    monkeypatch.setenv("RATE_LIMIT_STORAGE", given)
    line = refusal(load)
    assert reason in line
    assert "pa55" not in line


def test_storage_whose_client_quotes_the_password_is_refused_without_it(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    def fail(_uri: str, **_options: Any) -> None:
        raise ValueError("Port could not be cast to integer value as 'pa55'")

    monkeypatch.setattr("limits.storage.storage_from_string", fail)
    monkeypatch.setenv("RATE_LIMIT_STORAGE", "redis://:pa55/x@h:1")
    line = refusal(load)
    assert "RATE_LIMIT_STORAGE: cannot be used" in line
    assert "pa55" not in line


def test_storage_named_as_for_asynchronous_use_works_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE_LIMIT_STORAGE", "async+memory://")
    assert type(load().rate_limit_storage.storage) is MemoryStorage


@pytest.mark.parametrize("uri", ["redis://u:pa55@h", "rediss://h", "async+redis://h", "redis+sentinel://h"])
def test_redis_that_hangs_is_given_up_after_a_second(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def remember(uri: str, **options: Any) -> MemoryStorage:
        asked.append((uri, options))
        return MemoryStorage()

    monkeypatch.setattr("limits.storage.storage_from_string", remember)
    counters(uri)
    ((used, options),) = asked
    assert used == uri.removeprefix("async+")
    assert options == {"wrap_exceptions": True, "socket_timeout": 1, "socket_connect_timeout": 1}


def test_storage_that_is_away_is_refused(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    monkeypatch.setenv("RATE_LIMIT_STORAGE", "memory://")
    monkeypatch.setattr(MemoryStorage, "check", lambda _storage: False)
    assert "RATE_LIMIT_STORAGE: cannot be reached" in refusal(load)
