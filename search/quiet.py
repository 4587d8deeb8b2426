"""HiGHS 1.16 greets on stdout when it is made, before it can be told not to, and there `--json`'s document stands."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_greeting"]


@contextmanager
def no_greeting() -> Iterator[None]:
    """What C code says on stdout meanwhile is lost; HiGHS is made in here, wherever it is made."""
    library = ctypes.CDLL(None)
    library.fflush(None)
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)
