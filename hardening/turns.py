"""A user who floods the API slows down only their own requests."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from sqlalchemy import exc

from hardening.database import POOL_SIZE
from hardening.watchdog import RESPONSE_TIMEOUT

# A request waits for its turn first; meanwhile it holds no connection and no thread.
all_turns = asyncio.Semaphore(POOL_SIZE)
# A user has at most a third of the turns. A weak dictionary drops the entry with the user's last request.
each_user: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()


@asynccontextmanager
async def take_turn(user_id: str) -> AsyncIterator[None]:
    began = time.monotonic()
    own = each_user.setdefault(user_id, asyncio.Semaphore(POOL_SIZE // 3))
    async with own, all_turns:
        if time.monotonic() > began + RESPONSE_TIMEOUT:
            raise exc.TimeoutError("waited too long for a free turn")
        yield
