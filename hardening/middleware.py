"""Every request is small enough to read, and every response is safe to show in a browser."""

# In ASGI, scope describes the request, receive() brings its body in pieces, and send() takes the response.

from base64 import b64encode
from hashlib import sha256

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hardening.settings import warn_once


class Middleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app


# FastAPI's max_body_size would refuse without our error format and without CORS headers. This raises an
# exception where the endpoint's body is read, so it is handled like one of the endpoint.
class BodyLimit(Middleware):
    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        super().__init__(app)
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise HTTPException(413, f"The request body is larger than {self.max_bytes} bytes")
            return message

        await self.app(scope, receive_within_limit, send)


class SecurityHeaders(Middleware):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                content_type = headers.get("Content-Type", "")
                if content_type.startswith("application/json"):
                    headers["Cache-Control"] = "no-store"
                elif content_type.startswith("text/html"):
                    headers.setdefault("Content-Security-Policy", page_policy(scope))
            await send(message)

        await self.app(scope, receive, send_with_headers)


# No page can be shown in a frame of another site, which could trick users into clicking there. /docs and
# /redoc load nothing from other sites either (they would fetch a logo); a page of yours may.
def page_policy(scope: Scope) -> str:
    policy = "frame-ancestors 'none'"
    if scope["path"].removeprefix(scope["root_path"]) in ("/docs", "/redoc"):
        policy += "; default-src 'self' 'unsafe-inline' data: blob:"
    return policy


# For a page that uses only the script and the style inside it, and calls only this API.
def csp_for(page: str) -> str:
    def hash_of(tag: str) -> str:
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    rest = "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; {hash_of('script')}; {hash_of('style')}; {rest}"


# Outside of CORSMiddleware, which tells only the browser that it refuses an origin.
class LogRefusedOrigins(Middleware):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_log(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked, allowed = Headers(scope=scope), Headers(raw=message["headers"])
                is_preflight = "Origin" in asked and "Access-Control-Request-Method" in asked
                if is_preflight and "Access-Control-Allow-Origin" not in allowed:
                    warn_once("Refused a browser at %r: it is not in CORS_ORIGINS", asked["Origin"][:100])
            await send(message)

        await self.app(scope, receive, send_and_log if scope.get("method") == "OPTIONS" else send)


# For a path that no route has: /tasks/ is tried as /tasks, and /tags as /tags/. (Starlette would redirect the
# client instead, to whatever host that has named.)
class OtherSlash:
    def __init__(self, router: Router) -> None:
        self.router, self.not_found = router, router.default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] != "http" or "other_slash" in scope:
            await self.not_found(scope, receive, send)
        else:
            scope["other_slash"] = True
            scope["path"] = path.rstrip("/") if path.endswith("/") else f"{path}/"
            await self.router(scope, receive, send)
