"""The integer program against brute force, against another solver, and against what must hold of any optimum."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise, product

import highspy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from network.errors import BudgetError, InfeasibleBudgetError, TableError
from search.incumbent import Climber
from search.program import optimise
from search.reduction import reduce_space
from search.solve import solve
from search.space import IMPORTANCE, LATENCY, Factor, SearchSpace, SumVariable, Variable, attainable, sum_variable

FINE = 1e-6  # the gap asked for where the very best plan is wanted
PROVED = 2 * FINE

quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def entries(shape: tuple[int, ...], most: int = 64) -> st.SearchStrategy[np.ndarray]:
    """Tables of eighths: their sums are exact, so that a budget can lie exactly on a plan."""
    size = int(np.prod(shape))
    return st.lists(st.integers(0, most), min_size=size, max_size=size).map(lambda v: np.array(v).reshape(shape) / 8)


@st.composite
def spaces(draw: st.DrawFn, *, most_sums: int = 128) -> SearchSpace:
    """Small random factor graphs: unary and pair tables in any pattern, cycles among them, and sums."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    variables = tuple(Variable(f"v{i}", tuple(range(1, size + 1))) for i, size in enumerate(sizes))
    count = {v.name: len(v.labels) for v in variables}
    sums = ()
    if len(variables) >= 2 and draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(sorted(count)), min_size=2, max_size=3, unique=True))
        terms = tuple(
            (n, np.array(draw(st.lists(st.integers(0, 6), min_size=k, max_size=k))))
            for n, k in ((n, count[n]) for n in names)
        )
        total, _, _ = sum_variable("sum", terms, most_sums)
        sums, count = (total,), count | {"sum": len(total.low)}
    factors = [Factor(v.name, IMPORTANCE, (v.name,), draw(entries((len(v.labels),)))) for v in variables]
    for resource in (LATENCY, "parameters", IMPORTANCE):
        scopes = draw(
            st.lists(st.lists(st.sampled_from(sorted(count)), max_size=2, unique=True), min_size=1, max_size=5)
        )
        scopes += [["sum"]] if sums else []
        for number, scope in enumerate(scopes):
            table = draw(entries(tuple(count[name] for name in scope)))
            factors.append(Factor(f"{resource}{number}", resource, tuple(scope), table))
    return SearchSpace(variables, tuple(factors), sums)


def every_plan(space: SearchSpace) -> dict[str, np.ndarray]:
    """Each resource's total for every plan, by enumeration."""
    grids = np.meshgrid(*(np.arange(len(v.labels)) for v in space.variables), indexing="ij")
    choice = {v.name: grid.ravel() for v, grid in zip(space.variables, grids, strict=True)}
    plans = grids[0].size
    return {resource: np.broadcast_to(space.total(resource, choice), plans) for resource in space.resources}


def chain(length: int, options: int, seed: int = 0) -> SearchSpace:
    """A plain convolutional network: a pair table between neighbours, a staircase with noise."""
    random = np.random.default_rng(seed)
    widths = np.arange(1, options + 1)
    variables = tuple(Variable(f"v{i}", tuple(int(w) for w in widths)) for i in range(length))
    factors = []
    for v in variables:
        gains = np.sort(random.exponential(size=options) ** 2)[::-1].cumsum() * random.exponential()
        factors.append(Factor(v.name, IMPORTANCE, (v.name,), gains))
    for a, b in pairwise(variables):
        steps = np.ceil(widths / 2)
        noise = 0.1 * random.random((options, options))
        factors.append(Factor(a.name + b.name, LATENCY, (a.name, b.name), np.multiply.outer(steps, steps) + noise))
    return SearchSpace(variables, tuple(factors))


def full(space: SearchSpace) -> float:
    return float(space.total(LATENCY, {v.name: len(v.labels) - 1 for v in space.variables}))


