"""One plan for several devices: every budget is kept, and no plan that keeps them all is better."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import network
from compress.delivery import deliver
from latency import Device, here, open_table, profile
from latency.borrowing import borrow, left_out_errors, with_borrowed
from latency.device import Machine, choose_device, this_machine
from latency.stairs import fit_staircase
from latency.table import spec_text
from network.command_line import run
from network.errors import BudgetError, DeviceError, PlanError, TableError
from network.types import LayerSpec, Network
from search import load_plan, magnitude, parse_budget, resolve, search
from search.build import worth
from search.command import main
from search.plan import Plan, Settings
from tests import helpers
from tests.compression import Clock
from tests.helpers import IMAGE
from tests.known_runtime import KnownRuntime, install
from tests.staircase import AnalyticTable, StaircaseTable

FEW = Settings(options=3)
OTHER = StaircaseTable(device=Device("other", "torch", "fp32", 1, "0"))


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, Network]:
    model = helpers.residual(width=16)
    return model, network.trace(model, (torch.randn(IMAGE),))


def both(residual: tuple[nn.Module, Network], first: str, second: str, settings: Settings = FEW) -> Plan:
    model, net = residual
    others = [(OTHER, parse_budget(second))]
    return search(model, net, AnalyticTable(), first, magnitude(model, net), settings=settings, others=others)


@pytest.mark.parametrize(("first", "second"), [("0.6x", "0.6x"), ("0.9x", "0.5x"), ("0.5x", "0.95x")])
def test_no_plan_within_both_budgets_is_better(residual: tuple[nn.Module, Network], first: str, second: str):
    net = residual[1]
    plan = both(residual, first, second)
    (promise,) = plan.others
    assert plan.predicted_ms <= plan.budget_ms
    assert promise.predicted_ms <= promise.budget_ms
    assert promise.predicted_ms == pytest.approx(OTHER.predict_ms(net, plan.widths))
    assert promise.baseline_ms == pytest.approx(OTHER.predict_ms(net))
    from search.widths import group_options

    options = group_options(net, FEW)
    best = 0.0
    for widths in itertools.product(*options.values()):
        chosen = dict(zip(options, widths, strict=True))
        if (
            AnalyticTable().predict_ms(net, chosen) <= plan.budget_ms
            and OTHER.predict_ms(net, chosen) <= promise.budget_ms
        ):
            best = max(best, sum(worth(np.array(plan.importance[name]))[width] for name, width in chosen.items()))
    assert plan.objective == pytest.approx(best, rel=1e-6)


def test_a_plan_for_two_is_solved_again_for_two(residual: tuple[nn.Module, Network]):
    net = residual[1]
    plan = both(residual, "0.6x", "0.6x", Settings())
    again = resolve(plan, net, AnalyticTable().corrected(1.2), plan.budget_ms, [OTHER])
    assert again.predicted_ms <= plan.budget_ms
    assert again.others[0].budget_ms == plan.others[0].budget_ms
    assert again.others[0].predicted_ms <= again.others[0].budget_ms
    with pytest.raises(PlanError, match="1 devices beside the first"):
        resolve(plan, net, AnalyticTable(), plan.budget_ms)
    found = deliver(plan, residual[0], net, AnalyticTable(), Clock(net, 1.2), [OTHER])
    assert found.chosen.ratio <= 1
    assert found.plan.others[0].predicted_ms <= found.plan.others[0].budget_ms


def test_a_budget_that_the_other_device_cannot_keep_names_it(residual: tuple[nn.Module, Network]):
    with pytest.raises(BudgetError, match="milliseconds on other/torch-fp32-1t"):
        both(residual, "0.9x", "0.001ms")


def test_the_command_takes_a_budget_for_every_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tables = {"test-machine/torch-fp32-1t": AnalyticTable(), "other/torch-fp32-1t": OTHER}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latency.open_table", lambda profiles, net, device, **rest: tables[device])
    model = f"{Path(__file__).with_name('helpers.py')}:residual"
    options = [model, "--input", "x".join(map(str, IMAGE)), "-o", "p.json"]
    first, second = (["--device", name] for name in tables)
    assert run(main, [*options, *first, "--latency-budget", "0.7x", *second, "--latency-budget", "0.6x"]) == 0
    plan = load_plan("p.json")
    assert [plan.budget, plan.others[0].budget] == ["0.7x", "0.6x"]
    assert plan.others[0].device == "other"
    assert "on other torch fp32" in capsys.readouterr().err
    assert run(main, [*options, *first, *second, "--latency-budget", "0.7x"]) == 2
    assert "1 budgets for 2 devices" in capsys.readouterr().err


def test_a_device_is_found_by_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from latency import open_table
    from tests.test_profiler import profiled

    model = helpers.residual(width=8)
    net, _ = profiled(install(monkeypatch), tmp_path, model, configurations=4)
    name = open_table(tmp_path, net, runtime="known").device.id
    assert open_table(tmp_path, net, device=name).device.runtime == "known"
    with pytest.raises(DeviceError, match="no latency table for nobody/known-fp32-2t in"):
        open_table(tmp_path, net, device="nobody/known-fp32-2t")


def test_a_table_of_another_network_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from tests.test_profiler import profiled

    profiled(install(monkeypatch), tmp_path, helpers.residual(width=8), configurations=4)
    model = f"{Path(__file__).with_name('helpers.py')}:unet"
    place = ["--profiles", str(tmp_path), "--runtime", "known", "-o", str(tmp_path / "plan.json")]
    options = [model, "--input", "x".join(map(str, IMAGE)), "--latency-budget", "0.5x", *place]
    assert run(main, options) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "run profile-device" in said[0]
    assert run(main, [*options, "--threads", "99999"]) == 2
    assert "99999t in" in capsys.readouterr().err


def test_of_several_versions_the_installed_one_is_taken_here_and_elsewhere_the_newest():
    known = [
        Device("mine", "torch", "fp32", 2, version) for version in ("2.9.1", "2.13.0", "2.13.0+hugepages", "2.14.0")
    ]

    def chosen(mine: str, installed: str | None, devices: list[Device] = known) -> str:
        found = choose_device(devices, None, "torch", "fp32", None, mine=mine, installed=lambda _: installed, where="")
        return found.version

    assert chosen("mine", "2.9.1") == "2.9.1"
    assert chosen("mine", "2.13.0") == "2.13.0"
    assert chosen("mine", "2.15.0") == "2.14.0"
    assert chosen("other", "2.9.1") == "2.14.0"
    assert {chosen("mine", None, list(order)) for order in itertools.permutations(known[:3])} == {"2.13.0+hugepages"}


def test_a_table_of_another_version_than_the_installed_one_is_warned_of(tmp_path, monkeypatch, capsys):
    from tests.test_profiler import profiled

    known = install(monkeypatch)
    net, _ = profiled(known, tmp_path, helpers.residual(width=8), configurations=2)
    assert open_table(tmp_path, net, runtime="known").device.version == "1"
    known.version = "1+hugepages"
    assert open_table(tmp_path, net, runtime="known").device.version == "1"
    assert capsys.readouterr().err == ""
    known.version = "2"
    assert open_table(tmp_path, net, runtime="known").device.version == "1"
    assert "was measured with version 1, and 2 is installed" in capsys.readouterr().err


@pytest.mark.parametrize("threads", [-1, 99_999])
def test_more_threads_than_cores_cannot_be_measured(threads: int):
    with pytest.raises(DeviceError, match=f"{threads} threads on [0-9]+ cores; give --threads"):
        here("torch", threads=threads)


def samples_of(*sizes: int) -> pd.DataFrame:
    """Layers of these picture sizes: a call's own cost, and one for each position, channel read and channel made."""
    return pd.DataFrame(
        [
            {"kind": "layer", "spec": conv(size), "c_in": a, "c_out": b, "ms": 0.01 + 2e-8 * size**2 * (a * b + 8 * b)}
            for size in sizes
            for a, b in itertools.product((8, 16, 32, 48, 64), repeat=2)
        ]
    )


