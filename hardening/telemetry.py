"""Traces and metrics carry no user data: FastAPI exports them through OpenTelemetry, see docs/deploy.md."""

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from starlette.types import Receive, Scope, Send

from hardening.middleware import Middleware

# Its logs would hold the text of exceptions, and that may quote a row. Our own log says less.
TELEMETRY: TelemetryConfig = {"logs": False}


# A query may hold words from a task, such as ?search=. Where nothing is exported, the span ignores this.
class RedactedQuery(Middleware):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("query_string"):
            trace.get_current_span().set_attribute("url.query", "REDACTED")
        await self.app(scope, receive, send)
