"""`narrowgauge` and the flags that talk to a service: serve, work, token, --push, --server."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

import latency.command
import search.command
from benchmarks.fleet import device
from latency import Store
from network.command_line import run
from search.service.command import main, parser
from search.service.database import Database
from search.service.jobs import Queue
from search.service.schemas import SweepQuestion
from tests.known_runtime import install
from tests.service import KNOWN, MODEL, Service, process, profile, same_plan, service, sqlite, traced, until

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(sqlite(tmp_path_factory.mktemp("commands"))) as each:
        yield each


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, served: Service) -> Path:
    """A store of this machine, which `profile-device --push` sent to the service."""
    folder = tmp_path_factory.mktemp("profiles")
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        words = [*MODEL, *KNOWN, "--configurations", "8", "--profiles", str(folder), "--push", served.url]
        assert main(["profile-device", *words]) == 0
    return folder


def test_profile_device_pushes_what_it_measured_and_pushes_again_to_no_effect(served: Service, measured: Path, capsys):
    (known,) = Store(measured).devices()
    devices = served.http.get("/devices").json()
    assert [each["id"] for each in devices] == [known.id]
    assert devices[0]["measured"]["rows"] == len(Store(measured).rows())
    assert latency.command.main(["--push", served.url, "--profiles", str(measured)]) == 0
    assert "0 of 1 profiles are new" in capsys.readouterr().err


@pytest.mark.parametrize("question", [["--latency-budget", "0.7x"], ["--latency-budget", "0.8x", "--keep", "enter"]])
def test_search_by_a_server_writes_the_same_plan(served: Service, measured: Path, tmp_path, question: list[str]):
    files = [tmp_path / "here.json", tmp_path / "there.json", tmp_path / "again.json"]
    here = [*MODEL, *KNOWN, *question, "--profiles", str(measured), "--push", served.url, "-o", str(files[0])]
    assert main(["search", *here]) == 0
    there = [*MODEL, *KNOWN, *question, "--server", served.url, "-o", str(files[1])]
    assert main(["search", *there]) == 0
    network = served.http.get("/networks").json()[-1]["fingerprint"]
    again = ["--network", network, *KNOWN, *question, "--server", served.url, "-o", str(files[2])]
    assert run(search.command.main, again) == 0
    assert len({same_plan(file.read_text()) for file in files}) == 1


def test_a_front_and_a_top_by_a_server_are_the_same_too(served: Service, measured: Path, tmp_path):
    for name, where in (("here", ["--profiles", str(measured)]), ("there", ["--server", served.url])):
        words = [*MODEL, *KNOWN, "--front", "4", "--latency-budget", "0.8x", "--top", "2", *where]
        assert main(["search", *words, "-o", str(tmp_path / f"{name}.json")]) == 0
    for kind in ("front/front", "top/top"):
        here, there = (json.loads((tmp_path / f"{name}-{kind}.json").read_text()) for name in ("here", "there"))
        assert here == there


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--network", "0" * 64, "--latency-budget", "1ms", "-o", "p.json"], "--server"),
        ([*MODEL, "--latency-budget", "1ms", "--server", "a", "--push", "b", "-o", "p.json"], "leave out --push"),
        ([*MODEL, "--latency-budget", "1ms", "--server", "nowhere", "-o", "p.json"], "no URL"),
        ([*MODEL, "--latency-budget", "1ms", "--push", "nowhere", "-o", "p.json"], "no URL"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(words: list[str], said: str, capsys):
    assert main(["search", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_service_that_is_away_is_said_before_anything_is_measured(tmp_path, capsys):
    words = [*MODEL, *KNOWN, "--profiles", str(tmp_path), "--push", "http://127.0.0.1:1"]
    assert main(["profile-device", *words]) == 2
    assert "cannot reach" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))


def test_tokens_are_made_listed_and_revoked(tmp_path, capsys):
    where = ["--database", sqlite(tmp_path)]
    assert main(["token", "create", "ci", "--scope", "read", "--scope", "push", *where]) == 0
    token = capsys.readouterr().out.strip()
    with service(sqlite(tmp_path), works=False, auth="on") as guarded:
        guarded.http.headers["authorization"] = f"Bearer {token}"
        assert guarded.http.get("/devices").status_code == 200
        assert main(["token", "revoke", "ci", *where]) == 0
        assert guarded.http.get("/devices").status_code == 401
    capsys.readouterr()
    assert main(["token", "list", "--json", *where]) == 0
    (row,) = json.loads(capsys.readouterr().out)["tokens"]
    assert row["scopes"] == "push,read"
    assert row["revoked_at"]
    assert main(["token", "revoke", "ci", *where]) == 2
    assert "token list" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["nan", "-1", "0", "1e10"])
def test_a_token_holds_for_days_to_come_or_is_not_made(tmp_path, capsys, days: str):
    where = ["--database", sqlite(tmp_path)]
    assert main(["token", "create", "ci", "--days", days, *where]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "--days" in said.err
    assert main(["token", "create", "ci", "--days", "0.5", *where]) == 0


@pytest.mark.parametrize("command", ["serve", "work", "token"])
def test_the_examples_of_a_commands_help_are_commands(capsys, command: str):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    examples = re.findall(r"^  narrowgauge (.*?)(?:  .*)?$", capsys.readouterr().out, re.M)
    assert examples
    for example in examples:
        assert parser().parse_args(shlex.split(example)).command == command


def test_the_containers_health_check_calls_by_a_name_that_the_service_answers_to(tmp_path):
    text = (ROOT / "examples" / "service" / "Containerfile").read_text()
    (check,) = re.findall(r"^HEALTHCHECK CMD (.*?)(?<!\\)$", text, re.M | re.S)
    with service(sqlite(tmp_path), works=False, auth="on", hosts="fleet.example, other.example") as guarded:
        check = check.replace("8765", str(urlsplit(guarded.url).port)).replace("python", sys.executable, 1)
        assert guarded.http.get("/readyz").status_code == 421
        for hosts, healthy in (("fleet.example, other.example", True), ("", False)):
            found = subprocess.run(["sh", "-c", check], env={**os.environ, "NARROWGAUGE_HOSTS": hosts})
            assert (found.returncode == 0) == healthy


def test_settings_that_are_wrong_are_one_line(monkeypatch, capsys):
    monkeypatch.setenv("NARROWGAUGE_WORKERS", "many")
    assert main(["serve"]) == 2
    assert "NARROWGAUGE_WORKERS" in capsys.readouterr().err
    monkeypatch.setenv("NARROWGAUGE_WORKERS", "0")
    assert main(["serve", "--host", "0.0.0.0", "--auth", "off"]) == 2
    assert "let anyone write" in capsys.readouterr().err


def test_a_worker_that_is_killed_is_replaced_and_its_job_answered(tmp_path):
    """From an empty folder: serve, push, ask, kill -9, and the answer; then a graceful stop."""
    with process(tmp_path) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        client.post("/profiles", json=profile().model_dump(mode="json"))
        network = client.post("/networks", json=traced().model_dump(mode="json")).json()["fingerprint"]
        budgets = tuple(f"{0.6 + 0.008 * n:.3f}x" for n in range(48))
        question = SweepQuestion(network=network, devices=({"device": device().id},), budgets=budgets)
        id = client.post("/sweeps", json=question.model_dump(mode="json")).json()["id"]
        until(lambda: client.get(f"/jobs/{id}").json()["state"] != "queued")
        (worker,) = served.workers()
        os.kill(worker, signal.SIGKILL)
        status = client.get(f"/jobs/{id}", params={"wait": 60}).json()
        assert status["state"] == "done"
        assert [row["budget"] for row in status["answer"]["rows"]] == list(budgets)
        until(lambda: set(served.workers()) - {worker})
        (other,) = set(served.workers()) - {worker}
        long = question.model_copy(update={"devices": question.devices * 40})  # near a minute: not over when stopped
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(client.post, "/sweeps", json=long.model_dump(mode="json"), params={"wait": 50})
            until(lambda: "running" in [job["state"] for job in client.get("/jobs").json()])
            served.process.send_signal(signal.SIGTERM)
            assert told.result(30).status_code == 202  # whoever waits is told, and does not hold up the end
        assert served.process.wait(30) == 0
    database = Database(sqlite(tmp_path))
    assert Queue(database).status(told.result().json()["id"]).state == "queued"  # its worker gave it back
    database.close()
    assert not Path(f"/proc/{other}").exists()


def test_the_schema_is_described_without_a_cdn(served: Service):
    openapi = served.http.get("/openapi.json").json()
    assert {"/devices", "/profiles", "/networks", "/plans", "/fronts", "/explanations", "/sweeps"} <= set(
        openapi["paths"]
    )
    assert served.http.get("/docs").status_code == 404
