"""A real server of the API, as a user starts it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from hardening.settings import ROOT, Settings

VARIABLES = {name.upper() for name in Settings.model_fields}
FILES = [path.name for path in ROOT.glob("*.py")]
FILES += ["routes", "hardening", "migrations", "pyproject.toml", ".env.example"]


def copy_project(folder: Path) -> Path:
    """Copy the project like a fresh clone: without .env and database."""
    for name in FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Server:
    stdout: IO[str] | int = subprocess.PIPE

    def __init__(self, clone: Path, *arguments: str, **variables: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        environment |= variables
        port = self.url.rpartition(":")[2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "main:app", "--port", port, *arguments],
            cwd=clone,
            env=environment,
            text=True,
            stdout=self.stdout,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return str(response.read().decode())

    def status(self, path: str, headers: dict[str, str]) -> int:
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "the server did not respond within a minute"
            with suppress(OSError):
                self.get("/health")
                return
            time.sleep(0.05)
        pytest.fail(f"the server ended: {self.process.stdout and self.process.stdout.read()}")

    def end(self) -> tuple[int, str]:
        """Ask it to stop; returns its exit code and its output."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output


@contextmanager
def serving(clone: Path, *arguments: str, **variables: str) -> Iterator[Server]:
    server = Server(clone, *arguments, **variables)
    try:
        server.wait()
        yield server
    finally:
        server.process.kill()
        server.process.communicate()
