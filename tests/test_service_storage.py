"""Storage and queue, by one suite on SQLite and a real PostgreSQL: nothing is lost, doubled or overwritten."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select

import search.service.answers
import search.service.auth
import search.service.jobs
from benchmarks.fleet import chain, device, machine, rows_of
from benchmarks.postgres import Server, find_binaries, running
from latency.table import fingerprint
from network.errors import DeviceError, InputError, PlanError, StoreError
from search.service.answers import Library, settle
from search.service.auth import Tokens
from search.service.clock import now
from search.service.database import Database, is_full
from search.service.holding import Hold, Lost, Stopped
from search.service.jobs import Queue
from search.service.models import Audit, Base, Blob, Job, ProfileRow
from search.service.profiles import profile_of
from search.service.replies import Problem
from search.service.rows import device_key
from search.service.schemas import DeviceChoice, ExplanationQuestion, PlanQuestion, SweepQuestion
from search.service.storage import NotFound, Storage, Writer
from search.service.worker import Worker
from tests.service import NET, local_plan, profile, sqlite, traced

ALICE = Writer("alice", "127.0.0.1")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    if find_binaries() is None:
        pytest.skip("no PostgreSQL server is installed; apt-get install postgresql, or make postgres")
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path) -> Iterator[Database]:
    if request.param == "sqlite":
        database = Database(sqlite(tmp_path))
    else:
        database = Database(request.getfixturevalue("postgres").url)
        with database.engine.begin() as connection:
            connection.execute(sqlalchemy.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def storage(database: Database) -> Storage:
    return Storage(database)


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database, lease_s=30, attempts=2)


def count(database: Database, table: type[Base]) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_the_migrations_make_the_tables_of_the_models(database: Database):
    assert database.is_current()
    database.migrate()  # again is no harm
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_pushed_twice_is_kept_once_and_said_to_be_there(storage: Storage):
    first, again = storage.add_profile(profile(), ALICE), storage.add_profile(profile(), ALICE)
    assert (first[0], True) == first
    assert again == (first[0], False)
    assert storage.add_network(traced(), ALICE)[1]
    assert not storage.add_network(traced(), ALICE)[1]
    assert [count(storage.database, table) for table in (ProfileRow, Blob, Audit)] == [1, 2, 2]


def test_a_newer_measurement_counts_and_the_older_is_history(storage: Storage):
    old, _ = storage.add_profile(profile(seed=1), ALICE)
    other, _ = storage.add_profile(profile(net=chain("b", [8, 8])), ALICE)
    new, _ = storage.add_profile(profile(seed=2), ALICE)
    assert set(storage.newest(device(0))) == {new, other}
    (summary,) = storage.devices()
    history = storage.device(summary.key).history
    assert [(each.fingerprint, each.counts) for each in history] == [(new, True), (other, True), (old, False)]
    assert storage.profile(old)
    storage.add_profile(profile(seed=1), ALICE)  # a replay
    assert set(storage.newest(device(0))) == {new, other}


def test_devices_are_listed_where_a_network_can_be_searched(storage: Storage):
    fingerprint, _ = storage.add_network(traced())
    for number in range(3):
        storage.add_profile(profile(number))
    storage.add_profile(profile(3, net=chain("b", [8, 8])))
    able = storage.devices(network=fingerprint)
    assert [each.machine for each in able] == [device(number).machine for number in range(3)]
    assert len(storage.devices()) == 4
    assert [each.machine for each in storage.devices(after=able[0].cursor, limit=1)] == [device(1).machine]
    assert able[0].measured.synthetic
    assert able[0].measured.rows == storage.device(able[0].key).history[0].rows
    with pytest.raises(NotFound):
        storage.devices(network="0" * 64)


def test_a_device_is_chosen_as_the_command_chooses(storage: Storage):
    storage.add_profile(profile(0))
    assert storage.choose(DeviceChoice(device=device(0).machine)) == device(0)
    assert storage.choose(DeviceChoice(device=device(0).id)) == device(0)
    with pytest.raises(DeviceError, match="push it"):
        storage.choose(DeviceChoice(device="unheard-of"))
    with pytest.raises(DeviceError, match="openvino"):
        storage.choose(DeviceChoice(device=device(0).machine, runtime="openvino"))


def test_without_threads_the_most_that_were_measured_are_meant(storage: Storage):
    """Whatever the cores of the machine that serves."""
    for threads in (1, 16, 2):
        owner = replace(device(0), threads=threads)
        rows = rows_of(NET, owner)
        storage.add_profile(profile_of(machine(0), owner, fingerprint(NET), rows, synthetic=True))
    assert storage.choose(DeviceChoice(device=device(0).machine)).threads == 16
    assert storage.choose(DeviceChoice(device=device(0).machine, threads=1)).threads == 1


def test_plans_are_kept_once_whatever_their_seconds(storage: Storage):
    network, _ = storage.add_network(traced())
    plans = [local_plan("0.8x"), local_plan("0.8x")]
    assert [storage.add_plan(plan, network)[1] for plan in plans] == [True, False]
    (row,) = storage.plans(network=network)
    assert storage.plan_text(row.fingerprint) == plans[0].to_json()
    assert row.predicted_ms == plans[0].predicted_ms
    elsewhere, _ = storage.add_plan(local_plan("0.9x"), None)
    with pytest.raises(PlanError, match="not here"):
        storage.plan(elsewhere)


def test_writers_at_once_lose_and_double_nothing(storage: Storage):
    """Two writers push the same documents, and documents of the same new device, at the same moment."""
    documents = [profile(n % 2, net=chain(f"c{n % 4}", [8, 8]), seed=n % 6) for n in range(12)]
    start, errors, kept = threading.Barrier(4), [], []

    def push() -> None:
        try:
            start.wait()
            kept.extend(storage.add_profile(document, ALICE) for document in documents)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    distinct = len({fingerprint for fingerprint, _ in kept})
    assert sum(created for _, created in kept) == distinct == count(storage.database, ProfileRow)
    assert len(storage.devices()) == 2


def ask(queue: Queue, key: str = "k") -> str:
    return queue.ask("plan", key, {"question": {}})


def test_each_job_goes_to_one_worker_in_the_order_asked(queue: Queue):
    ids = [ask(queue, str(n)) for n in range(20)]
    taken: list[str] = []

    def take(name: str) -> None:
        while claim := queue.claim(name):
            taken.append(claim.id)

    threads = [threading.Thread(target=take, args=(f"worker {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)


def test_an_answer_is_found_again_by_its_key(queue: Queue):
    first = ask(queue)
    assert ask(queue) != first  # it is not answered yet
    claim = queue.claim("a")
    assert claim
    assert queue.finish(claim, {"plan": "p"})
    assert ask(queue) == first
    assert queue.status(first).answer == {"plan": "p"}
    assert queue.finished([first]) == {first}


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(search.service.jobs, "now", lambda: now() + timedelta(seconds=seconds))


def test_a_dropped_job_is_taken_up_where_it_was_and_fails_after_too_many_deaths(queue: Queue, monkeypatch):
    id = ask(queue)
    first = queue.claim("a")
    assert first
    assert queue.progress(first, 1, 4, {"rows": [1]})
    assert queue.claim("b") is None
    later(monkeypatch, 31)
    second = queue.claim("b")
    assert second
    assert second.partial == {"rows": [1]}
    assert not queue.finish(first, {"plan": "late"})  # it is no longer a's
    assert not queue.beat(first)
    later(monkeypatch, 62)
    assert queue.claim("c") is None
    status = queue.status(id)
    assert status.state == "failed"
    assert status.error
    assert "2 workers died" in status.error.detail


def test_a_job_given_back_is_no_death(queue: Queue):
    id = ask(queue)
    for _ in range(5):
        claim = queue.claim("a")
        assert claim
        assert queue.release(claim)
    assert queue.status(id).attempts == 0


def test_a_plan_that_takes_too_long_fails_and_ends_its_worker(queue: Queue):
    id, ended = ask(queue), threading.Event()
    claim = queue.claim("a")
    assert claim
    moments = itertools.chain([0.0], itertools.repeat(61.0))
    limits = {"lease_s": 0.04, "plan_s": 60.0}
    with Hold(queue, claim, threading.Event(), **limits, give_up=ended.set, clock=lambda: next(moments)):
        assert ended.wait(30)
    status = queue.status(id)
    assert status.state == "failed"
    assert status.error
    assert "longer than NARROWGAUGE_PLAN_SECONDS, 60 s" in status.error.detail


def test_a_worker_that_is_stopped_gives_its_job_back_between_two_plans(queue: Queue):
    id, stop = ask(queue), threading.Event()
    claim = queue.claim("a")
    assert claim
    with Hold(queue, claim, stop, lease_s=30, plan_s=60, give_up=stop.set) as hold:
        hold.progress(1, 3)
        stop.set()
        with pytest.raises(Stopped):
            hold.progress(2, 3, {"rows": [1, 2]})
        queue.cancel(id)
        with pytest.raises(Lost):
            hold.progress(3, 3)


def test_a_cancelled_job_keeps_no_answer(queue: Queue):
    id = ask(queue)
    claim = queue.claim("a")
    assert claim
    assert queue.cancel(id).state == "cancelled"
    assert not queue.progress(claim, 1, 2)
    assert not queue.finish(claim, {"plan": "p"})
    assert not queue.fail(claim, Problem(detail="x"))
    assert queue.cancel(id).state == "cancelled"
    with pytest.raises(NotFound):
        queue.cancel("0" * 32)


def test_old_jobs_are_forgotten_and_open_ones_never(queue: Queue, monkeypatch):
    done, open_ = ask(queue, "1"), ask(queue, "2")
    claim = queue.claim("a")
    assert claim
    assert queue.finish(claim, {})
    assert queue.purge(days=1) == 0
    later(monkeypatch, 2 * 86400)
    assert queue.purge(days=1) == 1
    assert queue.counts() == {"queued": 1}
    with pytest.raises(NotFound):
        queue.status(done)
    assert queue.status(open_).state == "queued"


def test_a_worker_answers_by_the_tables_of_the_moment_it_was_asked(storage: Storage, queue: Queue):
    network, _ = storage.add_network(traced())
    storage.add_profile(profile(0))
    question = PlanQuestion(network=network, devices=[{"device": device(0).id, "budget": "0.8x"}])
    key, settled = settle(storage, "plan", question)
    id = queue.ask("plan", key, settled)
    storage.add_profile(profile(0, seed=9))
    assert settle(storage, "plan", question)[0] != key
    assert Worker(queue, Library(storage)).once(threading.Event())
    answer = queue.status(id).answer
    assert answer
    plan, _ = storage.plan(answer["plan"])
    assert plan.table_fingerprint == local_plan("0.8x").table_fingerprint


@pytest.mark.parametrize("newer", [{"threads": 16}, {"version": "2.1"}])
def test_a_worker_answers_for_the_device_that_was_meant_when_it_was_asked(storage: Storage, queue: Queue, newer):
    network, _ = storage.add_network(traced())
    storage.add_profile(profile(0))
    asked = local_plan("0.8x")
    kept, _ = storage.add_plan(asked, network)
    question = PlanQuestion(network=network, devices=[{"device": device(0).machine, "budget": "0.8x"}])
    ids = [queue.ask("plan", *settle(storage, "plan", question))]
    ids += [queue.ask("explanation", *settle(storage, "explanation", ExplanationQuestion(plan=kept)))]
    owner = replace(device(0), **newer)
    rows = rows_of(NET, owner, seed=9)
    storage.add_profile(profile_of(machine(0), owner, fingerprint(NET), rows, synthetic=True))
    assert storage.choose(DeviceChoice(device=device(0).machine)) == owner
    worker = Worker(queue, Library(storage))
    assert [worker.once(threading.Event()) for _ in ids] == [True] * 2
    found, explained = (queue.status(id).answer for id in ids)
    assert found
    assert explained
    assert found["plan"] == kept
    assert explained["table_changed"] is False


def test_an_answer_of_another_version_is_not_found_again(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    network, _ = storage.add_network(traced())
    storage.add_profile(profile(0))
    question = PlanQuestion(network=network, devices=[{"device": device(0).id, "budget": "0.8x"}])
    key, settled = settle(storage, "plan", question)
    assert settle(storage, "plan", question) == (key, settled)
    monkeypatch.setattr(search.service.answers, "version", lambda _: "0.0.0")
    other, same = settle(storage, "plan", question)
    assert other != key
    assert same == settled


def test_a_sweep_goes_on_where_its_worker_died(storage: Storage, queue: Queue):
    network, _ = storage.add_network(traced())
    storage.add_profile(profile(0))
    question = SweepQuestion(network=network, devices=[{"device": device(0).id}], budgets=["0.9x", "0.8x", "0.001ms"])
    key, settled = settle(storage, "sweep", question)
    id = queue.ask("sweep", key, settled)
    claim = queue.claim("killed")
    assert claim
    queue.progress(claim, 1, 3, {"rows": [{"device": "found before", "budget": "0.9x"}]})
    queue.release(claim, counted=True)
    assert Worker(queue, Library(storage)).once(threading.Event())
    status = queue.status(id)
    assert status.answer
    rows = status.answer["rows"]
    assert [row["budget"] for row in rows] == ["0.9x", "0.8x", "0.001ms"]
    assert rows[0]["device"] == "found before"
    assert rows[1]["predicted_ms"] == local_plan("0.8x").predicted_ms
    assert "below the fastest" in rows[2]["error"]["detail"]


def test_a_bug_in_the_search_ends_its_job_and_not_the_worker(storage: Storage, queue: Queue):
    id = queue.ask("plan", "k", {"question": "no question"})
    assert Worker(queue, Library(storage)).once(threading.Event())
    status = queue.status(id)
    assert status.state == "failed"
    assert status.error
    assert id in status.error.detail
    assert "question" not in status.error.detail


def test_a_token_is_kept_as_a_hash_and_ends_when_it_is_revoked_or_over(database: Database, monkeypatch):
    tokens = Tokens(database)
    text = tokens.create("ci", frozenset({"read"}), requests_per_minute=5)
    caller = tokens.caller(text)
    assert caller
    assert (caller.name, caller.scopes, caller.requests_per_minute) == ("ci", {"read"}, 5)
    for row in tokens.list():
        assert text.split("_", 2)[2] not in str(vars(row))
    for wrong in (text[:-1] + ("a" if text[-1] != "a" else "b"), "ng_000000000000_" + text[-43:], "", text + "\n"):
        assert tokens.caller(wrong) is None
    with pytest.raises(InputError, match="already"):
        tokens.create("ci", frozenset({"read"}))
    with pytest.raises(InputError, match="no scope 'admin'"):
        tokens.create("other", frozenset({"admin"}))
    tokens.revoke("ci")
    assert tokens.caller(text) is None
    short = tokens.create("ci", frozenset({"push"}), days=1)
    assert tokens.caller(short)
    monkeypatch.setattr(search.service.auth, "now", lambda: now() + timedelta(days=1, seconds=1))
    assert tokens.caller(short) is None


def test_a_full_disk_keeps_nothing_by_halves(tmp_path):
    database = Database(sqlite(tmp_path))
    database.migrate()
    storage = Storage(database)
    storage.add_profile(profile(0))

    def narrow(connection: sqlite3.Connection, *_: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")

    database.engine.dispose()
    sqlalchemy.event.listen(database.engine, "connect", narrow)
    before = count(database, Blob)
    full = False
    while not full:
        try:
            storage.add_profile(profile(before))
            before += 1
        except sqlalchemy.exc.OperationalError as error:
            full = is_full(error)
    assert count(database, Blob) == count(database, ProfileRow) == before
    assert len(storage.devices()) == before


def test_a_database_that_cannot_be_had_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no URL"):
        Database("nonsense")
    with pytest.raises(InputError, match="neither sqlite nor postgresql"):
        Database("mysql://x/y")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="check --database"):
        Database(f"sqlite:///{tmp_path / 'file' / 'service.db'}")
    away = Database("postgresql://user:hidden@127.0.0.1:1/x")
    with pytest.raises(StoreError, match="cannot open") as caught:
        away.migrate()
    assert "hidden" not in str(caught.value)
    assert "hidden" not in str(away)


def test_jobs_have_no_row_left_when_the_question_was_refused(storage: Storage):
    question = PlanQuestion(network="0" * 64, devices=[{"device": "x", "budget": "0.8x"}])
    with pytest.raises(NotFound):
        settle(storage, "plan", question)
    assert count(storage.database, Job) == 0


def test_a_devices_key_is_its_own(storage: Storage):
    assert len({device_key(device(n, runtime)) for n in range(3) for runtime in ("torch", "openvino")}) == 6
