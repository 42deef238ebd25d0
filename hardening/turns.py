"""A user who floods the API waits alone, and everybody else's requests go on."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from sqlalchemy import exc

from hardening.database import POOL_SIZE, RESPONSE_TIMEOUT

# A request takes its turn before a connection: who waits here holds neither that nor a thread.
everybody = asyncio.Semaphore(POOL_SIZE)
# A user has a third of the turns at most. The last request of a user takes the entry with it.
each_user: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()


@asynccontextmanager
async def turn_of(user_id: str) -> AsyncIterator[None]:
    began = time.monotonic()
    own = each_user.setdefault(user_id, asyncio.Semaphore(POOL_SIZE // 3))
    async with own, everybody:
        if time.monotonic() > began + RESPONSE_TIMEOUT:
            raise exc.TimeoutError("the database is too slow for all who ask")
        yield
