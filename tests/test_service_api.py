"""The service over HTTP: what is asked is answered as the command would, and whoever may not ask is refused."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from benchmarks.fleet import device
from network.errors import BudgetError, DeviceError, InputError, PlanError, ServiceError
from search.budget import parse_budget
from search.explain import explain
from search.front import front, knee
from search.plan import Settings, plan_of
from search.service.auth import Rate, Tokens
from search.service.client import Client
from search.service.logs import JsonLines
from search.service.models import Audit
from search.service.schemas import DeviceChoice, Target
from search.service.settings import ServiceSettings
from tests.service import NET, Service, local_plan, problem, profile, same_plan, service, sqlite, table, traced

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Tokens off, a worker, machines 0 and 1 and their network."""
    with service(sqlite(tmp_path_factory.mktemp("served"))) as each:
        each.network = each.push(0, 1)
        yield each


def target(number: int = 0, budget: str = "0.8x") -> dict:
    return {"device": device(number).id, "budget": budget}


def question(served: Service, *targets: dict, **settings: object) -> dict:
    return {"network": served.network, "devices": list(targets or [target()]), "settings": settings}


@pytest.mark.parametrize(
    ("budget", "changes"),
    [("0.8x", {}), ("0.3ms", {}), ("0.7x", {"max_params": 15000, "multiple_of": {"*": 4}}), ("0.9x", {"keep": ("0",)})],
)
def test_the_plan_by_rest_is_the_commands_byte_for_byte(served: Service, budget: str, changes: dict):
    reply = served.post("/plans", question(served, target(0, budget), **changes))
    assert reply.status_code == 200, reply.text
    assert same_plan(reply.text) == same_plan(local_plan(budget, **changes).to_json())
    again = served.http.get(reply.headers["location"])
    assert again.text == reply.text


def test_one_plan_for_two_devices_is_the_commands(served: Service):
    reply = served.post("/plans", question(served, target(0, "0.9x"), target(1, "0.85x")))
    assert same_plan(reply.text) == same_plan(local_plan("0.9x", also=(1, "0.85x")).to_json())


def test_the_same_question_is_answered_from_what_was_found(served: Service):
    first, again = (served.post("/plans", question(served, target(0, "0.75x"))) for _ in range(2))
    assert first.text == again.text  # to the seconds that the first search took


def test_a_front_and_its_knee_are_the_commands(served: Service):
    reply = served.post("/fronts", {"network": served.network, "device": {"device": device(0).id}, "count": 5})
    plans = front(problem(), 5)
    found = reply.json()
    assert found["knee"] == knee(plans) + 1
    assert [row["widths"] for row in found["plans"]] == [dict(plan.widths) for plan in plans]
    texts = [served.http.get(f"/plans/{row['fingerprint']}").text for row in found["plans"]]
    assert [same_plan(text) for text in texts] == [same_plan(plan.to_json()) for plan in plans]


def test_several_plans_and_an_explanation_are_the_commands(served: Service):
    several = served.post("/tops", question(served, target(0, "0.8x")) | {"count": 3}).json()["plans"]
    ours = problem().top(parse_budget("0.8x"), 3)
    assert [row["widths"] for row in several] == [dict(plan.widths) for plan in ours]
    found = served.post("/explanations", {"plan": several[0]["fingerprint"]}).json()
    expected = json.loads(json.dumps(explain(ours[0], NET, table()).as_dict()))
    assert found == expected | {"table_changed": False}


def test_a_sweep_asks_every_device_and_a_budget_that_none_keeps_is_a_row(served: Service):
    devices = [{"device": device(n).id} for n in (0, 1)]
    asked = {"network": served.network, "devices": devices, "budgets": ["0.8x", "0.001ms"]}
    queued = served.post("/sweeps", asked)
    assert queued.status_code == 202
    status = served.http.get(queued.headers["location"], params={"wait": 60}).json()
    assert status["state"] == "done"
    rows = status["answer"]["rows"]
    assert [(row["device"], row["budget"]) for row in rows] == [
        (d["device"], b) for d in devices for b in asked["budgets"]
    ]
    assert rows[0]["predicted_ms"] == local_plan("0.8x").predicted_ms
    assert rows[1]["error"]["smallest_ms"] > 0.001


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"devices": [target(0, "0.001ms")]}, 422, "below the fastest"),
        ({"devices": [target(0, "soon")]}, 422, "neither milliseconds nor a ratio"),
        ({"devices": [{"device": "nobodys", "budget": "1ms"}]}, 422, "push it"),
        ({"network": "0" * 64}, 404, "no network"),
        ({"settings": {"keep": ["nothing-is-called-so"]}}, 422, "nothing is called"),
    ],
)
def test_a_question_without_an_answer_is_told_why(served: Service, change: dict, status: int, said: str):
    reply = served.post("/plans", question(served) | change)
    assert (reply.status_code, said in reply.json()["detail"]) == (status, True), reply.text


