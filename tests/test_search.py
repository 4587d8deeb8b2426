"""From a network and a table to a plan: the space is the table's, the plan adds up, the command says what is wrong."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import network
from network.command_line import run
from network.errors import BudgetError, InfeasibleBudgetError, InputError, PlanError, TableError
from network.types import Network
from search import load_plan, magnitude, parse_budget, resolve, search, weights_sha256
from search.build import MACS, PARAMETERS, WEIGHT_BYTES, build_space, worth
from search.command import main
from search.front import front, knee
from search.plan import ModelReference, Plan, Settings
from search.planner import Problem
from search.space import LATENCY, sum_variable
from tests import helpers
from tests.helpers import IMAGE, NETWORKS
from tests.staircase import StaircaseTable

REFERENCE = ModelReference("net.py:build")
ADDED_UP = 1e-9  # relative, float64: the same entries summed in another order


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def traced(request: pytest.FixtureRequest) -> tuple[nn.Module, Network]:
    model = NETWORKS[request.param]()
    return model, network.trace(model, (torch.randn(IMAGE),))


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, Network]:
    model = helpers.residual(width=16)
    return model, network.trace(model, (torch.randn(IMAGE),))


def plan_of(traced: tuple[nn.Module, Network], budget: str | float = "0.5x", **changes: object) -> Plan:
    model, net = traced
    return search(model, net, StaircaseTable(), budget, magnitude(model, net), settings=Settings(**changes))


@pytest.mark.parametrize("seed", range(3))
def test_the_space_adds_up_to_the_networks_own_figures(traced: tuple[nn.Module, Network], seed: int):
    """Latency, parameters and MACs of a random plan: by the factors, and by the table and the network."""
    _, net = traced
    table = StaircaseTable()
    flat = {group.name: np.ones(group.width) for group in net.groups}
    space = build_space(net, table, flat, Settings(options=4, max_params=1, max_bytes=1, max_macs=1), item_bytes=2)
    assert all(total.exact for total in space.sums)
    random = np.random.default_rng(seed)
    choice = {v.name: int(random.integers(len(v.labels))) for v in space.variables}
    widths = space.labels(choice)
    assert space.total(LATENCY, choice) == pytest.approx(table.predict_ms(net, widths), rel=ADDED_UP)
    assert space.total(PARAMETERS, choice) == net.parameter_count(widths)
    assert space.total(WEIGHT_BYTES, choice) == net.weight_bytes(widths, item_bytes=2)
    assert space.total(MACS, choice) == pytest.approx(net.macs(widths), rel=ADDED_UP)
    kept = sum(worth(flat[name])[width] for name, width in widths.items())
    assert space.total("importance", choice) == pytest.approx(kept, rel=ADDED_UP)


@pytest.mark.parametrize("budget", ["0.9x", "0.6x", "0.4x"])
def test_a_plan_keeps_its_budget_and_its_layers_add_up(traced: tuple[nn.Module, Network], budget: str):
    model, net = traced
    table = StaircaseTable()
    plan = plan_of(traced, budget)
    assert plan.status == "optimal"
    assert plan.predicted_ms <= plan.budget_ms * (1 + ADDED_UP)
    assert plan.baseline_ms == pytest.approx(table.predict_ms(net, net.widths))
    assert plan.budget_ms == pytest.approx(parse_budget(budget).value * plan.baseline_ms)
    layers = sum(layer.ms for layer in plan.layers)
    assert plan.predicted_ms == pytest.approx(table.overhead.fixed_ms + layers, rel=ADDED_UP)
    assert [layer.name for layer in plan.layers] == [layer.name for layer in net.layers]
    kept = sum(worth(np.array(plan.importance[group]))[width] for group, width in plan.widths.items())
    assert plan.objective == pytest.approx(kept, rel=ADDED_UP)
    assert plan.model.weights_sha256 == weights_sha256(model)


def test_the_plan_can_be_cut_from_the_network(traced: tuple[nn.Module, Network]):
    model, net = traced
    plan = plan_of(traced, "0.6x")
    narrow = network.narrow(model, net, plan.keep)
    assert sum(p.numel() for p in narrow.parameters()) == net.parameter_count(plan.widths)
    assert narrow(torch.randn(IMAGE)).shape == model(torch.randn(IMAGE)).shape


def test_a_limit_on_parameters_and_macs_is_kept(residual: tuple[nn.Module, Network]):
    _, net = residual
    free = plan_of(residual, "0.8x")
    limit, macs = net.parameter_count(free.widths) // 2, net.macs(free.widths) * 0.7
    bound = plan_of(residual, "0.8x", max_params=limit, max_macs=macs)
    assert net.parameter_count(bound.widths) <= limit
    assert net.macs(bound.widths) <= macs
    assert bound.objective < free.objective


def test_a_limit_on_weight_bytes_holds_for_every_parameter_and_buffer(traced: tuple[nn.Module, Network]):
    model, net = traced
    limit = net.weight_bytes(plan_of(traced, "0.9x").widths) * 2 // 3
    plan = plan_of(traced, "0.9x", max_bytes=limit)
    stored = network.narrow(model, net, plan.keep).state_dict()
    counters = {name for name in model.state_dict() if name.endswith("num_batches_tracked")} - stored.keys()
    held = 4 * (sum(tensor.numel() for tensor in stored.values()) + len(counters))  # of norms that fell away: counted
    assert net.weight_bytes(plan.widths) == held <= limit
    assert plan.status == "optimal"


@pytest.mark.parametrize(("setting", "resource"), [("max_params", "parameters"), ("max_bytes", "weight bytes")])
def test_a_limit_below_the_narrowest_network_is_named_with_the_least(
    residual: tuple[nn.Module, Network], setting: str, resource: str
):
    with pytest.raises(BudgetError, match=f"{resource}, 3, is below the least") as error:
        plan_of(residual, "0.9x", **{setting: 3})
    least = re.search(r"the least, (\d+);", str(error.value))
    assert least
    assert plan_of(residual, "0.99x", **{setting: int(least[1])}).status == "optimal"
    with pytest.raises(BudgetError, match=least[1]):
        plan_of(residual, "0.99x", **{setting: int(least[1]) - 1})


def test_weights_of_half_the_precision_take_half_the_bytes(residual: tuple[nn.Module, Network]):
    model, net = residual
    table = dataclasses.replace(StaircaseTable(), device=dataclasses.replace(StaircaseTable().device, precision="bf16"))
    limits = Settings(max_bytes=net.weight_bytes() // 2)
    plan = search(model, net, table, "1x", magnitude(model, net), settings=limits)
    assert plan.widths == net.widths
    assert plan_of(residual, "1x", max_bytes=limits.max_bytes).widths != net.widths


def test_the_smallest_feasible_budget_can_be_met(residual: tuple[nn.Module, Network]):
    with pytest.raises(InfeasibleBudgetError) as error:
        plan_of(residual, 0.3)
    smallest = error.value.smallest_ms
    assert plan_of(residual, smallest).predicted_ms <= smallest
    assert f"{smallest:.4g}ms" in str(error.value)


def test_solving_again_with_a_slower_table_keeps_the_budget_and_the_importance(residual: tuple[nn.Module, Network]):
    _, net = residual
    plan = plan_of(residual, "0.5x")
    slower = StaircaseTable().corrected(1.2)
    again = resolve(plan, net, slower, plan.budget_ms)
    assert again.predicted_ms == pytest.approx(slower.predict_ms(net, again.widths))
    assert again.predicted_ms <= plan.budget_ms * (1 + ADDED_UP)
    assert again.objective <= plan.objective
    assert (again.importance, again.budget, again.model) == (plan.importance, plan.budget, plan.model)


def test_solving_again_keeps_the_other_limits(residual: tuple[nn.Module, Network]):
    _, net = residual
    limit = net.parameter_count() // 2
    plan = plan_of(residual, "0.6x", max_params=limit)
    again = resolve(plan, net, StaircaseTable(), plan.baseline_ms)
    assert net.parameter_count(again.widths) <= limit


def test_solving_again_forgets_which_channels_had_survived(residual: tuple[nn.Module, Network]):
    _, net = residual
    plan = plan_of(residual, "0.5x")
    plan = dataclasses.replace(plan, survivors=plan.keep)
    again = resolve(plan, net, StaircaseTable(), 0.7 * plan.baseline_ms)
    assert again.widths != plan.widths
    assert again.survivors == {}


class Joined(nn.Module):
    """Three branches whose widths add up to more totals than a sum has states."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, width, 1) for width in (48, 56, 64))
        self.last = nn.Conv2d(168, 3, 1)

    def forward(self, x):
        return self.last(torch.cat([branch(x) for branch in self.branches], 1))


