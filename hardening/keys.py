"""Better Auth may rotate its keys, hang or be down: tokens with a known key still work."""

import time
from functools import lru_cache

import anyio
import jwt
from fastapi import HTTPException

from hardening.settings import logger

ALGORITHMS = ("EdDSA", "ES256", "ES512", "PS256", "RS256")  # of Better Auth's jwt plugin


class UnknownKeyError(jwt.InvalidTokenError):
    pass


# The public keys of a Better Auth server (its JWKS), fetched when a token needs one not seen before.
# PyJWT's own client fetches them, with its cache off: that would drop all keys after a while even if the
# server is down, and if it hangs, make requests wait for one timeout after another.
class KeyRing:
    REFRESH = 3600.0  # seconds until the keys are fetched again, and withdrawn ones forgotten
    PAUSE = 10.0  # seconds to pause after a fetch without the right key
    TIMEOUT = 4.0

    def __init__(self, url: str) -> None:
        self.url = f"{url}/jwks"
        self.keys: dict[str, jwt.PyJWK] = {}
        self.fresh_until = self.paused_until = 0.0
        self.failed = False
        self.fetching = anyio.Lock()

    async def key_for(self, token: str) -> jwt.PyJWK:
        kid = key_id(token)
        if kid in self.keys and self.fetching.locked():
            return self.keys[kid]  # another request is already refreshing the list; until then use this one
        if self.needs_fetch(kid):
            async with self.fetching:  # all requests that need a key wait for one response,
                if self.needs_fetch(kid):  # and those that have waited find the key
                    await self.fetch(kid)
        if kid in self.keys:
            return self.keys[kid]
        if self.failed:
            raise HTTPException(503, "The login server cannot be reached", {"Retry-After": "10"})
        raise UnknownKeyError

    def needs_fetch(self, kid: str) -> bool:
        now = time.monotonic()
        return (kid not in self.keys or now > self.fresh_until) and now > self.paused_until

    async def fetch(self, kid: str) -> None:
        try:
            client = jwt.PyJWKClient(self.url, cache_jwk_set=False, timeout=self.TIMEOUT)
            with anyio.fail_after(self.TIMEOUT):
                listed = await anyio.to_thread.run_sync(client.fetch_data, abandon_on_cancel=True)
            # PyJWKSet refuses an empty list; here it means that all keys were withdrawn.
            usable = jwt.PyJWKSet(listed["keys"]).keys if listed["keys"] != [] else []
            self.keys = {key.key_id: key for key in usable if key.key_id}
            self.fresh_until = time.monotonic() + self.REFRESH
            self.failed = False
        except Exception as error:  # noqa: BLE001  (whatever it is, it is not the client's fault)
            logger.error("No keys from %s: %r", self.url, error)
            self.failed = True
        # After a fetch that found the key, the next may follow at once, so a rotated key works on first use.
        # After one without it, pause: anyone can send tokens with keys that do not exist.
        if self.failed or kid not in self.keys:
            self.paused_until = time.monotonic() + self.PAUSE


@lru_cache(maxsize=4096)
def key_id(token: str) -> str:
    header = jwt.get_unverified_header(token)
    if header.get("alg") not in ALGORITHMS:
        raise jwt.InvalidAlgorithmError
    return str(header.get("kid", ""))