def test_what_is_kept_can_be_listed_and_fetched(served: Service):
    (row,) = [each for each in served.http.get("/devices").json() if each["id"] == device(0).id]
    history = served.http.get(f"/devices/{row['key']}").json()["history"]
    assert history[0]["synthetic"]
    rows = pd.read_parquet(io.BytesIO(served.http.get(f"/profiles/{history[0]['fingerprint']}").content))
    assert len(rows) == history[0]["rows"]
    (network,) = served.http.get("/networks").json()
    assert served.http.get(f"/networks/{network['fingerprint']}").json() == traced().model_dump(mode="json")
    assert served.http.get("/jobs").json()[0]["answer"] is None
    for path in ("/devices/" + "0" * 16, "/profiles/" + "0" * 64, "/networks/" + "0" * 64, "/plans/" + "0" * 64):
        assert served.http.get(path).status_code == 404


def test_a_plan_made_elsewhere_is_kept_as_it_was(served: Service):
    plan = local_plan("0.95x")
    with Client(served.url) as client:
        fingerprint = client.push_plan(plan)
        assert client.push_plan(plan) == fingerprint
    assert served.http.get(f"/plans/{fingerprint}").text == plan.to_json()
    assert served.post("/explanations", {"plan": fingerprint}).status_code == 422


def test_the_client_raises_what_the_search_would(served: Service):
    with Client(served.url) as client:
        here = Target(device=device(0).machine, budget="0.8x")
        plan = client.plan(served.network, [here], Settings())
        assert same_plan(plan.to_json()) == same_plan(local_plan("0.8x").to_json())
        with pytest.raises(BudgetError, match="below the fastest"):
            client.plan(served.network, [here.model_copy(update={"budget": "0.001ms"})])
        with pytest.raises(DeviceError, match="push it"):
            client.plan(served.network, [Target(device="nobodys", budget="1ms")])
        with pytest.raises(ServiceError, match="no network"):
            client.network("0" * 64)
        seen = []
        rows = client.sweep(served.network, [DeviceChoice(device=device(1).id)], ["0.9x"], seen=seen.append)
        assert rows[0]["plan"]
        assert [each.machine for each in client.devices()] == [device(0).machine, device(1).machine]
        assert client.front(served.network, DeviceChoice(device=device(0).id), 3)[-1].predicted_ms
    with pytest.raises(ServiceError, match="cannot reach"):
        Client("http://127.0.0.1:1", patience_s=0).networks()
    with pytest.raises(ServiceError, match="no URL"):
        Client("127.0.0.1:8765")


def test_a_job_can_be_cancelled_and_says_so(tmp_path):
    with service(sqlite(tmp_path), works=False) as idle:
        idle.network = idle.push(0)
        waiting = idle.post("/plans", question(idle), params={"wait": 0})
        assert waiting.status_code == 202
        id = waiting.json()["id"]
        assert idle.http.get(f"/jobs/{id}", params={"wait": 0.05}).json()["state"] == "queued"
        assert idle.http.post(f"/jobs/{id}/cancel").json()["state"] == "cancelled"
        assert idle.http.post(f"/jobs/{'0' * 32}/cancel").status_code == 404


def test_health_metrics_headers_and_page(served: Service):
    assert served.http.get("/healthz").json() == {"status": "ok"}
    assert served.http.get("/readyz").json() == {"status": "ready"}
    text = served.http.get("/metrics").text
    assert 'narrowgauge_kept{kind="devices"} 2.0' in text
    assert 'narrowgauge_jobs{state="done"}' in text
    assert 'route="/healthz"' in text
    page = served.http.get("/", follow_redirects=True)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for path, kept in (("/page/", "no-cache"), ("/devices", "no-store"), ("/nothing", "no-store")):
        headers = served.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == kept


def test_a_database_that_is_away_is_said_and_not_a_crash(tmp_path, monkeypatch):
    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    with service(sqlite(tmp_path), works=False) as alone:
        monkeypatch.setattr(alone.state.storage, "networks", away)
        reply = alone.http.get("/networks")
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        monkeypatch.setattr(alone.state.database, "is_current", lambda: False)
        assert alone.http.get("/readyz").status_code == 503


# ---- who may do what ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Tokens on, four of them, on a clock that stands still."""
    settings = {"auth": "on", "max_body_bytes": 2_000_000}
    with service(sqlite(tmp_path_factory.mktemp("guarded")), clock=lambda: 0.0, **settings) as each:
        tokens = Tokens(each.state.database)
        each.tokens = {
            "reader": tokens.create("reader", frozenset({"read"})),
            "pusher": tokens.create("pusher", frozenset({"push"}), max_body_bytes=5000),
            "both": tokens.create("both", frozenset({"read", "push"})),
            "slow": tokens.create("slow", frozenset({"read"}), requests_per_minute=3),
        }
        yield each


