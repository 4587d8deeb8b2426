"""Who may do what: bearer tokens with scopes, kept as hashes, each with its own limits.

A token is `ng_<id>_<secret>`; the secret is 256 random bits, so one round of SHA-256 is enough to keep it by.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select, update

from network.errors import InputError
from search.service.clock import now
from search.service.database import Database
from search.service.models import Audit, Token

__all__ = ["ANYONE", "SCOPES", "Caller", "Rate", "Tokens"]

SCOPES = ("read", "push")
"""read: look and search. push: send profiles, networks and plans, and cancel jobs. Each is given by itself."""

MOST_DAYS = 36_500

FORM = re.compile(r"ng_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a token's name, its scopes, and its limits where it has its own."""

    name: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    max_body_bytes: int | None = None


ANYONE = Caller("anyone on this machine", frozenset(SCOPES))
"""Who asks where tokens are off."""


class Tokens:
    """The tokens of a database."""

    def __init__(self, database: Database):
        self._database = database

    def create(
        self,
        name: str,
        scopes: frozenset[str],
        *,
        days: float | None = None,
        requests_per_minute: int | None = None,
        max_body_bytes: int | None = None,
    ) -> str:
        """A new token; it is shown once, here.

        Raises InputError for a name that is taken, a scope that is none, or days that are no time to come.
        """
        if odd := scopes - set(SCOPES):
            raise InputError(f"there is no scope {min(odd)!r}; give read, push or both")
        if not re.fullmatch(r"[\w.@ -]{1,64}", name):
            raise InputError(f"a token cannot be called {name!r}; use letters, digits, '.', '-', '_', '@' and blanks")
        if days is not None and not 0 < days <= MOST_DAYS:
            raise InputError(f"--days {days:g} is not between 0 and {MOST_DAYS}; give another, or leave it out")
        id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        row = Token(id=id, name=name, secret_sha256=_hash(secret), scopes=",".join(sorted(scopes)), created_at=now())
        row.expires_at = now() + timedelta(days=days) if days is not None else None
        row.requests_per_minute, row.max_body_bytes = requests_per_minute, max_body_bytes
        with self._database.write() as session:
            if session.scalar(select(Token.id).where(Token.name == name)):
                raise InputError(f"there is a token {name!r} already; revoke it first, or choose another name")
            session.add(row)
            session.add(Audit(at=now(), who="console", address="", action="create token", subject=name))
        return f"ng_{id}_{secret}"

    def list(self) -> list[Token]:
        """Every token, without its secret, which is nowhere."""
        with self._database.read() as session:
            return list(session.scalars(select(Token).order_by(Token.created_at)))

    def revoke(self, name: str) -> None:
        """End a token. Raises InputError if there is none of this name."""
        with self._database.write() as session:
            ended = session.execute(
                update(Token)
                .where(Token.name == name, Token.revoked_at.is_(None))
                .values(revoked_at=now(), name=f"{name[:40]} (revoked {secrets.token_hex(4)})")
            )
            if not ended.rowcount:  # type: ignore[attr-defined]
                raise InputError(f"there is no token {name!r}; `narrowgauge token list` shows them")
            session.add(Audit(at=now(), who="console", address="", action="revoke token", subject=name))

    def caller(self, token: str) -> Caller | None:
        """Who carries this token; None if it is none, or ended."""
        form = FORM.fullmatch(token)
        if form is None:
            return None
        with self._database.read() as session:
            row = session.get(Token, form[1])
        known = row.secret_sha256 if row else _hash("")  # as much work for an unknown id as for a wrong secret
        if not hmac.compare_digest(known, _hash(form[2])) or row is None or row.revoked_at:
            return None
        if row.expires_at and row.expires_at < now():
            return None
        return Caller(row.name, frozenset(row.scopes.split(",")), row.requests_per_minute, row.max_body_bytes)


class Rate:
    """A bucket per caller that fills at its own rate, a minute's worth deep; in this process's memory only."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self._per_minute, self._clock = per_minute, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wait_s(self, name: str, per_minute: int | None = None, *, take: bool = True) -> float:
        """Take one request from the caller's bucket, or only look: 0 if it had one, else the seconds until it will."""
        most = float(per_minute or self._per_minute)
        moment = self._clock()
        with self._lock:
            left, then = self._buckets.get(name, (most, moment))
            left = min(most, left + (moment - then) * most / 60)
            has_one = left >= 1
            self._buckets[name] = (left - (take and has_one), moment)
            if len(self._buckets) > 10_000:
                self._buckets = {key: bucket for key, bucket in self._buckets.items() if moment - bucket[1] < 60}
        return 0.0 if has_one else (1 - left) * 60 / most


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