@pytest.mark.parametrize("budget", ["0.35x", "0.5x", "0.65x", "0.8x"])
def test_a_bound_holds_for_the_table_where_totals_are_taken_together(budget: str, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = Joined()
    traced = model, network.trace(model, (torch.randn(IMAGE),))
    coarse = plan_of(traced, budget, options=64)
    monkeypatch.setattr("search.build.sum_variable", partial(sum_variable, most=1000))
    best = plan_of(traced, budget, options=64)
    assert best.status == "optimal"
    assert coarse.objective <= best.objective * (1 + ADDED_UP)
    assert coarse.bound >= best.objective * (1 - ADDED_UP)
    assert coarse.gap == pytest.approx(coarse.bound / coarse.objective - 1, abs=1e-9)
    assert (coarse.status == "optimal") == (coarse.gap <= 1e-4)


def test_a_device_that_is_named_twice_is_an_error(residual: tuple[nn.Module, Network]):
    model, net = residual
    others = [(StaircaseTable(), parse_budget("0.5x"))] * 2
    with pytest.raises(InputError, match="twice"):
        search(model, net, StaircaseTable(), "0.5x", magnitude(model, net), others=others)


def test_a_plan_of_another_network_cannot_be_solved_again(residual: tuple[nn.Module, Network]):
    other = network.trace(helpers.unet(), (torch.randn(IMAGE),))
    with pytest.raises(PlanError, match="another network"):
        resolve(plan_of(residual), other, StaircaseTable(), 5.0)


def test_importance_of_the_wrong_size_or_sign_is_an_error(residual: tuple[nn.Module, Network]):
    model, net = residual
    good = magnitude(model, net)
    for bad, words in ((np.ones(3), "3 values"), (np.full(16, np.nan), "not finite"), (np.full(16, -1.0), "negative")):
        with pytest.raises(InputError, match=words):
            search(model, net, StaircaseTable(), "0.5x", good | {"stem": bad})


def test_a_table_without_a_time_for_a_layer_is_an_error(residual: tuple[nn.Module, Network]):
    model, net = residual

    class Holed(StaircaseTable):
        def milliseconds(self, spec, c_in, c_out):
            return super().milliseconds(spec, c_in, c_out) * (np.nan if spec.op == "add" else 1.0)

    with pytest.raises(TableError, match="not finite"):
        search(model, net, Holed(), 5.0, magnitude(model, net))


def test_the_hash_is_of_the_weights_and_nothing_else():
    model = helpers.residual()
    digest = weights_sha256(model)
    assert weights_sha256(helpers.residual()) == digest
    assert weights_sha256(model.train()) == digest
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    assert weights_sha256(model) != digest


@pytest.mark.parametrize(("text", "baseline", "expected"), [("20ms", 80, 20), ("0.35x", 80, 28), ("1.5 MS", 80, 1.5)])
def test_budgets_are_milliseconds_or_ratios(text: str, baseline: float, expected: float):
    assert parse_budget(text).at(baseline) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["0ms", "-3ms", "0x", "20", "fast", "1e999ms", "nanms", "", "1.2.3x", 0.0, float("nan")]
)
def test_a_budget_that_is_no_budget_is_an_error(text: str | float):
    with pytest.raises(BudgetError, match=r"20ms or 0\.5x"):
        parse_budget(text)


