"""Files that are whole or absent: how everything that must survive a kill is written."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from network.errors import StoreError

__all__ = ["write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises StoreError naming the path."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StoreError(f"cannot write {path}: {error.strerror or error}; choose a writable folder") from error
