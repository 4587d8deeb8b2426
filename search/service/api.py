"""The application: routes, guards, the page's folder, and one way to say what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import DBAPIError, TimeoutError
from starlette.exceptions import HTTPException

from network.errors import NarrowgaugeError
from search.service.answers import refusal
from search.service.auth import Tokens
from search.service.database import Database, is_full
from search.service.guards import Guards
from search.service.jobs import Queue
from search.service.metrics import Metrics
from search.service.replies import Problem
from search.service.routes import router
from search.service.settings import ServiceSettings
from search.service.storage import NotFound, Storage
from search.service.waiting import Waiter

__all__ = ["create_app"]

PAGE = Path(__file__).parent / "page"
SHOWN = 3
"""Faults of a document that are named."""

log = logging.getLogger("narrowgauge.api")


def create_app(settings: ServiceSettings | None = None, *, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """The service as an ASGI application; its database is migrated here, and `search.service.worker` works elsewhere.

    clock: what limits of rate count by.
    Raises InputError for settings that would let strangers write, StoreError for a database that cannot be opened.
    """
    settings = settings or ServiceSettings()
    database = Database(settings.url)
    needs_tokens = settings.needs_tokens
    database.migrate()
    app = FastAPI(
        title="Narrowgauge",
        summary="How wide may a network be, on each of these devices?",
        version=version("narrowgauge"),
        docs_url=None,  # they load from a CDN; the schema is at /openapi.json
        redoc_url=None,
        lifespan=_lifespan,
    )
    state = app.state
    state.settings, state.database = settings, database
    state.storage = Storage(database)
    state.queue = Queue(database, settings.lease_seconds, settings.job_attempts)
    state.waiter = Waiter(state.queue)
    state.metrics = Metrics(database, state.queue)
    tokens = Tokens(database) if needs_tokens else None
    app.add_middleware(Guards, settings=settings, tokens=tokens, metrics=state.metrics, clock=clock)
    app.include_router(router)
    app.add_api_route("/", lambda: RedirectResponse("/page/"), include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE, html=True), name="page")
    _add_handlers(app)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    looking = asyncio.create_task(app.state.waiter.run())
    try:
        yield
    finally:
        looking.cancel()
        app.state.waiter.wake()
        app.state.database.close()


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, Problem(detail=str(error.detail)), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = error.errors()
        said = [
            f"{'.'.join(str(part)[:80] for part in fault['loc'])}: {fault['msg']}"[:300] for fault in faults[:SHOWN]
        ]
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        return _problem(422, Problem(detail="; ".join(said) + more))

    @app.exception_handler(NotFound)
    async def absent(request: Request, error: NotFound) -> Response:
        return _problem(404, Problem(detail=str(error)))

    @app.exception_handler(NarrowgaugeError)
    async def at_fault(request: Request, error: NarrowgaugeError) -> Response:
        return _problem(422, refusal(error))

    @app.exception_handler(DBAPIError)
    async def away(request: Request, error: DBAPIError) -> Response:
        log.error("the database refused", extra={"error": str(error.orig)[:200]})
        if is_full(error):
            return _problem(507, Problem(detail="no room left to keep it; nothing of this push was kept"))
        return _problem(503, Problem(detail="the database does not answer; try again"), {"retry-after": "1"})

    @app.exception_handler(TimeoutError)
    async def busy(request: Request, error: TimeoutError) -> Response:
        return _problem(
            503, Problem(detail="every connection to the database is busy; try again"), {"retry-after": "1"}
        )


def _problem(status: int, problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(problem.model_dump(), status, headers)