@quick
@given(spaces(), st.floats(0, 1), st.floats(0.3, 1))
def test_the_plan_is_the_best_of_all_plans(space: SearchSpace, quantile: float, other: float):
    totals = every_plan(space)
    budget = float(np.quantile(totals[LATENCY], quantile, method="lower"))
    limit = float(np.quantile(totals["parameters"], other, method="lower"))
    allowed = (totals[LATENCY] <= budget) & (totals["parameters"] <= limit)
    if budget <= 0 or limit <= 0:
        with pytest.raises(BudgetError):
            solve(space, budget, limits={"parameters": limit})
    elif not allowed.any():
        with pytest.raises(InfeasibleBudgetError) as error:
            solve(space, budget, limits={"parameters": limit})
        smallest = totals[LATENCY][totals["parameters"] <= limit].min()
        assert smallest <= error.value.smallest_ms * (1 + 1e-9) <= smallest * 1.001
    else:
        best = totals[IMPORTANCE][allowed].max()
        solution = solve(space, budget, limits={"parameters": limit}, gap=FINE)
        assert solution.objective == pytest.approx(best, rel=PROVED, abs=1e-9)
        assert solution.bound >= best - 1e-9
        assert solution.status == "optimal"
        assert space.total(LATENCY, solution.choice) <= budget
        assert space.total("parameters", solution.choice) <= limit


@quick
@given(spaces())
def test_dropping_dominated_options_leaves_the_optimum_at_every_budget(space: SearchSpace):
    whole, reduced = every_plan(space), every_plan(reduce_space(space, [LATENCY]).space)
    for budget in np.unique(whole[LATENCY]):
        best = whole[IMPORTANCE][whole[LATENCY] <= budget].max()
        within = reduced[LATENCY] <= budget * (1 + 1e-12)
        assert within.any()
        assert reduced[IMPORTANCE][within].max() == pytest.approx(best, rel=1e-12)


@quick
@given(spaces())
def test_a_reduced_choice_costs_the_same_in_the_whole_space(space: SearchSpace):
    reduction = reduce_space(space, space.resources)
    for options in product(*(range(len(v.labels)) for v in reduction.space.variables)):
        choice = {v.name: option for v, option in zip(reduction.space.variables, options, strict=True)}
        for resource in space.resources:
            here = space.total(resource, reduction.restore(choice))
            assert reduction.space.total(resource, choice) == pytest.approx(here, rel=1e-12, abs=1e-12)


@quick
@given(spaces(), st.floats(0, 1))
def test_the_first_incumbent_keeps_its_limits(space: SearchSpace, quantile: float):
    budget = float(np.quantile(every_plan(space)[LATENCY], quantile)) or 1.0
    climber = Climber(space, [LATENCY])
    choice = climber.start(np.array([budget]))
    assert choice is None or space.total(LATENCY, choice) <= budget * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_another_solver_and_another_linearisation_agree(seed: int):
    """scipy's milp on the textbook product rows z ≥ x_u + x_v - 1, which need no assignment rows."""
    random = np.random.default_rng(seed)
    count, options = 5, 4
    variables = tuple(Variable(f"v{i}", tuple(range(options))) for i in range(count))
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (1, 3)]
    worth = np.sort(random.exponential(size=(count, options)))
    tables = np.sort(np.sort(random.exponential(size=(len(pairs), options, options)), axis=1), axis=2)
    factors = [Factor(f"w{i}", IMPORTANCE, (f"v{i}",), worth[i]) for i in range(count)]
    factors += [Factor(f"t{k}", LATENCY, (f"v{a}", f"v{b}"), tables[k]) for k, (a, b) in enumerate(pairs)]
    space = SearchSpace(variables, tuple(factors))
    budget = 0.5 * full(space)

    columns, products = count * options, len(pairs) * options * options
    one_each = np.kron(np.eye(count), np.ones(options))
    rows = [LinearConstraint(np.hstack([one_each, np.zeros((count, products))]), 1, 1)]
    link = np.zeros((products, columns + products))
    for number, (k, i, j) in enumerate(np.ndindex(len(pairs), options, options)):
        a, b = pairs[k]
        link[number, [a * options + i, b * options + j]] = 1
        link[number, columns + number] = -1
    rows += [LinearConstraint(link, -np.inf, 1)]
    rows += [LinearConstraint(np.concatenate([np.zeros(columns), tables.ravel()]), -np.inf, budget)]
    found = milp(
        -np.concatenate([worth.ravel(), np.zeros(products)]),
        constraints=rows,
        integrality=np.concatenate([np.ones(columns), np.zeros(products)]),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-9},
    )
    assert solve(space, budget, gap=FINE).objective == pytest.approx(-found.fun, rel=PROVED)


