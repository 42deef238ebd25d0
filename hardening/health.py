"""A health check that responds within two seconds, and asks once a second, however many clients ask."""

import time
from collections.abc import Callable

import anyio


class HealthCheck:
    def __init__(self, check: Callable[[], int]) -> None:
        self.check = check  # returns an HTTP status; it may block, so it runs in a thread
        self.checking = anyio.Lock()
        self.last_status = 503
        self.valid_until = 0.0

    async def status(self) -> int:
        async with self.checking:  # requests that waited here reuse the first one's result
            if time.monotonic() > self.valid_until:
                self.last_status = 503
                with anyio.move_on_after(1.5):
                    self.last_status = await anyio.to_thread.run_sync(self.check, abandon_on_cancel=True)
                self.valid_until = time.monotonic() + 1
            return self.last_status
