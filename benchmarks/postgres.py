"""A real PostgreSQL of one's own, from Debian's packages: on a loopback port, gone at the end. Tests use it too."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from network.errors import InputError

__all__ = ["Server", "find_binaries", "running"]


class Server:
    """One cluster in one folder; it refuses to run as root, and then runs as the user postgres."""

    def __init__(self, folder: Path, binaries: Path):
        self.folder, self._binaries = folder, binaries
        self._user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        """The cluster's own database; `database` makes others."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def database(self, name: str) -> str:
        """A new empty database's URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def create(self) -> None:
        """Make the cluster, without the fsyncs that only a power cut would miss."""
        if self._user:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", f"{self.folder}/data")

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-w", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop; `immediate` is as a crash."""
        self._run("pg_ctl", "-w", "-D", f"{self.folder}/data", "-m", mode, "stop")

    def _run(self, name: str, *words: str) -> None:
        subprocess.run([*self._user, str(self._binaries / name), *words], check=True, capture_output=True, cwd="/")


def find_binaries() -> Path | None:
    """The folder of the newest server that is installed."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(Path(path).parts[4]))
    if found:
        return Path(found[-1]).parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


@contextmanager
def running() -> Iterator[Server]:
    """A server that runs, for the block. Raises InputError, saying what to install."""
    binaries = find_binaries()
    if binaries is None:
        raise InputError("no PostgreSQL server is installed; apt-get install postgresql, or make postgres")
    with tempfile.TemporaryDirectory(prefix="narrowgauge-pg-") as name:
        folder = Path(name)
        server = Server(folder, binaries)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