def test_a_bigger_budget_never_lowers_importance():
    space = chain(10, 8)
    objectives = [solve(space, share * full(space)).objective for share in (0.2, 0.3, 0.5, 0.7, 0.9, 1.0)]
    assert objectives == sorted(objectives)


def test_a_budget_of_the_full_network_gives_the_full_network():
    space = chain(6, 5)
    solution = solve(space, full(space))
    assert space.labels(solution.choice) == {v.name: 5 for v in space.variables}


def test_the_same_space_gives_the_same_plan_twice():
    space = chain(12, 8, seed=3)
    first, second = (solve(space, 0.4 * full(space)) for _ in range(2))
    assert first.choice == second.choice
    assert first.bound == second.bound


def test_a_time_limit_leaves_a_plan_with_its_true_gap():
    space = chain(24, 12, seed=1)
    budget = 0.4 * full(space)
    hurried, patient = solve(space, budget, time_limit_s=0.01), solve(space, budget, gap=FINE)
    assert hurried.gap == pytest.approx((hurried.bound - hurried.objective) / hurried.objective)
    assert hurried.status == ("optimal" if hurried.gap <= 1e-4 else "feasible")
    assert hurried.objective <= patient.objective * (1 + PROVED)
    assert hurried.bound >= patient.objective * (1 - PROVED)
    assert hurried.totals[LATENCY] <= budget * (1 + 1e-9)


