"""Waits for jobs: one look at the database for all requests that wait, however many they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from search.service.jobs import Queue

__all__ = ["Waiter"]

LOOK_S = 0.02
AGAIN_S = 0.5

log = logging.getLogger("narrowgauge.waiting")


class Waiter:
    """Wakes whoever waits when their job is no longer open."""

    def __init__(self, queue: Queue):
        self._queue = queue
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._anyone = asyncio.Event()

    async def wait(self, id: str, timeout_s: float) -> None:
        """Return when the job has ended, or the time is over."""
        event = asyncio.Event()
        self._waiting.setdefault(id, set()).add(event)
        self._anyone.set()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)
        finally:
            self._waiting[id].discard(event)
            if not self._waiting[id]:
                del self._waiting[id]

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            if not self._waiting:
                self._anyone.clear()
                await self._anyone.wait()
            try:
                ended = await run_in_threadpool(self._queue.finished, list(self._waiting))
            except SQLAlchemyError:
                log.warning("the database does not answer")
                await asyncio.sleep(AGAIN_S)
                continue
            for id in ended:
                for event in self._waiting.get(id, ()):
                    event.set()
            await asyncio.sleep(LOOK_S)

    def wake(self) -> None:
        """Let everyone go, as when the service stops: they are told how far their jobs are."""
        for events in self._waiting.values():
            for event in events:
                event.set()
