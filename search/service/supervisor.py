"""Keeps worker processes running beside the API: one that dies is replaced, all are told to stop at the end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping

__all__ = ["Supervisor"]

LOOK_S = 0.25
PATIENCE_S = 10.0

log = logging.getLogger("narrowgauge.supervisor")


class Supervisor:
    """`count` workers, configured by these environment variables beside the process's own."""

    def __init__(self, count: int, environment: Mapping[str, str]):
        # One thread each: the workers together use the cores, and a search's sums are short.
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._environment = {**threads, **os.environ, **environment}
        self._count = count
        self._workers: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Start them, and watch."""
        self._workers = [self._started() for _ in range(self._count)]
        self._thread.start()

    def stop(self) -> None:
        """Let every worker give its job back; one that does not within 10 s is killed, and its lease runs out."""
        self._stop.set()
        self._thread.join()
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                worker.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            for at, worker in enumerate(self._workers):
                if worker.poll() is not None:
                    log.warning("a worker died and is replaced", extra={"pid": worker.pid, "code": worker.returncode})
                    self._workers[at] = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "search.service.worker"], env=self._environment)
