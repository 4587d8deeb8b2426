"""`narrowgauge serve` in a process of its own, on loopback and any port that is free. Tests use it too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from network.errors import ServiceError
from search.service.client import Client

__all__ = ["Serving"]

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0


class Serving:
    """The process and its URL, once it listens; further words and variables are the command's.

    folder: where its log goes. Raises ServiceError if it ends, or does not listen within a minute.
    """

    def __init__(self, folder: Path, database_url: str, *words: str, **variables: str):
        self.database_url, self._log = database_url, folder / "log"
        command = [sys.executable, "-m", "search.service.command", "serve", "--port", "0", "--database", database_url]
        with self._log.open("w") as log:
            self.process = subprocess.Popen([*command, *words], stderr=log, env={**os.environ, **variables}, cwd=ROOT)
        self.url = self._address()

    def _address(self) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            for line in self._log.read_text().splitlines():
                if line.startswith("serving "):
                    return line.split()[1]
            time.sleep(0.05)
        self.kill()
        said = self._log.read_text().strip().rpartition("\n")[2]
        raise ServiceError(f"narrowgauge serve does not listen ({said}); start it by hand to see more")

    def workers(self) -> list[int]:
        """Process ids of its workers, whichever of its threads started them."""
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for each in lists for child in each.read_text().split()]

    def client(self, patience_s: float = 60.0) -> Client:
        """A client that waits out what a benchmark breaks."""
        return Client(self.url, patience_s=patience_s)

    def stop(self) -> None:
        """Stop gracefully."""
        self.process.terminate()
        self.process.wait()

    def kill(self) -> None:
        """Stop at once."""
        self.process.kill()
        self.process.wait()
