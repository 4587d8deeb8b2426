"""The plan as a file: it comes back as it went, and a damaged one says what is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from network.errors import PlanError, StoreError
from search.plan import Feed, FrozenGroup, ModelReference, Plan, PlanLayer, Settings, load_plan


def small_plan(**changes: object) -> Plan:
    plan = Plan(
        model=ModelReference("nets.py:build", '{"width": 4}', ((1, 3, 16, 16),), "00ff"),
        device="test-bench",
        runtime="torch",
        precision="fp32",
        threads=2,
        table_fingerprint="abc",
        budget="0.5x",
        budget_ms=5.0,
        baseline_ms=10.0,
        predicted_ms=4.75,
        status="optimal",
        objective=7.5,
        bound=7.5,
        gap=0.0,
        solve_seconds=0.125,
        choices_log10=3.5,
        widths={"conv1": 2, "conv2": 1},
        layers=(PlanLayer("conv2d", "conv1", 3, 2, 1.5, 4.0),),
        frozen=(FrozenGroup("head", "the network's output"),),
        importance={"conv1": (0.5, 4.0, 0.5, 2.0), "conv2": (1.0, 1.5)},
        feed=Feed(images="photos", preprocess="signed", bgr=True),
        settings=Settings(options=8, max_macs=2e9, max_bytes=10**6),
    )
    return dataclasses.replace(plan, **changes)


def test_a_plan_comes_back_from_its_file_as_it_was(tmp_path: Path):
    plan = small_plan()
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_the_file_has_the_keys_that_the_commands_promise():
    document = json.loads(small_plan().to_json())
    promised = (
        "schema model device runtime precision threads table_fingerprint budget budget_ms baseline_ms predicted_ms "
        "status objective bound gap solve_seconds choices_log10 widths layers frozen importance feed others survivors"
    )
    assert set(promised.split()) | {"settings"} == set(document)
    assert set(document["model"]) == {"ref", "args", "input", "weights_sha256"}
    assert set(document["layers"][0]) == {"name", "module", "c_in", "c_out", "ms", "baseline_ms"}
    assert set(document["frozen"][0]) == {"group", "reason"}


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.data())
def test_what_is_kept_is_worth_no_less_than_what_is_cut(scores: list[float], data: st.DataObject):
    width = data.draw(st.integers(1, len(scores)))
    kept = small_plan(widths={"g": width}, importance={"g": tuple(scores)}).keep["g"]
    assert len(set(kept)) == width
    assert list(kept) == sorted(kept)
    cut = set(range(len(scores))) - set(kept)
    assert all(scores[k] >= scores[c] for k in kept for c in cut)


def test_of_equally_important_channels_the_first_stay():
    assert small_plan(widths={"conv1": 3, "conv2": 1}).keep == {"conv1": (0, 1, 3), "conv2": (1,)}


def test_survivors_take_the_place_of_the_most_important_channels(tmp_path: Path):
    plan = small_plan(widths={"conv1": 3, "conv2": 1}, survivors={"conv1": (1, 2, 3)})
    assert plan.keep == {"conv1": (1, 2, 3), "conv2": (1,)}
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("survivors", [(0, 1), (0, 1, 9), (2, 1, 0), (0, 1, 1)])
def test_survivors_that_are_not_as_many_channels_of_the_group_are_refused(survivors: tuple[int, ...]):
    with pytest.raises(PlanError, match="survivors of group 'conv1'"):
        small_plan(widths={"conv1": 3, "conv2": 1}, survivors={"conv1": survivors})


def test_survivors_of_an_unknown_group_are_refused():
    with pytest.raises(PlanError, match="survivors of group 'conv9'"):
        small_plan(survivors={"conv9": (0,)})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:100], "damaged"),
        (lambda text: "[]", "not a JSON object"),
        (lambda text: text.replace('"schema": 1', '"schema": 99'), "schema 99"),
        (lambda text: text.replace('"gap"', '"gape"'), "gap is missing"),
        (lambda text: text.replace('"threads": 2', '"threads": "two"'), "threads is"),
        (lambda text: text.replace('"ref"', '"reference"'), "model.ref is missing"),
        (lambda text: text.replace('"conv1": 2', '"conv1": 9'), "keeps 9 of 4"),
        (lambda text: text.replace('"conv1": 2', '"conv9": 2'), "conv"),
        (lambda text: text.replace('"c_in": 3', '"c_in": null'), r"layers\[0\].c_in"),
        (lambda text: text.replace('"budget_ms": 5.0', '"budget_ms": NaN'), "budget_ms"),
        (lambda text: text.replace("optimal", "splendid"), "splendid"),
    ],
)
def test_a_damaged_plan_names_its_file_and_what_is_wrong(tmp_path: Path, damage, words: str):
    path = tmp_path / "plan.json"
    text = small_plan().to_json()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(PlanError, match=words) as error:
        load_plan(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_from_before_these_fields_is_still_read(tmp_path: Path):
    plan = small_plan(settings=Settings(options=8))
    document = json.loads(plan.to_json())
    assert document["feed"].pop("task_args") == "{}"
    assert document["settings"].pop("max_bytes") is None
    assert document.pop("survivors") == {}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert load_plan(tmp_path / "plan.json") == plan


def test_one_folder_is_one_feed_however_it_is_spelt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    spelt = {Feed(images=words).located() for words in ("photos", "photos/", "./photos", str(tmp_path / "photos"))}
    assert spelt == {Feed(images=str(tmp_path.resolve() / "photos"))}
    assert Feed(task="mine.py:Mine").located() == Feed(task=f"{tmp_path.resolve() / 'mine.py'}:Mine")
    assert Feed(task="a.b:Mine").located() == Feed(task="a.b:Mine")
    assert Feed(preprocess="mine.py:scaled").located().preprocess == f"{tmp_path.resolve() / 'mine.py'}:scaled"


def test_one_plan_is_asked_for_however_its_network_is_spelt_and_whatever_the_search_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    spelt = ("nets.py:small", "./nets.py:small", f"{tmp_path / 'nets.py'}:small")
    plans = [small_plan(model=ModelReference(ref), solve_seconds=float(n)) for n, ref in enumerate(spelt)]
    assert len({plan.asked().to_json() for plan in plans}) == 1
    assert small_plan(model=ModelReference("a.nets:small")).asked().model.ref == "a.nets:small"


def test_a_file_of_bytes_is_no_plan(tmp_path: Path):
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PlanError, match="not a text file"):
        load_plan(tmp_path / "plan.json")


def test_a_plan_that_is_not_there_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(StoreError, match="search -o"):
        load_plan(tmp_path / "plan.json")


def test_a_plan_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(StoreError, match=r"plan\.json"):
        small_plan().save(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