def test_a_program_that_the_solver_refuses_is_no_search_without_a_plan(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("highspy.Highs.run", lambda self: highspy.HighsStatus.kError)
    with pytest.raises(RuntimeError, match="HiGHS refused"):
        optimise(chain(3, 3), IMPORTANCE, {LATENCY: 1e9})


@pytest.mark.parametrize(
    "call",
    [
        "test_solve.optimise(test_solve.chain(3, 3), test_solve.IMPORTANCE, {test_solve.LATENCY: 1e9})",
        "relaxation._least_top(np.ones((2, 1)), np.array([1.0, 2.0]))",
    ],
)
def test_the_solver_leaves_stdout_to_the_json_document(call: str):
    code = f"""
import numpy as np
from search import relaxation
from tests import test_solve
print("before")
{call}
print("after")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "before\nafter\n"


def test_an_infeasible_budget_names_one_that_can_be_met():
    space = chain(5, 4)
    with pytest.raises(InfeasibleBudgetError) as error:
        solve(space, 0.01)
    smallest = error.value.smallest_ms
    assert solve(space, smallest).totals[LATENCY] <= smallest
    with pytest.raises(InfeasibleBudgetError):
        solve(space, 0.99 * smallest)


def test_a_limit_beside_latency_that_cannot_be_met_is_named():
    space = chain(3, 3)
    sizes = tuple(Factor(v.name, "parameters", (v.name,), np.array([10.0, 20.0, 30.0])) for v in space.variables)
    space = SearchSpace(space.variables, space.factors + sizes)
    with pytest.raises(BudgetError, match="parameters, 29, is below the least, 30"):
        solve(space, 100.0, limits={"parameters": 29})


def test_limits_that_exclude_each_other_are_named_with_the_least_value_of_each():
    """Width 3 is needed for the memory and is too slow: more of either is enough."""
    v = Variable("v", (1, 2, 3))
    factors = (
        Factor("worth", IMPORTANCE, ("v",), np.array([1.0, 2.0, 3.0])),
        Factor("time", LATENCY, ("v",), np.array([1.0, 2.0, 4.0])),
        Factor("held", "memory", ("v",), np.array([9.0, 7.0, 5.0])),
    )
    space = SearchSpace((v,), factors)
    with pytest.raises(InfeasibleBudgetError, match=r"at least 4ms, or raise memory to 7$") as error:
        solve(space, 3.0, limits={"memory": 6.0})
    assert error.value.smallest_ms == 4.0
    assert solve(space, 4.0, limits={"memory": 6.0}).objective == 3.0
    assert solve(space, 3.0, limits={"memory": 7.0}).objective == 2.0


def test_limits_beside_latency_that_exclude_each_other_are_named_too():
    v = Variable("v", (1, 2))
    factors = (
        Factor("worth", IMPORTANCE, ("v",), np.array([1.0, 2.0])),
        Factor("time", LATENCY, ("v",), np.array([1.0, 2.0])),
        Factor("held", "memory", ("v",), np.array([9.0, 5.0])),
        Factor("kept", "parameters", ("v",), np.array([10.0, 20.0])),
    )
    with pytest.raises(BudgetError, match=r"memory and parameters together; .* memory to 9 or parameters to 20$"):
        solve(SearchSpace((v,), factors), 9.0, limits={"memory": 6.0, "parameters": 15.0})


@pytest.mark.parametrize("budget", [0.0, -1.0, np.nan, np.inf])
def test_a_budget_that_is_none_is_an_error_of_one_line(budget: float):
    with pytest.raises(BudgetError, match="not positive") as error:
        solve(chain(2, 2), budget)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@quick
@given(spaces(), st.floats(0, 1))
def test_each_solver_finds_the_best_of_all_plans(solver: str, space: SearchSpace, quantile: float):
    totals = every_plan(space)
    budget = float(np.quantile(totals[LATENCY], quantile, method="lower")) or 0.125
    allowed = totals[LATENCY] <= budget
    found = optimise(space, IMPORTANCE, {LATENCY: budget}, gap=FINE, solver=solver)
    if allowed.any():
        best = totals[IMPORTANCE][allowed].max()
        assert found.objective == pytest.approx(best, rel=PROVED, abs=1e-9)
        assert found.bound >= best * (1 - 1e-9)
    else:
        assert found.choice is None
        assert found.infeasible


def test_operations_precisions_and_the_removal_of_a_block_are_chosen_as_by_enumeration():
    """Three blocks: what each computes, in which precision, and whether it is there at all."""
    random = np.random.default_rng(4)
    variables, factors = [], []
    for block in range(3):
        parts = [
            Variable(f"operation{block}", ("dense", "separable", "shift")),
            Variable(f"precision{block}", ("fp32", "bf16", "int8")),
            Variable(f"block{block}", ("removed", "kept")),
        ]
        operation, precision, there = (part.name for part in parts)
        time = random.uniform(1, 5, (3, 3)) * np.array([[4], [2], [1]])
        variables += parts
        factors += [
            Factor(f"time{block}", LATENCY, (operation, precision), time),
            Factor(f"call{block}", LATENCY, (there, operation), np.array([[0, 0, 0], [2.0, 1.5, 1.0]])),
            Factor(f"worth{block}", IMPORTANCE, (there, precision), np.array([[0, 0, 0], [9.0, 8.0, 5.0]])),
            Factor(f"fit{block}", IMPORTANCE, (operation,), np.array([3.0, 2.0, 0.5])),
        ]
    space = SearchSpace(tuple(variables), tuple(factors))
    totals = every_plan(space)
    for share in (0.2, 0.4, 0.6, 0.8):
        budget = float(np.quantile(totals[LATENCY], share))
        found = solve(space, budget, gap=FINE)
        assert found.objective == pytest.approx(totals[IMPORTANCE][totals[LATENCY] <= budget].max(), rel=PROVED)


def test_options_may_be_operations_and_precisions():
    """A layer's operation changes what its neighbour's precision costs; nothing about widths is assumed."""
    operation = Variable("operation", ("dense", "separable", "skip"))
    precision = Variable("precision", ("fp32", "bf16"))
    factors = (
        Factor("quality", IMPORTANCE, ("operation",), np.array([5.0, 4.0, 0.0])),
        Factor("rounding", IMPORTANCE, ("operation", "precision"), np.array([[1.0, 0.5], [1.0, 0.0], [1.0, 1.0]])),
        Factor("time", LATENCY, ("operation", "precision"), np.array([[8.0, 3.0], [4.0, 3.5], [0.0, 0.0]])),
    )
    space = SearchSpace((operation, precision), factors)
    assert space.labels(solve(space, 8.0).choice) == {"operation": "dense", "precision": "fp32"}
    assert space.labels(solve(space, 3.2).choice) == {"operation": "dense", "precision": "bf16"}
    assert space.labels(solve(space, 1.0).choice)["operation"] == "skip"


def test_ranges_of_a_coarse_sum_never_understate_a_cost():
    random = np.random.default_rng(0)
    widths = np.arange(1, 13) * 3
    terms = (("a", widths), ("b", widths), ("c", widths + 1))
    total, worst, totals = sum_variable("sum", terms, most=9)
    cost = random.random(len(totals))
    binned = worst(cost)
    assert len(total.low) == len(binned) == 9
    assert not total.exact
    assert (binned[total.states(totals)] >= cost).all()


def test_a_coarse_sum_still_gives_a_plan_within_the_budget():
    widths = np.arange(1, 13)
    names = ("a", "b", "c")
    variables = tuple(Variable(name, tuple(int(w) for w in widths)) for name in names)
    total, worst, totals = sum_variable("sum", tuple((name, widths) for name in names), most=7)
    cost = np.ceil(totals / 4) ** 2
    factors = [Factor(name, IMPORTANCE, (name,), np.sqrt(widths)) for name in names]
    factors.append(Factor("concat", LATENCY, ("sum",), worst(cost)))
    space = SearchSpace(variables, tuple(factors), (total,))
    solution = solve(space, 30.0)
    width = sum(int(label) for label in space.labels(solution.choice).values())
    assert np.ceil(width / 4) ** 2 <= 30.0


@pytest.mark.parametrize(("value", "words"), [(np.nan, "not finite"), (np.inf, "not finite"), (-1.0, "below 0")])
def test_a_number_that_cannot_be_a_time_is_an_error(value: float, words: str):
    with pytest.raises(TableError, match=words):
        Factor("layer", LATENCY, ("v",), np.array([1.0, value]))


def test_a_space_that_does_not_hold_together_is_an_error():
    v = Variable("v", (1, 2))
    ones = np.ones(2)
    with pytest.raises(ValueError, match="no options"):
        Variable("v", ())
    with pytest.raises(ValueError, match="does not fit"):
        Factor("f", LATENCY, ("v",), np.ones((2, 2)))
    with pytest.raises(ValueError, match="needs"):
        SearchSpace((v,), (Factor("f", LATENCY, ("v",), np.ones(3)),))
    with pytest.raises(ValueError, match="no variable"):
        SearchSpace((v,), (Factor("f", LATENCY, ("w",), ones),))
    with pytest.raises(ValueError, match="twice"):
        SearchSpace((v, v), ())
    with pytest.raises(ValueError, match="cover"):
        SearchSpace((v,), (), (SumVariable("s", (("v", np.array([1, 2])),), np.array([1]), np.array([1])),))


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_attainable_totals_are_those_of_enumeration(contributions: list[list[int]]):
    expected = sorted({sum(picks) for picks in product(*contributions)})
    assert attainable([np.array(c) for c in contributions]).tolist() == expected


def test_the_solver_and_the_plan_need_no_torch():
    modules = "search.solve, search.plan, search.space, search.build, search.planner"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
