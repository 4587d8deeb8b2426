"""Files that are whole or absent: how everything that must survive a kill is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from network.errors import StoreError

__all__ = ["atomic", "check_writable", "write_atomically"]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Raises StoreError where the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # After the writer, since some replace the file: what is delivered must be readable like any other file.
        temporary.chmod(0o666 & ~_umask())
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot write {path}: {reason}; free some space or choose another folder") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make the folder if need be and prove that it takes a file, before hours of work. Raises StoreError."""
    with atomic(folder / ".writable") as probe:
        probe.write_bytes(b"1")
    (folder / ".writable").unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises StoreError naming the path."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)
