"""One database behind the service: SQLite with nothing to set up, or PostgreSQL by URL; transactions and migrations."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from network.errors import InputError, StoreError

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["Database", "is_full"]

BUSY_MS = 30_000
MIGRATION_LOCK = 0x6E67  # any number that every instance agrees on


class Database:
    """Connections to one database. Raises InputError for another kind of URL, StoreError where it cannot be opened."""

    def __init__(self, url: str):
        self.engine = _engine(url)
        self._writing = self.engine.execution_options(narrowgauge_write=True)

    @property
    def name(self) -> str:
        """sqlite or postgresql."""
        return self.engine.dialect.name

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; on SQLite it waits for no writer."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is kept, whole or not at all, when the block ends. SQLite has one writer at a time."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the tables to this version; whoever else does so at the same time waits. Raises StoreError."""
        import alembic.command  # half a second that workers need not wait for

        try:
            with self._writing.begin() as connection:
                if self.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                alembic.command.upgrade(_config(connection), "head")
        except OperationalError as error:
            raise StoreError(f"cannot open the database {self}: {_reason(error)}; check --database") from None

    def is_current(self) -> bool:
        """Whether it answers, and its tables are of this version."""
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        with self.engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        return found == ScriptDirectory.from_config(_config()).get_current_head()

    def close(self) -> None:
        """Give every connection back."""
        self.engine.dispose()

    def __str__(self) -> str:
        return self.engine.url.render_as_string(hide_password=True)


def is_full(error: DBAPIError) -> bool:
    """Whether there was no room left to write."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code == sqlite3.SQLITE_FULL or getattr(error.orig, "sqlstate", None) == "53100"


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError("--database is no URL; write sqlite:///FILE or postgresql://USER@HOST/NAME") from None
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            poolclass=QueuePool,
            pool_size=16,
            max_overflow=16,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 10},
        )
    if parsed.drivername != "sqlite" or not parsed.database:
        raise InputError(
            f"--database {parsed.drivername}: neither sqlite nor postgresql; write sqlite:///FILE or postgresql://..."
        )
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder of {parsed.database}: {error.strerror}; check --database") from None
    engine = create_engine(parsed, poolclass=QueuePool, pool_size=16, max_overflow=32)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    """Transactions are ours to begin; acknowledged writes survive a power cut (synchronous = FULL)."""
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Whoever will write says so at once: a reader that turns writer would fail where another wrote meanwhile."""
    write = connection.get_execution_options().get("narrowgauge_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _config(connection: Connection | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _reason(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())[:200]
