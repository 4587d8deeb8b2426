"""Several plans of one budget, and what is said of one plan: against every single change there is."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import network
from network.command_line import run
from network.errors import PlanError
from network.types import Network
from search import load_plan, magnitude, parse_budget, search
from search.build import worth
from search.chains import chained
from search.command import main
from search.explain import explain, plot_explanation
from search.plan import ModelReference, Plan, Settings
from search.planner import APART, Problem
from search.relaxation import Relaxed
from search.runs import coarsest
from search.space import LATENCY
from tests import helpers
from tests.helpers import IMAGE
from tests.staircase import StaircaseTable

REFERENCE = ModelReference("net.py:build")
SETTINGS = Settings(options=16)


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, Network]:
    model = helpers.residual(width=16)
    return model, network.trace(model, (torch.randn(IMAGE),))


@pytest.fixture(scope="module")
def plan(residual: tuple[nn.Module, Network]) -> Plan:
    model, net = residual
    return search(model, net, StaircaseTable(), "0.5x", magnitude(model, net), settings=SETTINGS)


def distance(a: Plan, b: Plan) -> float:
    """Mean over groups of the share of channels that two plans differ by."""
    return float(np.mean([abs(a.widths[name] - b.widths[name]) / len(a.importance[name]) for name in a.widths]))


def test_plans_side_by_side_are_apart_and_the_first_is_the_best(residual: tuple[nn.Module, Network], plan: Plan):
    model, net = residual
    problem = Problem(net, StaircaseTable(), magnitude(model, net), reference=REFERENCE, settings=SETTINGS)
    plans = problem.top(parse_budget("0.5x"), 4)
    assert plans[0].widths == plan.widths
    assert len(plans) == 4
    assert all(found.predicted_ms <= found.budget_ms for found in plans)
    assert [found.objective for found in plans] == sorted((found.objective for found in plans), reverse=True)
    for a, b in itertools.combinations(plans, 2):
        assert distance(a, b) >= APART * (1 - 1e-9)


def test_there_are_no_more_plans_than_the_budget_leaves(residual: tuple[nn.Module, Network]):
    model, net = residual
    problem = Problem(net, StaircaseTable(), magnitude(model, net), reference=REFERENCE, settings=SETTINGS)
    fastest = f"{problem.fastest_ms * (1 + 1e-9)!r}ms"
    assert len(problem.top(parse_budget(fastest), 5)) == 1


def test_every_move_is_the_best_of_its_group_and_adds_up(residual: tuple[nn.Module, Network], plan: Plan):
    net = residual[1]
    table = StaircaseTable()
    found = explain(plan, net, table)
    assert found.narrower
    assert found.wider
    for move in (*found.narrower, *found.wider):
        moved = dict(plan.widths) | {move.group: move.to}
        kept = worth(np.array(plan.importance[move.group]))
        gained = (kept[move.to] - kept[move.width]) / plan.total_importance
        assert move.ms == pytest.approx(table.predict_ms(net, moved) - plan.predicted_ms, abs=1e-9)
        assert move.importance == pytest.approx(gained, abs=1e-12)
        assert (move.ms < 0) == (move.to < move.width) == (move.importance < 0)
    assert [move.per_ms for move in found.narrower] == sorted(move.per_ms for move in found.narrower)


def test_the_price_bounds_what_another_budget_is_worth(residual: tuple[nn.Module, Network], plan: Plan):
    """Weak duality: a budget of b + d is worth at most the bound at b plus price · d."""
    model, net = residual
    found = explain(plan, net, StaircaseTable())
    assert found.price is not None
    problem = Problem(net, StaircaseTable(), magnitude(model, net), reference=REFERENCE, settings=SETTINGS)
    slack = (plan.bound - plan.objective) / plan.total_importance
    for factor in (0.8, 0.95, 1.05, 1.3):
        other = problem.plan(parse_budget(factor * plan.budget_ms))
        gained = (other.objective - plan.objective) / plan.total_importance
        room = found.price * (other.budget_ms - plan.budget_ms)
        assert gained <= room + slack + relaxation_gap(problem, plan) + CLOSE


CLOSE = 2e-5  # of all importance: how near to the best bound's the price is


def relaxation_gap(problem: Problem, plan: Plan) -> float:
    """How far the relaxation's bound is above the plan, as a share of all importance."""
    space = problem._prepared.space
    graph, ties = chained(space)
    bound = Relaxed(graph, ties, coarsest(graph, 1 << 20), [LATENCY]).solve({LATENCY: plan.budget_ms}).bound
    return (bound - plan.objective) / plan.total_importance


def test_what_is_said_names_the_modules_and_the_price(residual: tuple[nn.Module, Network], plan: Plan):
    found = explain(plan, residual[1], StaircaseTable())
    said = str(found)
    assert found.modules[0][0] in said
    assert found.narrower[0].group in said
    assert f"{found.price:.2%}" in said
    assert f"at full width: {len(found.full)} of {len(plan.widths)}" in said
    before, after = (sum(row[column] for row in found.modules) for column in (1, 2))
    assert after < before
    assert after == pytest.approx(sum(layer.ms for layer in plan.layers))
    picture = plot_explanation(found)
    assert picture.startswith("<svg")
    assert picture.count("<path") > 2 * len(found.narrower)


def test_a_plan_of_another_network_or_with_a_forbidden_width_is_not_explained(
    residual: tuple[nn.Module, Network], plan: Plan
):
    other = network.trace(helpers.residual(width=8), (torch.randn(IMAGE),))
    with pytest.raises(PlanError, match="another network"):
        explain(plan, other, StaircaseTable())
    odd = dataclasses.replace(plan, widths={**plan.widths, "block1.conv1": 1})
    with pytest.raises(PlanError, match="no width it may have"):
        explain(odd, residual[1], StaircaseTable())


def test_the_commands_write_what_they_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latency.open_table", lambda *args, **kwargs: StaircaseTable())
    model = f"{Path(__file__).with_name('helpers.py')}:residual"
    shape = ("--input", "x".join(map(str, IMAGE)))
    assert run(main, [model, *shape, "--latency-budget", "0.5x", "--top", "3", "--keep", "stem", "-o", "p.json"]) == 0
    rows = json.loads(Path("p-top/top.json").read_text())["plans"]
    assert [row["file"] for row in rows] == ["plan-001.json", "plan-002.json", "plan-003.json"]
    assert load_plan("p-top/plan-001.json").widths == load_plan("p.json").widths
    assert load_plan("p.json").settings.keep == ("stem",)
    capsys.readouterr()
    assert run(main, ["--explain", "p.json", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["predicted_ms"] == load_plan("p.json").predicted_ms
    assert Path("p-explained.svg").read_text().startswith("<svg")
    assert run(main, ["--explain", "absent.json"]) == 2
    assert "cannot read the plan absent.json" in capsys.readouterr().err
