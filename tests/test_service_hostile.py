"""What an attacker would send: each is refused with the right code, stored nowhere, and never a 5xx."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from sqlalchemy import func, select

from search.service.auth import Tokens
from search.service.models import Base, Job, NetworkRow, PlanRow, ProfileRow
from tests.service import Service, local_plan, profile, service, sqlite, traced

LIMIT = 100_000
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(sqlite(tmp_path_factory.mktemp("hostile")), max_body_bytes=LIMIT) as each:
        each.push(0)
        yield each


def stored(served: Service) -> list[int]:
    tables: tuple[type[Base], ...] = (ProfileRow, NetworkRow, PlanRow, Job)
    with served.state.database.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


def with_text(document: dict, old: str, new: str) -> bytes:
    text = json.dumps(document)
    assert old in text
    return text.replace(old, new, 1).encode()


PROFILE, NETWORK = profile(7).model_dump(mode="json"), traced().model_dump(mode="json")
PLAN = json.loads(local_plan("0.8x").to_json())
BODIES = {
    "no JSON": ("/profiles", b"{", 400),
    "nothing": ("/profiles", b"", 422),
    "NaN": ("/profiles", with_text(PROFILE, '"contention": [0.0', '"contention": [NaN'), 400),
    "infinity by exponent": ("/profiles", with_text(PROFILE, '"contention": [0.0', '"contention": [1e999'), 422),
    "an integer without end": ("/profiles", with_text(PROFILE, '"cores": 2', '"cores": ' + "9" * 5000), 400),
    "deep JSON": ("/networks", b'{"network": ' + DEEP.encode()[: LIMIT // 2] + b"}", 400),
    "deep objects": ("/networks", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
    "half a surrogate": ("/networks", with_text(NETWORK, '"net.py:build"', r'"\ud800"'), 400),
    "a NUL": ("/networks", with_text(NETWORK, '"net.py:build"', r'"\u0000"'), 422),
    "traversal in a device": ("/profiles", with_text(PROFILE, '"runtime": "torch"', '"runtime": "../../x"'), 422),
    "traversal in a question": (
        "/plans",
        json.dumps({"network": "0" * 64, "devices": [{"device": "../../etc/passwd", "budget": "1ms"}]}).encode(),
        422,
    ),
    "code": ("/networks", with_text(NETWORK, '"name":', '"__reduce__": "os.system", "name":'), 422),
    "text for a number": ("/profiles", with_text(PROFILE, '"threads": 2', '"threads": "2"'), 422),
    "an array of gigabytes": (
        "/networks",
        with_text(NETWORK, '"by_position": 0, "positions": 1', '"by_position": 0, "positions": 2147483647'),
        422,
    ),
    "a plan of widths that are not": ("/plans/import", with_text(PLAN, '"a0": ', '"a0": -'), 422),
    "a plan of another schema": ("/plans/import", with_text(PLAN, '"schema": 1', '"schema": 2'), 422),
    "too many options": (
        "/plans",
        json.dumps({"network": "0" * 64, "devices": [], "settings": {"options": 10**9}}).encode(),
        422,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_and_stored_nowhere(served: Service, name: str):
    path, body, status = BODIES[name]
    before = stored(served)
    reply = served.http.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert isinstance(reply.json()["detail"], str)
    assert len(reply.text) < 2000
    assert stored(served) == before


def test_a_body_over_the_limit_is_refused_before_it_is_read(served: Service):
    before = stored(served)
    declared = served.http.post("/networks", content=b" " * (LIMIT + 1), headers={"content-type": "application/json"})
    assert declared.status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(LIMIT // 1000 + 10):
            yield b" " * 1000

    chunked = served.http.post("/networks", content=endless(), headers={"content-type": "application/json"})
    assert chunked.status_code == 413
    assert chunked.headers["connection"] == declared.headers["connection"] == "close"
    assert stored(served) == before


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_compressed_bodies_are_not_taken_so_no_bomb_is_opened(served: Service, encoding: str):
    headers = {"content-type": "application/json", "content-encoding": encoding}
    assert served.http.post("/networks", content=b"\x1f\x8b", headers=headers).status_code == 415


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_only_json_is_read(served: Service, kind: str):
    """The types that a page of another site can send without asking first."""
    reply = served.http.post("/networks", content=json.dumps(NETWORK).encode(), headers={"content-type": kind})
    assert reply.status_code in (415, 422)


def test_pages_of_other_sites_and_other_names_are_refused(served: Service):
    before = stored(served)
    evil = served.http.post("/networks", json=NETWORK, headers={"origin": "https://evil.example"})
    assert evil.status_code == 403
    for origin in ("null", "http://[", "http://127.0.0.1", f"{served.url}.evil.example"):
        assert served.http.post("/networks", json=NETWORK, headers={"origin": origin}).status_code == 403
    own = served.http.post("/networks", json=NETWORK, headers={"origin": served.url})
    assert own.status_code == 200
    rebound = served.http.get("/devices", headers={"host": "evil.example"})
    assert rebound.status_code == 421
    preflight = served.http.options("/networks", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in preflight.headers
    assert stored(served) == before


@pytest.mark.parametrize(
    "path",
    [
        "/profiles/..%2f..%2fetc%2fpasswd",
        "/page/..%2f..%2fapi.py",
        "/page/%2e%2e/api.py",
        "/page/../api.py",
        "/plans/%00",
        "/devices?machine=%00",
        "/devices?after=99999999999999999999",
        "/devices?limit=-1",
        "/jobs/1?wait=nan",
        "/plans?network=" + "a" * 10_000,
    ],
)
def test_no_path_leads_out_of_the_service(served: Service, path: str):
    parts = urlsplit(served.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.putrequest("GET", path)  # as it is written: other clients tidy it up
    connection.endheaders()
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    assert reply.status in (400, 404, 422)
    assert b"import" not in text


def test_a_replayed_push_changes_nothing(served: Service):
    document = profile(0).model_dump(mode="json")
    before, newest = stored(served), served.http.get("/devices").json()
    for _ in range(3):
        assert served.post("/profiles", document).json()["created"] is False
    assert stored(served) == before
    assert served.http.get("/devices").json() == newest


def test_a_request_that_never_ends_keeps_nobody_else_waiting(served: Service):
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port)) as slow:
        slow.sendall(b"POST /networks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: 50000\r\n\r\n{")
        assert served.http.get("/healthz").status_code == 200


def test_who_is_still_sending_when_refused_reads_why(served: Service):
    parts, length = urlsplit(served.url), 9 * LIMIT
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as client:
        client.sendall(b"POST /networks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
        client.sendall(f"Content-Length: {length}\r\n\r\n".encode() + b" " * length)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))  # to its end: no reset comes in between
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"}")


def test_wrong_tokens_are_slowed_down_before_they_are_looked_up(tmp_path, monkeypatch: pytest.MonkeyPatch):
    moment, looked_up = 0.0, []
    known = Tokens.caller
    monkeypatch.setattr(Tokens, "caller", lambda self, token: looked_up.append(token) or known(self, token))

    def status(token: str) -> int:
        return guarded.http.get("/devices", headers={"authorization": f"Bearer {token}"}).status_code

    with service(sqlite(tmp_path), works=False, auth="on", clock=lambda: moment) as guarded:
        tokens = Tokens(guarded.state.database)
        met, new = (tokens.create(name, frozenset({"read"})) for name in ("met", "new"))
        assert status(met) == 200
        assert [status("guess") for _ in range(70)] == [401] * 60 + [429] * 10
        assert len(looked_up) == 61
        assert guarded.http.get("/healthz").status_code == 200
        assert (status(met), status(new)) == (200, 429)  # who was known before is no stranger
        tokens.revoke("met")
        assert [status(met) for _ in range(2)] == [429] * 2
        assert looked_up[61:] == [met] * 2  # and is one again when the token has ended
        moment = 1.0
        assert (status(new), status("guess"), status("guess")) == (200, 401, 429)


@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_that_the_openapi_allows_or_forbids_is_a_server_error(
    served: Service, mode: GenerationMode, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("search.service.guards.DROPPED_S", 60.0)  # a busy machine is no client that stalls
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    few = settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    asked = []

    def ask(case: schemathesis.Case) -> None:
        asked.append(case)
        case.validate_response(case.call(base_url=served.url), checks=[not_a_server_error])

    for operation in schema.get_all_operations():
        try:
            strategy = operation.ok().as_strategy(generation_mode=mode)
            few(given(strategy)(ask))()
        except Unsatisfiable:  # an address without parameters cannot be asked wrongly
            assert not operation.ok().body
    assert len(asked) > 50
