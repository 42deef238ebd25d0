"""In development, the log names each field and parameter that a client sends and the API ignores, once."""

import json
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.requests import HTTPConnection
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from hardening.settings import logger

SENT_BACK = {"id", "user_id", "created_at", "updated_at"}  # with a whole task: ignoring them is right
MAX_LINES = 200  # so that no flood of invented names fills the log


class Accepted(NamedTuple):
    path: str
    parameters: set[str]
    fields: set[str] | None  # None: there is no JSON body, or it may contain anything


# A dependency of all endpoints of an app.
class LogIgnored:
    def __init__(self) -> None:
        self.accepted: dict[int, Accepted] = {}  # by the id() of the route, which has no hash
        self.lines: set[str] = set()

    async def __call__(self, request: HTTPConnection) -> None:
        if not isinstance(request, Request):
            return  # but a WebSocket
        route = request.scope["route"]
        if id(route) not in self.accepted:
            self.accepted[id(route)] = accepted_by(route, request.app)
        path, parameters, fields = self.accepted[id(route)]
        operation = f"{request.method} {path}"
        for name in request.query_params.keys() - parameters:
            self.log(operation, name, "a parameter")
        if fields:
            for name in await names_in_body(request) - fields:
                self.log(operation, name, "a field")

    def log(self, operation: str, name: str, kind: str) -> None:
        line = f"{operation}: {json.dumps(name[:50])} is not {kind} and was ignored"
        if line not in self.lines and len(self.lines) < MAX_LINES:
            self.lines.add(line)
            logger.warning(line)


async def names_in_body(request: Request) -> set[str]:
    if "json" not in request.headers.get("Content-Type", ""):
        return set()
    try:
        body = await request.json()  # FastAPI has parsed it already
    except (ValueError, RecursionError):
        return set()  # it is empty, or the endpoint refuses it
    return set(body) if isinstance(body, dict) else set()


def accepted_by(route: object, app: FastAPI) -> Accepted:
    context = next(each for each in iter_route_contexts(app.routes) if each.original_route is route)
    parameters = {field.alias for field in get_flat_params(context.dependant)}
    return Accepted(str(context.path), parameters, fields_of(context.body_field))


def fields_of(body: Any) -> set[str] | None:  # FastAPI's ModelField, which it does not export
    model: Any = body.field_info.annotation if body else None
    is_model = isinstance(model, type) and issubclass(model, BaseModel)
    if not is_model or model.model_config.get("extra") == "allow":
        return None
    aliases: set[str] = {field.alias for field in model.model_fields.values() if field.alias}
    return {*SENT_BACK, *aliases, *model.model_fields}