def bearer(guarded: Service, name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {guarded.tokens[name]}"}


def test_a_token_may_do_what_its_scopes_say_and_no_more(guarded: Service):
    document = traced().model_dump(mode="json")
    for name, reads, pushes in (("reader", 200, 403), ("pusher", 403, 201), ("both", 200, 200)):
        headers = bearer(guarded, name)
        assert guarded.http.get("/networks", headers=headers).status_code == reads
        assert guarded.http.post("/networks", json=document, headers=headers).status_code == pushes
    audit = audited(guarded)
    assert [(who, action) for who, action in audit if "token" not in action] == [("pusher", "push to networks")]


def audited(guarded: Service) -> list[tuple[str, str]]:
    with guarded.state.database.read() as session:
        return [(row.who, row.action) for row in session.scalars(select(Audit).order_by(Audit.id))]


@pytest.mark.parametrize("path", ["/devices", "/networks", "/plans", "/jobs", "/metrics", "/devices/" + "0" * 16, "/x"])
def test_nothing_is_told_without_a_token(guarded: Service, path: str):
    for headers in ({}, {"authorization": "Bearer ng_000000000000_" + "A" * 43}, {"authorization": "Basic eDp5"}):
        reply = guarded.http.get(path, headers=headers)
        assert reply.status_code == 401
        assert reply.headers["content-security-policy"]
    assert guarded.http.get("/healthz").status_code == 200


def test_a_token_has_its_own_limits(guarded: Service):
    big = profile().model_dump(mode="json")
    assert len(json.dumps(big)) > 5000
    refused = guarded.http.post("/profiles", json=big, headers=bearer(guarded, "pusher"))
    assert refused.status_code == 413
    replies = [guarded.http.get("/networks", headers=bearer(guarded, "slow")) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert replies[-1].headers["retry-after"] == "20"


def test_a_job_is_cancelled_by_who_asked_or_who_may_push(guarded: Service):
    headers = bearer(guarded, "both")
    guarded.http.post("/profiles", json=profile().model_dump(mode="json"), headers=headers)
    pushed = guarded.http.post("/networks", json=traced().model_dump(mode="json"), headers=headers)
    network = pushed.json()["fingerprint"]
    sweep = {"network": network, "devices": [{"device": device(0).id}], "budgets": ["0.9x"]}
    id = guarded.http.post("/sweeps", json=sweep, headers=headers).json()["id"]
    assert guarded.http.post(f"/jobs/{id}/cancel", headers=bearer(guarded, "reader")).status_code == 403
    assert guarded.http.post(f"/jobs/{id}/cancel", headers=headers).status_code == 200
    assert ("both", "cancel") in audited(guarded)


def test_no_secret_is_logged(guarded: Service, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG, logger="narrowgauge"):
        guarded.http.get("/networks", headers=bearer(guarded, "both"))
        guarded.http.get("/networks?token=in-the-query", headers={"authorization": "Bearer wrong-secret"})
        guarded.http.get("/healthz")  # the line of a request is written after its answer
    lines = [JsonLines().format(record) for record in caplog.records if record.name.startswith("narrowgauge")]
    assert "both" in [json.loads(line).get("who") for line in lines]
    for secret in (guarded.tokens["both"], "wrong-secret", "in-the-query"):
        assert [line for line in lines if secret in line] == []


def test_tokens_are_off_on_loopback_only():
    assert not ServiceSettings(host="127.0.0.1").needs_tokens
    assert not ServiceSettings(host="::1").needs_tokens
    assert ServiceSettings(host="127.0.0.1", auth="on").needs_tokens
    assert ServiceSettings(host="0.0.0.0").needs_tokens
    assert ServiceSettings(host="narrowgauge.example").needs_tokens
    with pytest.raises(InputError, match="let anyone write"):
        _ = ServiceSettings(host="0.0.0.0", auth="off").needs_tokens
    secret = ServiceSettings(database="postgresql://u:hidden@h/d")
    assert "hidden" not in repr(secret)
    assert "hidden" in secret.environment["NARROWGAUGE_DATABASE"]


def test_a_bucket_fills_at_its_rate():
    moment = 0.0
    rate = Rate(60, clock=lambda: moment)
    assert [rate.wait_s("a") for _ in range(60)] == [0.0] * 60
    assert rate.wait_s("a") == pytest.approx(1.0)
    assert rate.wait_s("b") == 0.0
    moment = 1.5
    assert [rate.wait_s("a", take=False) for _ in range(2)] == [0.0] * 2
    assert rate.wait_s("a") == 0.0
    assert rate.wait_s("a") == pytest.approx(0.5)


def test_the_service_searches_without_torch_and_without_the_users_code():
    code = "import sys, search.service.api, search.service.worker, search.service.answers, search.service.remote\n"
    code += "assert 'torch' not in sys.modules, 'torch'\n"
    code += "assert 'network.reference' not in sys.modules and 'search.task' not in sys.modules, 'loads code'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_pushed_plan_must_be_whole(served: Service):
    document = json.loads(local_plan("0.8x").to_json())
    document["widths"]["a0"] = 10**6
    assert served.http.post("/plans/import", json=document).status_code == 422
    with pytest.raises(PlanError):
        plan_of({"schema": 2})
