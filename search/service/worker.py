"""A worker: takes questions from the queue and answers them, one at a time, in a process of its own.

    python -m search.service.worker      configured by NARROWGAUGE_..., as `narrowgauge serve` starts it

It keeps nothing: killed at any moment, its job is taken up by another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from network.errors import NarrowgaugeError
from search.service.answers import Library, answer, refusal
from search.service.database import Database, is_full
from search.service.holding import Hold, Lost, Stopped
from search.service.jobs import Claim, Queue
from search.service.logs import configure_logs
from search.service.replies import Problem
from search.service.settings import ServiceSettings
from search.service.storage import NotFound, Storage

__all__ = ["Worker", "work"]

IDLE_S = 0.05
AGAIN_S = 0.5
PURGE_S = 3600.0

log = logging.getLogger("narrowgauge.worker")


class Worker:
    """Answers jobs until told to stop; lease_s, plan_s and give_up as of `search.service.holding.Hold`."""

    def __init__(
        self,
        queue: Queue,
        library: Library,
        *,
        lease_s: float = 30.0,
        plan_s: float = 900.0,
        give_up: Callable[[], None] = lambda: None,
    ):
        self.name = f"{socket.gethostname()[:40]}:{os.getpid()}:{threading.get_ident() % 10**6}"
        self._queue, self._library, self._give_up = queue, library, give_up
        self._lease_s, self._plan_s = lease_s, plan_s

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; a database that does not answer is waited for."""
        while not stop.is_set():
            try:
                found = self.once(stop)
            except SQLAlchemyError as error:
                log.warning("the database does not answer", extra={"error": type(error).__name__})
                stop.wait(AGAIN_S)
            else:
                if not found:
                    stop.wait(IDLE_S)

    def once(self, stop: threading.Event) -> bool:
        """Answer one job, if there is one."""
        claim = self._queue.claim(self.name)
        if claim is None:
            return False
        started = time.monotonic()
        hold = Hold(self._queue, claim, stop, lease_s=self._lease_s, plan_s=self._plan_s, give_up=self._give_up)
        with hold:
            outcome = self._answer(claim, hold)
        extra = {"job": claim.id, "kind": claim.kind, "outcome": outcome, "seconds": time.monotonic() - started}
        log.info("job ended", extra=extra)
        return True

    def _answer(self, claim: Claim, hold: Hold) -> str:
        try:
            found = answer(self._library, claim.kind, claim.question, hold, claim.partial)
        except Lost:
            return "lost"
        except Stopped:
            self._queue.release(claim)
            return "released"
        except DBAPIError as error:
            if not is_full(error):
                return self._end(lambda: self._queue.release(claim, counted=True), "dropped")
            return self._fail(claim, error)
        except Exception as error:
            return self._fail(claim, error)
        return self._end(lambda: self._queue.finish(claim, found), "done")

    def _fail(self, claim: Claim, error: Exception) -> str:
        problem = _problem(error, claim)
        return self._end(lambda: self._queue.fail(claim, problem), "failed")

    def _end(self, write: Callable[[], bool], outcome: str) -> str:
        """Write the end of a job; while the database is away an answer is held for as long as it is ours to give."""
        deadline = time.monotonic() + self._lease_s
        while True:
            try:
                return outcome if write() else "lost"
            except DBAPIError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(AGAIN_S)


def _problem(error: Exception, claim: Claim) -> Problem:
    """What whoever asked is told."""
    if isinstance(error, NarrowgaugeError):
        return refusal(error)
    if isinstance(error, NotFound):
        return Problem(detail=str(error), type="NotFound")
    if isinstance(error, MemoryError):
        return Problem(detail="the search needs more memory than NARROWGAUGE_SEARCH_MEMORY_BYTES; ask for less")
    if isinstance(error, DBAPIError):
        return Problem(detail="the service has no room left to keep the plan; ask again later")
    log.error("a job failed", exc_info=error, extra={"job": claim.id, "kind": claim.kind})
    return Problem(detail=f"the search failed by a bug; the service's log says more of job {claim.id}")


def work(settings: ServiceSettings) -> int:
    """The process: stops at SIGTERM after giving its job back, and when whoever started it is gone."""
    configure_logs(settings.log_level)
    resource.setrlimit(resource.RLIMIT_AS, (settings.search_memory_bytes, settings.search_memory_bytes))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which then ends its workers
    database = Database(settings.url)
    queue = Queue(database, settings.lease_seconds, settings.job_attempts)
    worker = Worker(
        queue,
        Library(Storage(database)),
        lease_s=settings.lease_seconds,
        plan_s=settings.plan_seconds,
        give_up=lambda: os._exit(1),
    )
    threading.Thread(target=_tend, args=(queue, settings.job_days, stop, os.getppid()), daemon=True).start()
    log.info("worker ready", extra={"worker": worker.name})
    worker.run(stop)
    return 0


def _tend(queue: Queue, days: float, stop: threading.Event, parent: int) -> None:
    """End with the parent, and forget old jobs once an hour."""
    purged = -PURGE_S
    while not stop.wait(1.0):
        if os.getppid() != parent:
            stop.set()
        if time.monotonic() - purged >= PURGE_S:
            with contextlib.suppress(DBAPIError):
                queue.purge(days)
            purged = time.monotonic()


if __name__ == "__main__":
    sys.exit(work(ServiceSettings()))
