"""The first start creates .env: one secret for all workers and later starts. Only its owner can read it."""

import shutil
import time
from pathlib import Path

from dotenv import dotenv_values

from hardening.settings import ENV_FILE, ROOT, Settings, logger, refuse_to_start


def ensure_secret(settings: Settings, file: Path = ENV_FILE) -> None:
    if settings.better_auth_url or "better_auth_secret" in settings.model_fields_set:
        return
    try:
        create_env_file(file, settings.better_auth_secret)
    except OSError as error:
        refuse_to_start(f".env cannot be created: {error}")
    secret = (dotenv_values(file).get("BETTER_AUTH_SECRET") or "").strip()
    if not secret:
        refuse_to_start("BETTER_AUTH_SECRET: not set; use: openssl rand -hex 32")
    settings.better_auth_secret = secret


# Workers may start together. The folder is a lock: mkdir fails if another worker has created it. The one that
# has it writes the file in there, and moves it out when it is complete. The others wait.
def create_env_file(file: Path, secret: str) -> None:
    folder = file.with_name(".env.new")
    deadline = time.monotonic() + 10  # seconds
    while not file.exists():
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            if time.monotonic() > deadline:
                raise FileExistsError(f"a start that was killed has left {folder}: delete it") from None
            time.sleep(0.05)
            continue
        try:
            if not file.exists():  # else another worker created it just before our mkdir
                write_env_file(folder / "env", secret)
                (folder / "env").rename(file)
                logger.info("Created .env from .env.example, with a fresh BETTER_AUTH_SECRET.")
        finally:
            shutil.rmtree(folder)


def write_env_file(file: Path, secret: str) -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    file.touch(0o600)
    file.write_text(text.replace("BETTER_AUTH_SECRET=", f"BETTER_AUTH_SECRET={secret}"), encoding="utf-8")