def conv(size: int, kernel: str = "3x3") -> str:
    attributes = (("groups", "dense"), ("kernel", kernel), ("stride", "1x1"))
    return spec_text(LayerSpec("conv2d", attributes, 1, (size, size), (size, size), ("<relu",)))


def test_a_layer_that_was_never_measured_borrows_from_those_most_like_it():
    lent = borrow(samples_of(8, 32, 64), conv(16))
    assert lent is not None
    assert set(lent.spec) == {conv(16)}
    truth = samples_of(16)
    model = fit_staircase(*(lent[name].to_numpy() for name in ("c_in", "c_out", "ms")))
    said = model.milliseconds(truth.c_in.to_numpy(), truth.c_out.to_numpy())
    assert said == pytest.approx(truth.ms.to_numpy(), rel=0.05)
    assert left_out_errors(samples_of(8, 16, 32, 64)).max() < 0.05


def test_nothing_is_borrowed_from_another_kernel():
    assert borrow(samples_of(8, 16), conv(16, "5x5")) is None
    rows, misses = with_borrowed(samples_of(8, 16), [conv(16, "5x5")])
    assert misses == {}
    assert len(rows) == len(samples_of(8, 16))


def test_only_another_machines_table_borrows_and_says_so(monkeypatch, tmp_path, capsys):
    install(monkeypatch)
    model, large = helpers.Residual().eval(), (torch.randn(1, 3, 32, 32),)
    small = (torch.randn(IMAGE),)
    device = Device(this_machine().id, "known", "fp32", 1, "1")
    profile(model, network.trace(model, small), small, device, tmp_path, configurations=16, progress=False)
    net = network.trace(model, large)
    with pytest.raises(TableError, match="run profile-device"):
        open_table(tmp_path, net, runtime="known")
    monkeypatch.setattr("latency.table.this_machine", lambda accelerator="": Machine("another", 1, ""))
    table = open_table(tmp_path, net, runtime="known")
    said = capsys.readouterr().err
    assert "were never measured on" in said
    assert "left out in turn are missed by" in said
    assert set(table.borrowed) <= {spec_text(layer.spec) for layer in net.layers}
    assert table.borrowed
    truth = KnownRuntime().compile(model, large, precision="fp32", threads=1)
    assert table.predict_ms(net) == pytest.approx(sum(truth.times.values()) + 0.5, rel=0.1)
    other = helpers.UNet().eval()
    with pytest.raises(TableError, match="run profile-device"):
        open_table(tmp_path, network.trace(other, small), runtime="known")
