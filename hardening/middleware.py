"""Whatever a request brings, it is small enough to read, and its response is safe to show in a browser."""

# In ASGI, scope describes the request, receive() brings its body in pieces, and send() takes the response.

from base64 import b64encode
from hashlib import sha256

from fastapi import HTTPException, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hardening.settings import warn_once


class Middleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app


# FastAPI's max_body_size would refuse without our shape of errors and CORS headers.
class BodyLimit(Middleware):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > 65536:
                raise HTTPException(413, "The request body is larger than 65536 bytes")
            return message

        await self.app(scope, receive_within_limit, send)


# Treats /tasks/ as /tasks. FastAPI would redirect, to a wrong host behind some proxies.
class TrailingSlash(Middleware):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != scope["root_path"] + "/":
            scope["path"] = scope["path"].removesuffix("/")
        await self.app(scope, receive, send)


class SecurityHeaders(Middleware):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                content_type = headers.get("Content-Type", "")
                if content_type.startswith("application/json"):
                    headers["Cache-Control"] = "no-store"
                elif content_type.startswith("text/html"):  # /docs and /redoc, which would fetch a logo
                    headers.setdefault(
                        "Content-Security-Policy", "default-src 'self' 'unsafe-inline' data: blob:"
                    )
            await send(message)

        await self.app(scope, receive, send_with_headers)


# What a page of ours may do: use the script and the style that stand in it, and talk to this API alone.
def policy_of(page: str) -> str:
    def hash_of(tag: str) -> str:
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    rest = "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; {hash_of('script')}; {hash_of('style')}; {rest}"


class CORS(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        origin = request_headers["Origin"][:100]
        if not self.is_allowed_origin(origin):
            warn_once("A browser at %r was refused: CORS_ORIGINS does not list it", origin)
        return super().preflight_response(request_headers)
