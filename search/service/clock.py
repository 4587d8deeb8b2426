"""The service's clock, in one place so that tests can set it."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["now"]


def now() -> datetime:
    """The moment, in UTC."""
    return datetime.now(UTC)
