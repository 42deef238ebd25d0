"""The service itself: is it running, can it serve, and a page to try it."""

import time
from pathlib import Path

import anyio
from fastapi import APIRouter, HTTPException
from fastapi.responses import HTMLResponse
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, select

from db import engine
from hardening.middleware import policy_of
from hardening.settings import settings
from models import Task
from routes.errors import can_fail, status_of

router = APIRouter(tags=["service"])
demo = APIRouter(include_in_schema=False)
PAGE = Path(__file__).with_name("demo.html").read_text(encoding="utf-8")
POLICY = policy_of(PAGE)


@router.get("/", summary="Is it running?")
async def root() -> dict[str, str]:
    running = {"message": "Todo API is running", "docs": "/docs"}
    return running if settings.better_auth_url else running | {"demo": "/demo"}


def read_a_task() -> None:
    with Session(engine, info={"owner": None}) as session:  # guarded, as those of requests
        session.exec(select(Task).limit(1), execution_options={"all_users": True}).first()


class LastCheck:  # shared by all who ask within a second
    checking = anyio.Lock()
    status = 200
    known_until = 0.0


@router.head("/health", include_in_schema=False)  # what uptime monitors like to send
@router.get("/health", summary="Can it serve?", responses=can_fail(500, 503))
async def health() -> dict[str, str]:
    """Asks the database, so 200 means that tasks can be read. The response may be a second old."""
    async with LastCheck.checking:  # whoever waits here finds the result of who came first
        if time.monotonic() > LastCheck.known_until:
            LastCheck.status = 503
            try:
                with anyio.move_on_after(1.5):
                    await anyio.to_thread.run_sync(read_a_task, abandon_on_cancel=True)
                    LastCheck.status = 200
            except SQLAlchemyError as error:
                LastCheck.status = status_of(error)
            LastCheck.known_until = time.monotonic() + 1
        status = LastCheck.status
    if status == 503:
        raise HTTPException(503, "The database does not respond", {"Retry-After": "5"})
    if status == 500:
        raise HTTPException(500, "The tables are not as the app needs them; the log says more")
    return {"status": "ok"}


@demo.get("/demo", response_class=HTMLResponse)
async def show_demo() -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})
