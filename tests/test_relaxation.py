"""The relaxation against enumeration: elimination is exact, the bound holds, and no better plan is thrown away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.chains import chained
from search.elimination import TooWide, eliminate
from search.incumbent import Climber
from search.relaxation import Relaxed
from search.runs import coarsest
from search.sieve import Sieve
from search.solve import Solver
from search.space import IMPORTANCE, LATENCY, Factor, SearchSpace, Variable, sum_variable
from tests.test_solve import chain, every_plan, full, quick, spaces

NAMES = "abcde"


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, int], dict[tuple[str, ...], np.ndarray]]:
    """Tables of up to three names each over up to five names, in any pattern."""
    sizes = {name: draw(st.integers(1, 4)) for name in NAMES[: draw(st.integers(1, 5))]}
    scopes = draw(
        st.lists(
            st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3, unique=True).map(tuple),
            unique=True,
            max_size=6,
        )
    )
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    return sizes, {scope: random.normal(size=[sizes[name] for name in scope]) for scope in scopes}


@quick
@given(tables())
def test_elimination_finds_the_greatest_sum_and_every_max_marginal(drawn):
    sizes, given_tables = drawn
    grids = dict(zip(sizes, np.ogrid[tuple(slice(size) for size in sizes.values())], strict=True))
    whole = sum((table[tuple(grids[n] for n in scope)] for scope, table in given_tables.items()), np.zeros(()))
    whole = np.broadcast_to(whole, tuple(sizes.values()))
    graph = eliminate(sizes, list(given_tables))
    value, choice = graph.maximise(given_tables)
    assert value == pytest.approx(whole.max())
    assert whole[tuple(choice[name] for name in sizes)] == pytest.approx(whole.max())
    marginals = graph.marginals(given_tables)
    for axis, name in enumerate(sizes):
        expected = whole.max(axis=tuple(other for other in range(len(sizes)) if other != axis))
        assert marginals[name] == pytest.approx(expected)


def test_a_graph_that_would_need_a_huge_table_is_refused():
    names = [f"v{i}" for i in range(8)]
    with pytest.raises(TooWide):
        eliminate(dict.fromkeys(names, 30), [(a, b) for a in names for b in names if a < b])


@quick
@given(spaces(), st.floats(0, 1), st.floats(0.3, 1), st.integers(1, 4))
def test_the_bound_holds_and_no_better_plan_loses_an_option(space: SearchSpace, quantile, other, most_runs):
    totals = every_plan(space)
    limits = {
        LATENCY: float(np.quantile(totals[LATENCY], quantile)) or 1.0,
        "parameters": float(np.quantile(totals["parameters"], other)) or 1.0,
    }
    allowed = np.logical_and.reduce([totals[resource] <= limit for resource, limit in limits.items()])
    found = Sieve(space, limits, most_runs=most_runs).solve(limits, 1e-6)
    assert all(price >= 0 for price in found.prices.values())
    if found.choice is not None:
        assert all(space.total(resource, found.choice) <= limit * (1 + 1e-9) for resource, limit in limits.items())
    if not allowed.any():
        assert found.choice is None
        return
    best = totals[IMPORTANCE][allowed].max()
    assert found.bound >= best - 1e-9
    worth = -np.inf if found.choice is None else float(space.total(IMPORTANCE, found.choice))
    grids = np.meshgrid(*(np.arange(len(v.labels)) for v in space.variables), indexing="ij")
    better = allowed & (totals[IMPORTANCE] > max(found.elsewhere, worth) + 1e-9)
    for variable, grid in zip(space.variables, grids, strict=True):
        assert np.isin(grid.ravel()[better], found.kept[variable.name]).all()


@quick
@given(spaces(), st.integers(1, 4))
def test_a_coarser_view_costs_no_more_and_is_worth_no_less(space: SearchSpace, most: int):
    runs = coarsest(space, most)
    while True:
        for factor in space.factors:
            best = np.maximum if factor.resource == IMPORTANCE else np.minimum
            seen = runs.seen(factor.table, factor.scope, best)
            for axis, name in enumerate(factor.scope):
                seen = seen.repeat(np.diff(runs.starts[name], append=space.sizes[name]), axis)
            assert (best(seen, factor.table) == seen).all()
        if runs.finest:
            break
        runs = runs.halved()


@quick
@given(spaces(), st.floats(0, 1), st.integers(1, 4), st.randoms(use_true_random=False))
def test_choices_known_beforehand_leave_the_bound_as_it_is(space: SearchSpace, quantile: float, most: int, random):
    choices = [{v.name: random.randrange(len(v.labels)) for v in space.variables} for _ in range(3)]
    limits = {LATENCY: max(float(np.quantile(every_plan(space)[LATENCY], quantile, method="higher")), 0.125)}
    graph, ties = chained(space)
    alone, helped = (
        Relaxed(graph, ties, coarsest(graph, most), limits).solve(limits, known=known).bound for known in ((), choices)
    )
    assert helped == pytest.approx(alone, rel=1e-5, abs=1e-5)


@quick
@given(spaces(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_choice_is_in_the_runs_that_hold_its_options(space: SearchSpace, most: int, random):
    choice = space.states({v.name: random.randrange(len(v.labels)) for v in space.variables})
    runs = coarsest(space, most)
    held = runs.containing(choice)
    assert held is not None
    for name, run in held.items():
        ends = np.append(runs.starts[name][1:], len(runs.options[name]))
        assert choice[name] in runs.options[name][runs.starts[name][run] : ends[run]]
        others = np.arange(len(runs.starts[name])) != run
        assert runs.only({name: others}).containing(choice) is None


@quick
@given(spaces(), st.floats(0, 1), st.randoms(use_true_random=False))
def test_climbing_keeps_the_limit_and_never_costs_importance(space: SearchSpace, quantile: float, random):
    choice = {v.name: random.randrange(len(v.labels)) for v in space.variables}
    limit = np.array([max(float(space.total(LATENCY, choice)), 0.125)])
    climber = Climber(space, [LATENCY])
    every = {v.name: np.arange(len(v.labels)) for v in space.variables}
    better = climber.climb(limit, np.ones(1), choice, every, np.inf)
    assert climber.fits(limit, climber.totals(better))
    assert space.total(IMPORTANCE, better) >= space.total(IMPORTANCE, choice)


def dense_block(seed: int) -> SearchSpace:
    """Five layers, each reading what all before it made: nested sums in ranges of about four totals."""
    random = np.random.default_rng(seed)
    widths = np.array([3, 8, 17, 24])
    variables = tuple(Variable(f"v{i}", tuple(int(width) for width in widths)) for i in range(5))
    factors = [Factor(v.name, IMPORTANCE, (v.name,), random.exponential(size=4).cumsum()) for v in variables]
    sums = []
    for count in range(2, 6):
        total, worst, totals = sum_variable(f"sum{count}", tuple((v.name, widths) for v in variables[:count]), most=9)
        factors.append(Factor(total.name, LATENCY, (total.name,), worst(np.sqrt(totals.astype(float)))))
        sums.append(total)
    return SearchSpace(variables, tuple(factors), tuple(sums))


@pytest.mark.parametrize("seed", range(4))
def test_sums_of_sums_in_ranges_lose_nothing_on_the_way(seed: int):
    """A range a little too low at every step would make the last total cheaper than any plan's."""
    space = dense_block(seed)
    assert not any(total.exact for total in space.sums[1:])
    graph, ties = chained(space)
    totals, spread = every_plan(space), every_plan(graph)
    assert totals[LATENCY] == pytest.approx(spread[LATENCY])
    relaxed = Relaxed(graph, ties, coarsest(graph, 1 << 20), [LATENCY])
    for price in (0.0, 0.2, 1.0, 5.0):
        value, cut = relaxed.at(np.array([price]), np.ones(1))
        assert value == pytest.approx((totals[IMPORTANCE] + price * (1 - totals[LATENCY])).max())
        assert space.total(LATENCY, cut.choice) == pytest.approx(cut.costs[0])


def test_prices_fall_as_the_budget_grows():
    space = chain(10, 8)
    solver = Solver(space)
    prices = [solver.solve(share * full(space)).prices[LATENCY] for share in (0.2, 0.4, 0.6, 0.8)]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] > 0


def test_a_solver_that_has_seen_other_budgets_gives_the_plan_of_a_fresh_one():
    space = chain(8, 6, seed=3)
    used = Solver(space)
    for share in (0.9, 0.2, 0.5):
        budget = share * full(space)
        plan, fresh = used.solve(budget, gap=1e-6), Solver(space).solve(budget, gap=1e-6)
        assert plan.objective == pytest.approx(fresh.objective, rel=2e-6)
        assert plan.status == fresh.status == "optimal"


def test_a_variable_that_nothing_depends_on_is_chosen_too():
    space = chain(3, 4)
    space = SearchSpace((*space.variables, Variable("idle", (1, 2))), space.factors)
    assert "idle" in Solver(space).solve(0.5 * full(space)).choice
