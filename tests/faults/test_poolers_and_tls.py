"""PgBouncer, TLS or a Unix socket between the API and the database."""

import datetime as dt
import ipaddress
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from alembic import command, config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hardening.parsing import parse_database
from hardening.settings import ROOT, settings
from tests.conftest import until
from tests.faults.conftest import (
    UNPRIVILEGED,
    Cluster,
    Service,
    binary,
    folder_of_postgres,
    running,
    service,
    wire_to,
)
from tests.support.server import free_port
from tests.support.wire import Wire

pytestmark = pytest.mark.slow


def check_round_trips(api: Service, wire: Wire) -> None:
    """Each endpoint works, with one round trip."""
    user = api.user()
    task = user.create()
    path = f"/{task['id']}"
    for method, where, body, status in (
        ("POST", "", {"title": "x"}, 201),
        ("GET", "?search=x&completed=false&sort=title", None, 200),
        ("GET", path, None, 200),
        ("PUT", path, {"title": "y"}, 200),
        ("PATCH", path, {"description": "Größe 水"}, 200),
        ("PATCH", f"{path}/complete", None, 200),
        ("DELETE", path, None, 204),
    ):
        before = wire.trips
        response = user(method, where, json=body)
        assert response.status_code == status, response.text
        assert wire.trips - before == 1, (method, where)
    assert api.health() == 200


@contextmanager
def pgbouncer(cluster: Cluster) -> Iterator[int]:
    port, folder = free_port(), folder_of_postgres()
    (folder / "users").write_text('"app" ""\n')
    (folder / "ini").write_text(
        f"""[databases]
        * = host=127.0.0.1 port={cluster.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = trust
        auth_file = {folder}/users
        pool_mode = transaction
        default_pool_size = 2
        """
    )
    with (folder / "log").open("w") as log:
        command = [*UNPRIVILEGED, binary("pgbouncer"), str(folder / "ini")]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        try:
            until(lambda: "process up" in (folder / "log").read_text(encoding="utf-8"))
            yield port
        finally:
            process.terminate()
            process.wait(10)
    shutil.rmtree(folder)


def test_pgbouncer_in_transaction_mode(cluster: Cluster) -> None:
    with pgbouncer(cluster) as port, wire_to(port) as wire:
        with service(cluster.database(wire.port), "--workers", "2"):
            pass
        with service(cluster.database(wire.port)) as api:
            check_round_trips(api, wire)
            assert "Traceback" not in api.log.read_text(encoding="utf-8")


def certificate() -> tuple[bytes, bytes]:
    """A key, and a certificate for this machine, signed with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    here: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(here), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), made.public_bytes(pem)


@pytest.fixture(scope="module")
def secure() -> Iterator[Cluster]:
    """A server that refuses unencrypted connections."""
    cluster = Cluster(ssl="on")
    key, made = certificate()
    (cluster.data / "server.crt").write_bytes(made)
    shutil.copy(cluster.data / "server.crt", cluster.folder / "root.crt")
    (cluster.data / "server.key").write_bytes(key)
    (cluster.data / "server.key").chmod(0o600)
    if UNPRIVILEGED:
        shutil.chown(cluster.data / "server.key", "postgres")
    (cluster.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
    with running(cluster):
        cluster.sql("CREATE ROLE app LOGIN")
        yield cluster


@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_tls(secure: Cluster, mode: str) -> None:
    root = f"&sslrootcert={secure.folder}/root.crt" if mode == "verify-full" else ""
    connections = (
        "SELECT pid FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = 'app'"
    )
    with wire_to(secure.port) as wire, service(f"{secure.database(wire.port)}?sslmode={mode}{root}") as api:
        check_round_trips(api, wire)
        before = secure.sql(connections)
        user = api.user()
        for _ in range(50):
            user.create()
        assert secure.sql(connections) == before != []  # each request used the open connection


NOT_ENCRYPTED = "The connection to the database is not encrypted"


def test_unix_socket_logs_no_warning(cluster: Cluster) -> None:
    name = cluster.database().rpartition("/")[2]
    cluster.folder.chmod(0o755)
    url = f"postgresql://app@/{name}?host={cluster.folder}&port={cluster.port}"
    with service(url, environment="production") as api:
        api.user().create()
        assert NOT_ENCRYPTED not in api.log.read_text(encoding="utf-8")


def test_connection_with_tls_logs_no_warning(
    secure: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In production, with a database beyond private networks."""
    monkeypatch.setattr(settings, "database_url", parse_database(f"{secure.database()}?sslmode=require"))
    monkeypatch.setattr(settings, "environment", "production")
    monkeypatch.setattr(ipaddress, "ip_address", lambda _address: SimpleNamespace(is_global=True))
    command.upgrade(config.Config(toml_file=ROOT / "pyproject.toml"), "head")
    assert NOT_ENCRYPTED not in caplog.text
