"""Status of the API, and a demo page."""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import HTMLResponse
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, select

from db import engine
from hardening.health import HealthCheck
from hardening.middleware import csp_for
from hardening.settings import logger, settings
from models import Task
from routes.errors import can_fail, describe, is_bug

router = APIRouter(tags=["service"])
demo = APIRouter(include_in_schema=False)


@router.get("/", summary="Is it running?")
async def root() -> dict[str, str]:
    running = {"message": "Todo API is running", "docs": "/docs"}
    return running if settings.better_auth_url else running | {"demo": "/demo"}


# Reads a whole task: so a forgotten migration of `tasks` is noticed, too.
def check_database() -> int:
    try:
        with Session(engine, info={"owner": None}) as session:  # guarded, as those of requests
            # all_users: the task of any user will do.
            session.exec(select(Task).limit(1), execution_options={"all_users": True}).first()
    except (SQLAlchemyError, OSError) as error:
        logger.error("/health: %s", describe(error))
        return 500 if is_bug(error) else 503
    return 200


database_health = HealthCheck(check_database)


@router.head("/health", include_in_schema=False)  # uptime monitors like to send HEAD
@router.get("/health", summary="Health check", responses=can_fail(500, 503))
async def health() -> dict[str, str]:
    """Asks the database, so 200 means that tasks can be read. The response may be a second old."""
    status = await database_health.status()
    if status == 503:
        raise HTTPException(503, "The database does not respond", {"Retry-After": "5"})
    if status == 500:
        raise HTTPException(500, "The tables do not match the app; see the log")
    return {"status": "ok"}


PAGE = Path(__file__).with_name("demo.html").read_text(encoding="utf-8")
POLICY = csp_for(PAGE)  # only its own script and style may run


@demo.get("/demo", response_class=HTMLResponse)
async def show_demo() -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})
