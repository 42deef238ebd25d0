"""Passwords cannot be guessed by brute force: each try is slow, and counted per client and account."""

import ipaddress
import math
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import anyio
from anyio import to_thread
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from fastapi import HTTPException, Request
from limits import RateLimitItem
from limits.errors import StorageError

from hardening.settings import settings

# A hash is made to be expensive: it takes 19 MiB and all of a core for 20 ms, as OWASP asks of Argon2id. A
# thread that has hashed keeps the memory, so these few do it, and not the forty in which requests run.
hashing_threads = ThreadPoolExecutor(3)


def hash_password(password: str) -> str:
    kdf = Argon2id(salt=os.urandom(16), length=32, memory_cost=19_456, iterations=2, lanes=1)
    return hashing_threads.submit(kdf.derive_phc_encoded, password.encode()).result()


def password_matches(password: str, phc: str) -> bool:
    try:
        hashing_threads.submit(Argon2id.verify_phc_encoded, password.encode(), phc).result()
    except InvalidKey:
        return False
    return True


# No password has this hash. It is checked when the email is unknown: that takes as long as a wrong password.
DUMMY_HASH = f"$argon2id$v=19$m=19456,t=2,p=1${'A' * 22}${'A' * 43}"

# By default 10 guesses a minute for a client, and 100 for an account, by all clients together: so guessing
# from many places stays hopeless, and no single client can lock the account's owner out.
ACCOUNT_FACTOR = 10

Count = tuple[RateLimitItem, str, str, str]


# Counts an attempt first, and subtracts it later if it should not count, so that none slips through.
@asynccontextmanager
async def limited(
    action: str, account: str, request: Request, *, success_counts: bool = False
) -> AsyncIterator[None]:
    limit = settings.auth_rate_limit
    loose = type(limit)(limit.amount * ACCOUNT_FACTOR, limit.multiples)
    counts: list[Count] = [(limit, action, "client", network(request)), (loose, action, "account", account)]
    with short_wait():
        window_ends = await to_thread.run_sync(add, counts, limiter=own_threads)
    try:
        yield
    except HTTPException:
        raise  # a wrong password counts
    except Exception:
        await take_back(counts, window_ends)  # an outage does not
        raise
    if not success_counts:
        await take_back(counts, window_ends)


async def take_back(counts: list[Count], window_ends: list[float]) -> None:
    with short_wait():
        await to_thread.run_sync(subtract, counts, window_ends, limiter=own_threads)


def add(counts: list[Count]) -> list[float]:
    counters = settings.rate_limit_storage
    ends = []
    for count in counts:
        allowed = counters.hit(*count)
        ends.append(counters.get_window_stats(*count).reset_time)
        if not allowed:
            wait = max(1, math.ceil(ends[-1] - time.time()))
            raise HTTPException(429, "Too many attempts, try again later", {"Retry-After": str(wait)})
    return ends


def subtract(counts: list[Count], window_ends: list[float]) -> None:
    for count, end in zip(counts, window_ends, strict=True):
        if time.time() < end - 1:  # else the next window may have begun. (Redis rounds to seconds.)
            settings.rate_limit_storage.hit(*count, cost=-1)


# Redis may be frozen. Then attempts wait here, and not in the threads that all requests share.
own_threads = anyio.CapacityLimiter(10)
LONGEST_WAIT = 3.0  # seconds


@contextmanager
def short_wait() -> Iterator[None]:
    try:
        with anyio.fail_after(LONGEST_WAIT):
            yield
    except TimeoutError:
        raise StorageError(TimeoutError("waited too long to count an attempt")) from None


# Each customer of an IPv6 provider has a whole /64, so that counts as one client.
def network(request: Request) -> str:
    host = request.client.host.removeprefix("::ffff:") if request.client else ""
    try:
        return str(ipaddress.ip_network((host, 64 if ":" in host else 32), strict=False))
    except ValueError:  # a Unix socket has no address
        return host
