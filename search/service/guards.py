"""What every request passes before it is read: the name it calls, where it comes from, its token, its size.

Plain ASGI, so that a body is refused before it is held, and nobody without a token has one parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.service.auth import ANYONE, Caller, Rate, Tokens
from search.service.metrics import Metrics
from search.service.settings import ServiceSettings

__all__ = ["Guards"]

SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/healthz", "/readyz", "/openapi.json", "/page/", "/favicon.ico")
"""What needs no token: it says nothing of what is kept."""

QUIET = ("/healthz", "/readyz", "/metrics")
WRONG_TOKENS_PER_MINUTE = 60
DROPPED_BYTES, DROPPED_S = 2**20, 1.0

log = logging.getLogger("narrowgauge.request")


class Refused(Exception):
    """A request that is not read any further."""

    def __init__(self, status: int, detail: str, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Body:
    """A request's body as it arrives, up to `most` bytes. Raises HTTPException where there are more."""

    def __init__(self, receive: Receive):
        self._receive, self._seen, self._ended = receive, 0, False
        self.most = math.inf

    async def __call__(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        self._seen += len(message.get("body", b""))
        if self._seen > self.most:
            raise HTTPException(413, f"the body is over the limit of {self.most} bytes; push less at once")
        return message

    async def drop(self) -> None:
        """Read the rest and forget it, if it is short and comes soon: a socket that is closed with bytes unread is
        reset, and the client may lose the answer that it was about to read.
        """
        self.most, enough = math.inf, self._seen + DROPPED_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DROPPED_S):
                while not self._ended and self._seen < enough:
                    await self()


class Guards:
    """Refuses what comes by a wrong name, from another site, without a token or over a limit; logs and counts all."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServiceSettings,
        tokens: Tokens | None,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ):
        """tokens: None where none are needed. clock: what limits of rate count by."""
        self._app, self._settings, self._tokens, self._metrics = app, settings, tokens, metrics
        self._rate = Rate(settings.requests_per_minute, clock)
        self._strangers = Rate(WRONG_TOKENS_PER_MINUTE, clock)
        self._met: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status, body = time.perf_counter(), 500, Body(receive)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY)
                if status == 413:
                    headers["connection"] = "close"
                if headers.get("connection") == "close":
                    await body.drop()
                headers.setdefault("cache-control", "no-cache" if scope["path"].startswith("/page/") else "no-store")
            await send(message)

        try:
            body.most = await self._admit(scope)
            await self._app(scope, body, answer)
        except Refused as refused:
            self._metrics.refused(refused.reason)
            response = JSONResponse(
                {"detail": str(refused)}, refused.status, {**refused.headers, "connection": "close"}
            )
            await response(scope, receive, answer)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    async def _admit(self, scope: Scope) -> int:
        """The most bytes that the caller may send. Raises Refused."""
        headers = Headers(scope=scope)
        self._check_origin(scope["method"], headers)
        is_open = scope["path"].startswith(OPEN) or scope["path"] == "/"
        caller = ANYONE if is_open else await self._caller(scope, headers)
        scope.setdefault("state", {})["caller"] = caller
        most = caller.max_body_bytes or self._settings.max_body_bytes
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,15}", length):
            raise Refused(400, "content-length is no number that a body may have", "length")
        if int(length) > most:
            raise Refused(413, f"the body has {length} bytes, over the limit of {most}; push less at once", "size")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "compressed bodies are not taken; send plain JSON", "encoding")
        return most

    def _check_origin(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        name, _, port = host.rpartition(":")
        allowed = self._settings.allowed_hosts
        if "*" not in allowed and (name if port.isdigit() else host) not in allowed:
            raise Refused(421, "the service does not answer to that name; see NARROWGAUGE_HOSTS", "host")
        origin = headers.get("origin")
        if method not in SAFE and origin and origin.partition("://")[2] != host:
            raise Refused(403, "pages of other sites may not write here", "origin")

    async def _caller(self, scope: Scope, headers: Headers) -> Caller:
        """Who carries the request's token, if they may ask now. Raises Refused."""
        caller = ANYONE
        if self._tokens is not None:
            kind, _, token = headers.get("authorization", "").partition(" ")
            address = scope["client"][0] if scope.get("client") else ""
            caller = await self._holder(token.strip() if kind.lower() == "bearer" else "", address)
        _check_rate(self._rate.wait_s(caller.name, caller.requests_per_minute))
        return caller

    async def _holder(self, token: str, address: str) -> Caller:
        """Whose token it is. Raises Refused.

        Whoever sends too many wrong ones has no more looked up; a token that was good here before is no stranger's, so
        that nobody else at the same address, such as a proxy's, is locked out.
        """
        if token not in self._met:
            _check_rate(self._strangers.wait_s(address, take=False))
        if caller := await self._known(token):
            self._met.add(token)
            return caller
        self._met.discard(token)
        _check_rate(self._strangers.wait_s(address))
        text = "no token that is known here; send Authorization: Bearer TOKEN, made by narrowgauge token create"
        raise Refused(401, text, "token", {"www-authenticate": "Bearer"})

    async def _known(self, token: str) -> Caller | None:
        assert self._tokens is not None
        try:
            return await run_in_threadpool(self._tokens.caller, token)
        except SQLAlchemyError:
            raise Refused(503, "the database does not answer; try again", "database", {"retry-after": "1"}) from None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.request(scope["method"], route, status, seconds)
        client, caller = scope.get("client"), scope.get("state", {}).get("caller")
        fields = {"method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 2)}
        fields |= {"client": client[0] if client else "", "who": caller.name if caller else ""}
        log.log(logging.DEBUG if route in QUIET else logging.INFO, "request", extra=fields)


def _check_rate(wait_s: float) -> None:
    if wait_s:
        text = f"more requests than the limit allows; wait {wait_s:.1f} s"
        raise Refused(429, text, "rate", {"retry-after": str(math.ceil(wait_s))})
