"""What an endpoint returns is validated in the thread where it ran: a trip to a second one costs CPU."""

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic import TypeAdapter


# FastAPI runs a plain def in a thread, and then validates its result in a second one. Here one does for both.
class OneThread(APIRoute):
    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if options.get("response_model") and not iscoroutinefunction(endpoint):
            endpoint = validating(endpoint, TypeAdapter(options["response_model"]))
        super().__init__(path, endpoint, **options)


def validating(endpoint: Callable[..., Any], model: TypeAdapter[Any]) -> Callable[..., Any]:
    def call(values: dict[str, Any]) -> Any:
        return model.validate_python(endpoint(**values), from_attributes=True)

    @wraps(endpoint)
    async def in_one_thread(**values: Any) -> Any:
        return await run_in_threadpool(call, values)

    return in_one_thread
