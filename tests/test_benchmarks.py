"""The benchmarks' own networks and measures: generators are narrowed exactly, and each row is what it says."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.coverage import GENERATORS, checked, in_a_process, summary
from benchmarks.solver import rows_of
from tests.helpers import need_data


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_is_narrowed_exactly(name: str):
    if weights := GENERATORS[name][2]:
        need_data(f"weights/{weights}")
    row = checked("generators", name)
    assert row["outcome"] == "exact", row
    assert row["prunable"] > 0.9
    assert row["groups"] >= 1


def test_a_network_that_does_not_exist_is_a_row_and_no_end():
    row = in_a_process("generators", "absent")
    assert row["outcome"] == "not run"
    assert "absent" in row["reason"]
    text = summary([row | {"outcome": "refused"}, checked("generators", "adain") | {"family": "generators"}])
    assert "1 refused" in text
    assert "1 exact" in text


def test_the_search_is_timed_for_every_budget_and_the_front(capsys: pytest.CaptureFixture[str]):
    rows = rows_of("cartoongan", argparse.Namespace(time_limit=30.0, alone=False, widths=["by 8"]))
    assert [row.get("share", "front") for row in rows] == [0.7, 0.5, 0.3, "front"]
    assert all(row["gap"] <= 1e-4 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
