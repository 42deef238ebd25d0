"""Nobody finds out a password by trying many: each try is expensive, and counted for client and account."""

import ipaddress
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from fastapi import HTTPException, Request

from hardening.settings import settings


# A hash is made to be expensive: it takes 19 MiB and all of a core for 20 ms, as OWASP asks of Argon2id.
def hash_password(password: str) -> str:
    kdf = Argon2id(salt=os.urandom(16), length=32, memory_cost=19_456, iterations=2, lanes=1)
    return kdf.derive_phc_encoded(password.encode())


def password_matches(password: str, phc: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password.encode(), phc)
    except InvalidKey:
        return False
    return True


# Checked when the address is unknown, so that it takes as long as a wrong password.
NOBODYS_HASH = hash_password(secrets.token_hex())


# Around an attempt. One that should not count is subtracted afterwards, so that two at once are not one.
@contextmanager
def counted(action: str, email: str, request: Request, *, success_counts: bool) -> Iterator[None]:
    limit, counters = settings.auth_rate_limit, settings.rate_limit_storage
    keys = [(action, "client", network(request)), (action, "account", email)]
    for key in keys:
        if not counters.hit(limit, *key):
            wait = math.ceil(counters.get_window_stats(limit, *key).reset_time - time.time())
            raise HTTPException(429, "Too many attempts, try again later", {"Retry-After": f"{max(1, wait)}"})
    counts = success_counts
    try:
        yield
    except Exception as error:
        counts = isinstance(error, HTTPException)  # a wrong password counts, an outage does not
        raise
    finally:
        if not counts:
            for key in keys:
                counters.hit(limit, *key, cost=-1)


# Each customer of an IPv6 provider has a whole /64, so that counts as one client.
def network(request: Request) -> str:
    host = request.client.host.removeprefix("::ffff:") if request.client else ""
    try:
        return str(ipaddress.ip_network((host, 64 if ":" in host else 32), strict=False))
    except ValueError:  # a Unix socket has no address
        return host