@settings(deadline=None)
@given(st.floats(1e-6, 1e6))
def test_a_number_is_a_budget_in_milliseconds(budget_ms: float):
    assert parse_budget(budget_ms).at(1.0) == budget_ms


MODEL = f"{Path(__file__).with_name('helpers.py')}:residual"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command in an empty folder, the store replaced by a staircase."""
    monkeypatch.setattr("latency.open_table", lambda profiles, net, **device: StaircaseTable(), raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run(main, [MODEL, "--input", "1x3x16x16", *arguments])


def test_the_command_writes_a_plan_that_another_run_repeats(command, capsys: pytest.CaptureFixture[str]):
    assert command("--latency-budget", "0.5x", "-o", "plan.json") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "optimal" in said.err
    assert "norm of their weights" in said.err
    plan = load_plan("plan.json")
    assert (plan.model.ref, plan.model.input, plan.budget) == (MODEL, ((1, 3, 16, 16),), "0.5x")
    assert command("--latency-budget", "0.5x", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["widths"] == plan.widths


def test_the_command_ranks_channels_by_the_users_task(command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "class Mine:\n"
        "    batch_size = 2\n"
        "    def __init__(self):\n"
        "        self.train = self.heldout = TensorDataset(torch.rand(4, 3, 16, 16), torch.zeros(4).long())\n"
        "    def loss(self, output, target): return torch.nn.functional.cross_entropy(output, target)\n"
        "    def metrics(self, output, target): return {'accuracy': (output.argmax(1) == target).float()}\n"
    )
    assert command("--latency-budget", "0.5x", "-o", "a.json", "--task", "mine.py:Mine", "--batches", "2") == 0
    assert command("--latency-budget", "0.5x", "-o", "b.json") == 0
    ranked, plain = load_plan("a.json"), load_plan("b.json")
    assert ranked.feed.task == "mine.py:Mine"
    assert ranked.importance != plain.importance


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--latency-budget", "0ms", "-o", "p.json"], "not positive"),
        (["--latency-budget", "-5ms", "-o", "p.json"], "not positive"),
        (["--latency-budget", "soon", "-o", "p.json"], "neither milliseconds nor a ratio"),
        (["--latency-budget", "0.001x", "-o", "p.json"], "fastest plan"),
        (["--latency-budget", "0.5x", "-o", "absent/p.json"], "absent"),
        (["--latency-budget", "0.5x", "-o", "."], "folder"),
        (["--latency-budget", "0.5x"], "plan.json"),
        (["-o", "p.json"], "--latency-budget"),
        (["--front", "1", "-o", "p.json"], "2 plans"),
        (["--front", "8"], "file per plan"),
        (["--front", "8", "-o", "absent/p.json"], "absent"),
        (["--latency-budget", "0.5x", "--max-memory", "100", "-o", "p.json"], "activation bytes"),
        (["--latency-budget", "0.5x", "--max-bytes", "100", "-o", "p.json"], "weight bytes, 100, is below the least"),
        (["--latency-budget", "0.5x", "--importance", "taylor", "-o", "p.json"], "--images"),
        (["--latency-budget", "0.5x", "--images", "a", "--task", "b:c", "-o", "p.json"], "one of them"),
        (["--latency-budget", "0.5x", "--min-width", "7", "-o", "p.json"], "from 0 to 1"),
        (["--latency-budget", "0.5x", "--min-width", "most", "-o", "p.json"], "no number"),
        (["--latency-budget", "0.5x", "--multiple-of", "stem=0", "-o", "p.json"], "not positive"),
        (["--latency-budget", "0.5x", "--keep", "steem", "-o", "p.json"], "nothing is called 'steem'"),
        (["--latency-budget", "0.5x", "--top", "3"], "file per plan"),
        (["--front", "3", "--top", "3", "-o", "p.json"], "one budget"),
        (["--explain", "absent.json", "--latency-budget", "0.5x"], "leave out"),
        (["--latency-budget", "0.5x", "--time-limit", "0", "-o", "p.json"], "no positive number"),
        (["--latency-budget", "0.5x", "--time-limit", "inf", "-o", "p.json"], "no positive number"),
        (["--latency-budget", "0.5x", "--max-macs", "inf", "-o", "p.json"], "no positive number"),
        (["--latency-budget", "0.5x", "--max-macs", "10", "-o", "p.json"], "macs"),
        (["--latency-budget", "0.5x", "--task", "absent.py:Mine", "-o", "p.json"], "absent.py"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    command, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str, tmp_path: Path
):
    assert command(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not list(tmp_path.glob("*.json"))


@pytest.fixture
def task(tmp_path: Path) -> list[str]:
    """The options that name a task whose loss writes a line whenever it is asked."""
    (tmp_path / "counted.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "class Counted:\n"
        "    batch_size = 2\n"
        "    def __init__(self, count=4):\n"
        "        pictures = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))\n"
        "        self.train = self.heldout = TensorDataset(pictures, torch.zeros(count).long())\n"
        "    def loss(self, output, target):\n"
        "        print('asked', file=open('asked', 'a'))\n"
        "        return torch.nn.functional.cross_entropy(output, target)\n"
        "    def metrics(self, output, target): return {}\n"
    )
    return ["--task", "counted.py:Counted", "--batches", "2"]


def asked() -> int:
    return len(Path("asked").read_text().splitlines()) if Path("asked").exists() else 0


@pytest.mark.parametrize("limit", [["--latency-budget", "0.001x"], ["--latency-budget", "0.5x", "--keep", "steem"]])
def test_what_cannot_be_met_is_said_before_importance_is_measured(command, task: list[str], limit: list[str]):
    assert command(*limit, *task, "-o", "p.json") == 2
    assert asked() == 0


def test_importance_is_measured_once_for_all_budgets(command, task: list[str]):
    assert command("--latency-budget", "0.5x", *task, "-o", "a.json") == 0
    assert asked() == 2
    assert command("--latency-budget", "0.7x", *task, "-o", "b.json") == 0
    assert asked() == 2
    first, second = load_plan("a.json"), load_plan("b.json")
    assert first.importance == second.importance
    assert first.widths != second.widths
    assert command("--latency-budget", "0.7x", *task, "--task-args", '{"count": 6}', "-o", "c.json") == 0
    assert asked() == 4
    assert load_plan("c.json").importance != second.importance


def test_a_later_rule_for_all_groups_overrides_earlier_ones(command):
    wide = ["--latency-budget", "0.9x", "--min-width", "stem=1"]
    assert command(*wide, "-o", "a.json") == command(*wide, "--min-width", "0.2", "-o", "b.json") == 0
    stems = [list(load_plan(path).settings.min_width.items()) for path in ("a.json", "b.json")]
    assert stems == [[("*", 0.1), ("stem", 1.0)], [("stem", 1.0), ("*", 0.2)]]


def test_json_has_both_tables_where_both_are_asked_for(command, capsys: pytest.CaptureFixture[str]):
    assert command("--latency-budget", "0.6x", "--top", "2", "--front", "3", "-o", "plan.json", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {name: json.loads(Path(f"plan-{name}/{name}.json").read_text()) for name in ("top", "front")}


def test_a_budget_above_the_full_network_is_told_as_such(command, capsys: pytest.CaptureFixture[str]):
    assert command("--latency-budget", "2x", "-o", "plan.json") == 0
    assert "nothing has to go" in capsys.readouterr().err
    assert command("--latency-budget", "0.5x", "-o", "plan.json") == 0
    assert "nothing has to go" not in capsys.readouterr().err


def test_help_names_every_option_of_the_contract(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    promised = """--latency-budget --front --top --explain --device --runtime --precision --threads --weights --images
        --task --importance --options --min-width --multiple-of --keep --frozen --max-params --max-macs --max-memory
        --max-bytes --time-limit --profiles --json -o"""
    assert [option for option in promised.split() if option not in said] == []
    assert "exit codes" in said


def test_the_front_goes_from_the_fastest_to_the_full_network(command, capsys: pytest.CaptureFixture[str]):
    assert command("--front", "9", "-o", "plan.json", "--json") == 0
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert printed == json.loads(Path("plan-front/front.json").read_text())
    plans = [load_plan(Path("plan-front") / row["file"]) for row in printed["plans"]]
    assert 3 <= len(plans) <= 9
    for faster, slower in itertools.pairwise(plans):
        assert faster.predicted_ms < slower.predicted_ms
        assert faster.objective < slower.objective
    assert plans[-1].widths == {group: len(scores) for group, scores in plans[-1].importance.items()}
    assert printed["plans"][-1]["importance_kept"] == pytest.approx(1.0)
    assert f"{printed['knee']:4}" in next(line for line in said.err.splitlines() if "knee" in line)
    rows = Path("plan-front/front.csv").read_text().splitlines()
    assert len(rows) == 1 + len(plans)
    assert Path("plan-front/front.svg").read_text().startswith("<svg")
    assert load_plan("plan.json").widths == plans[printed["knee"] - 1].widths


def test_a_plan_of_the_front_is_the_plan_of_its_budget(residual: tuple[nn.Module, Network]):
    model, net = residual
    for plan in front(Problem(net, StaircaseTable(), magnitude(model, net), reference=REFERENCE), 6):
        alone = plan_of(residual, plan.budget)
        assert alone.objective == pytest.approx(plan.objective, rel=2e-6)
        assert plan.predicted_ms <= plan.budget_ms * (1 + ADDED_UP)


def test_a_front_begins_at_the_fastest_plan_that_keeps_the_other_limits(residual: tuple[nn.Module, Network]):
    model, net = residual
    limits = Settings(max_params=round(0.6 * net.parameter_count()))
    problem = Problem(net, StaircaseTable(), magnitude(model, net), reference=REFERENCE, settings=limits)
    plans = front(problem, 5)
    assert [plan.widths for plan in front(problem, 5, jobs=2)] == [plan.widths for plan in plans]
    assert plans[0].predicted_ms == pytest.approx(problem.fastest_ms)
    assert all(net.parameter_count(plan.widths) <= 0.6 * net.parameter_count() + 1 for plan in plans)
    none = Problem(net, StaircaseTable(), magnitude(model, net), reference=REFERENCE, settings=Settings(max_params=1))
    with pytest.raises(BudgetError, match="parameters"):
        _ = none.fastest_ms


def test_the_knee_is_the_plan_farthest_above_the_chord(residual: tuple[nn.Module, Network]):
    plan = plan_of(residual)
    points = [(1.0, 0.0), (2.0, 6.0), (3.0, 9.0), (9.0, 10.0)]
    assert knee([dataclasses.replace(plan, predicted_ms=ms, objective=kept) for ms, kept in points]) == 2
    assert knee([plan]) == 0


def test_a_budget_and_a_front_give_both(command):
    assert command("--latency-budget", "0.6x", "--front", "4", "-o", "plan.json") == 0
    assert load_plan("plan.json").budget == "0.6x"
    first = sorted(Path("plan-front").glob("plan-*.json"))
    assert command("--front", "2", "-o", "plan.json") == 0
    assert len(list(Path("plan-front").glob("plan-*.json"))) == 2 < len(first)


def test_the_limit_on_memory_holds_for_the_narrow_network(traced: tuple[nn.Module, Network]):
    net = traced[1]
    full = net.peak_memory()
    plan = plan_of(traced, "0.9x", max_memory=round(0.7 * full))
    assert net.peak_memory(plan.widths) <= 0.7 * full
    assert plan.status == "optimal"


def test_peak_memory_counts_what_is_held_while_each_layer_runs():
    class Branch(nn.Module):
        """The first convolution's output, 6 channels, is held until the sum."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 1), nn.Conv2d(10, 6, 1)

        def forward(self, x):
            x = self.a(x)
            return x + self.c(self.b(x))

    net = network.trace(Branch(), (torch.randn(1, 3, 4, 4),))
    assert net.peak_memory() == 4 * 16 * (3 + 6 + 10 + 6)
    assert net.peak_memory({"b": 2}) == 4 * 16 * (3 + 6 + 6 + 6)
    assert net.peak_memory(item_bytes=2) == net.peak_memory() // 2
