"""Profiling against a runtime whose milliseconds are known exactly, and the same suite for every real runtime."""

import importlib.util
import itertools
import json
import re
import sys
import tempfile
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.quantising import quantised
from latency import Device, open_table, profile, verify
from latency.command import _devices, main
from latency.device import this_machine
from latency.placement import Met, cores_of
from latency.plot import plot_stairs
from latency.profiler import BATCH, FEW, LEAST, USUAL, design, every_width, measure
from latency.runtimes import RUNTIMES, UNOWNED, get_runtime
from latency.runtimes.onnx_export import OnnxExport
from latency.runtimes.onnxruntime import OnnxModule
from latency.runtimes.onnxruntime_cuda import BoundModule
from latency.runtimes.openvino import OpenVinoModule
from latency.runtimes.owners import WEIGHTED, owner_of
from latency.runtimes.tensorrt import _buffers, _build, engine_owners
from latency.store import Store
from latency.table import BARE, device_table, slowdown, spec_text, table_of
from latency.verification import time_plans, unseen
from network import narrow, trace
from network.errors import DeviceError, InputError, StoreError, TableError
from network.removal import Constant
from network.types import Width
from tests.helpers import FP32, Generator, Mobile, Residual, UNet, denormals
from tests.known_runtime import KnownModule, KnownRuntime, install

EXAMPLE = (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture
def known(monkeypatch):
    return install(monkeypatch)


DEVICE = Device(this_machine().id, "known", "fp32", 1, "1")
CUDA = re.compile("cuda|tensorrt")
EAGER = ("torch", "torch-cuda")
NO_PROVIDER = pytest.mark.skipif(
    not importlib.util.find_spec("onnxruntime") or RUNTIMES["onnxruntime-cuda"].missing() is None,
    reason="there is none, or one with CUDA",
)
ABSENT = pytest.mark.skipif(bool(importlib.util.find_spec("tensorrt")), reason="TensorRT is installed")


NAMED = [f"{Path(__file__).with_name('helpers.py')}:residual", "--input", "1x3x16x16"]


def profiled(known, tmp_path, model, **options):
    net = trace(model, EXAMPLE)
    count = profile(model, net, EXAMPLE, DEVICE, tmp_path, progress=False, **options)
    return net, count


def test_random_plans_are_predicted_within_five_percent(known, tmp_path):
    model = UNet().eval()
    net, _ = profiled(known, tmp_path, model, configurations=24)
    report = verify(model, net, EXAMPLE, DEVICE, tmp_path, 8, progress=False)
    assert report["plans"] == len(report["rows"]) == 8
    assert report["median_abs_error"] < 0.02
    assert report["within_10_percent"] == 1.0


def test_what_layers_that_are_gone_leave_behind_is_measured_with_all_of_them_gone(known, tmp_path, monkeypatch):
    model, compile_once = Residual().eval(), known.compile

    def leaving(module, *args, **kwargs):
        ready = compile_once(module, *args, **kwargs)
        ready.times["left"] = 0.3 * sum(isinstance(each, Constant) for each in module.modules())
        return ready

    monkeypatch.setattr(known, "compile", leaving)
    net, count = profiled(known, tmp_path, model, configurations=24)
    assert count == 25
    table = open_table(tmp_path, net, runtime="known")
    plans = unseen(net, 8, gone=1.0)
    assert {sum(width == 0 for width in widths.values()) for widths in plans} == {0, 1, 2}
    rows, _ = time_plans(model, table, net, EXAMPLE, plans, progress=False)
    for row in rows:
        assert row["predicted_ms"] == pytest.approx(row["delivered_ms"], rel=0.06)
    slower = table.corrected(1.5)
    for widths in plans:
        assert slower.predict_ms(net, widths) == pytest.approx(1.5 * table.predict_ms(net, widths))
    rows = Store(tmp_path).device_rows(DEVICE)
    missing = table_of(rows[rows.configuration != BARE], net, DEVICE)
    assert missing.overhead.gone_ms == 0.0 < table.overhead.gone_ms


def test_a_machine_that_slowed_down_since_is_told_from_a_table_that_errs(known, tmp_path, capsys):
    model = Residual().eval()
    profiled(known, tmp_path, model, configurations=12)
    known.slower = 1.5
    named = (f"{Path(__file__).with_name('helpers.py')}:residual", "--input", "1x3x16x16", "--runtime", "known")
    options = ["--profiles", str(tmp_path), "--configurations", "12", "--threads", "1", "--verify", "5", "--json"]
    assert main([*named, *options]) == 0
    out, said = capsys.readouterr()
    report = json.loads(out)
    assert report["drift"] == pytest.approx(1.5)
    assert report["median_abs_error"] == pytest.approx(1 / 3, abs=0.05)
    assert report["without_drift"]["median_abs_error"] < 0.02
    assert "1.50 times what it took when profiled" in said


def test_a_table_that_was_measured_with_the_cores_apart_is_warned_of(known, tmp_path, monkeypatch, capsys):
    cores = cores_of(1)

    def settle(threads):
        cores.met = Met(cores.met.waited_s + 1.0, cores.met.rounds + 1, cores.met.apart + cores.met.rounds % 2)
        return False

    monkeypatch.setattr(known, "settle", settle)
    named = (f"{Path(__file__).with_name('helpers.py')}:residual", "--input", "1x3x16x16", "--runtime", "known")
    assert main([*named, "--profiles", str(tmp_path), "--configurations", "12", "--threads", "1", "--json"]) == 0
    out, said = capsys.readouterr()
    report = json.loads(out)
    assert report["waited_s"] >= 2.0
    assert report["apart"] == pytest.approx(0.5, abs=0.1)
    assert f"warning: {report['apart']:.0%} of it was measured with the cores apart" in said


def test_a_machine_whose_speed_changes_between_batches_gives_the_same_table(known, tmp_path, monkeypatch):
    model, compile_once, speeds = Residual().eval(), known.compile, (1.0, 1.4, 1.0, 0.8, 1.0)
    net, _ = profiled(known, tmp_path / "steady", model, configurations=24)
    steady = open_table(tmp_path / "steady", net, runtime="known")

    def slowing(*args, **kwargs):
        known.slower = speeds[known.compiled // BATCH % len(speeds)]
        return compile_once(*args, **kwargs)

    monkeypatch.setattr(known, "compile", slowing)
    known.compiled = 0
    profiled(known, tmp_path / "moody", model, configurations=24)
    moody = open_table(tmp_path / "moody", net, runtime="known")
    raw = Store(tmp_path / "moody").rows()
    assert raw.ms[(raw.kind == "network") & (raw.configuration == 0)].nunique() > 2
    for widths in design(net, 9, seed=5):
        assert moody.predict_ms(net, widths) == pytest.approx(steady.predict_ms(net, widths), rel=1e-3)


def test_a_machine_that_slows_large_networks_most_gives_the_same_table(known, tmp_path, monkeypatch):
    """Every third batch takes 2 t^1.3 ms in the place of t, as where a neighbour takes the caches."""
    model, compile_once, crowded = Residual().eval(), known.compile, []
    net, _ = profiled(known, tmp_path / "steady", model, configurations=24)

    def compiling(*args, **kwargs):
        crowded[:] = [known.compiled // BATCH % 3 == 1]
        return compile_once(*args, **kwargs)

    def run(self):
        ms = sum(self.times.values()) + 0.5
        known.now += 2 * ms**1.3 if crowded[0] else ms

    monkeypatch.setattr(known, "compile", compiling)
    monkeypatch.setattr(KnownModule, "run", run)
    known.compiled = 0
    profiled(known, tmp_path / "crowded", model, configurations=24)
    moods = [open_table(tmp_path / name, net, runtime="known") for name in ("steady", "crowded")]
    for widths in design(net, 9, seed=5):
        ratios = [table.predict_ms(net, widths) / table.predict_ms(net) for table in moods]
        assert ratios[1] == pytest.approx(ratios[0], rel=0.02)


def test_denormal_weights_do_not_slow_the_networks_that_are_timed(known, tmp_path, monkeypatch):
    model, compile_once, seen = Residual().eval(), known.compile, []
    with torch.no_grad():
        next(model.parameters()).fill_(1e-40)

    def compiling(module, *args, **kwargs):
        seen.append(module)
        return compile_once(module, *args, **kwargs)

    monkeypatch.setattr(known, "compile", compiling)
    profiled(known, tmp_path, model, configurations=4)
    assert denormals(model) > 0
    assert len(seen) > 3
    assert sum(map(denormals, seen)) == 0


def test_how_slow_the_machine_is_lies_between_what_a_full_and_a_thin_network_say():
    ms, now, usual = np.array([4.0, 8.0, 16.0, 32.0, 2.0]), (16.0, 4.0), (8.0, 4.0)
    np.testing.assert_allclose(slowdown(ms, now, usual), [1, 2**0.5, 2, 2, 1])
    np.testing.assert_allclose(slowdown(ms, (16.0, np.nan), (8.0, np.nan)), 2)
    np.testing.assert_allclose(slowdown(ms, (16.0, 16.0), (8.0, 8.0)), 2)
    assert np.isnan(slowdown(ms, (np.nan, np.nan), (np.nan, np.nan))).all()


def test_a_machine_that_is_slow_while_counters_are_read_gives_the_same_table(known, tmp_path, monkeypatch):
    model, read, speeds = Residual().eval(), KnownModule.counters, itertools.cycle((1.0, 1.7, 0.6))
    net, _ = profiled(known, tmp_path / "steady", model, configurations=8)

    def moody(self):
        known.slower = next(speeds)
        counters = read(self)
        known.slower = 1.0
        return counters

    monkeypatch.setattr(KnownModule, "counters", moody)
    profiled(known, tmp_path / "moody", model, configurations=8)
    steady, moody = (
        open_table(tmp_path / name, net, runtime="known").layer_ms(net, {}) for name in ("steady", "moody")
    )
    assert moody == pytest.approx(steady, rel=1e-6)


def test_what_no_layer_owns_is_found_as_overhead(known, tmp_path):
    model = Residual().eval()
    net, _ = profiled(known, tmp_path, model, configurations=12)
    overhead = open_table(tmp_path, net, runtime="known").overhead
    assert overhead.fixed_ms == pytest.approx(0.5, rel=1e-3)
    assert overhead.scale == pytest.approx(1.0, rel=1e-3)


def test_noise_that_hides_what_width_does_does_not_make_all_time_fixed(known, tmp_path):
    model = Residual().eval()
    net, _ = profiled(known, tmp_path, model, configurations=8)
    table = open_table(tmp_path, net, runtime="known")
    rows = table.rows.copy()
    whole = rows.kind == "network"
    rows.loc[whole, "ms"] = 10 * rows.layers_ms[whole].max() - rows.layers_ms[whole]  # the narrower, the slower
    noisy = table_of(rows, net, table.device)
    thin = {group.name: 1 for group in net.groups}
    assert noisy.overhead.scale == pytest.approx(0.5)
    assert noisy.predict_ms(net, thin) < noisy.predict_ms(net)


def test_a_second_run_measures_nothing_and_a_longer_one_only_the_rest(known, tmp_path):
    model = Residual().eval()
    _, first = profiled(known, tmp_path, model, configurations=6)
    _, again = profiled(known, tmp_path, model, configurations=6)
    _, longer = profiled(known, tmp_path, model, configurations=8)
    assert (first, again, longer) == (6 + 1, 0, 2)  # one more is without the groups that may go


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_table(known, tmp_path, monkeypatch):
    model, net = Residual().eval(), trace(Residual().eval(), EXAMPLE)
    append, batches = Store.append, iter(range(100))

    def killed_at_the_second_batch(*args):
        if next(batches) == 1:
            raise KeyboardInterrupt
        append(*args)

    monkeypatch.setattr(Store, "append", killed_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        profiled(known, tmp_path / "killed", model, configurations=8)
    monkeypatch.setattr(Store, "append", append)
    _, rest = profiled(known, tmp_path / "killed", model, configurations=8)
    profiled(known, tmp_path / "whole", model, configurations=8)
    assert rest == 8 + 1 - BATCH
    killed, whole = (open_table(tmp_path / name, net, runtime="known") for name in ("killed", "whole"))
    assert killed.predict_ms(net) == pytest.approx(whole.predict_ms(net), rel=1e-9)  # the fake clock adds up
    assert len(killed.rows) == len(whole.rows)


def test_no_more_is_measured_once_the_table_predicts_itself(known, tmp_path):
    model = Residual().eval()
    _, first = profiled(known, tmp_path, model, configurations=64, error=0.5)
    _, more = profiled(known, tmp_path, model, configurations=64, error=0.5)
    # one of the first is without the groups that may go, which says nothing of others
    assert (first, more) == (LEAST + BATCH, 0)
    assert profiled(known, tmp_path, model, configurations=16)[1] == 16 + 1 - (LEAST + BATCH)


def test_layers_known_from_another_network_cost_a_few_whole_runs_only(known, tmp_path):
    profiled(known, tmp_path, Residual().eval(), configurations=16)
    net, count = profiled(known, tmp_path, torch.nn.Sequential(Residual().eval()))
    assert count == FEW + 1
    assert open_table(tmp_path, net, runtime="known").predict_ms(net) > 0
    assert profiled(known, tmp_path, torch.nn.Sequential(Residual().eval()), configurations=8)[1] == 8 - FEW
    again = torch.nn.Sequential(torch.nn.Sequential(Residual().eval()))
    assert profiled(known, tmp_path, again, error=0.5)[1] == LEAST + BATCH


def test_layers_known_at_much_smaller_widths_are_measured_at_their_own(known, tmp_path):
    profiled(known, tmp_path, Residual(8).eval(), configurations=16)
    assert profiled(known, tmp_path, Residual(32).eval())[1] == USUAL + 1
    assert profiled(known, tmp_path, torch.nn.Sequential(Residual(16).eval()))[1] == FEW + 1


def test_what_a_runtime_cannot_run_is_an_error_of_one_line_that_names_it(known, tmp_path, monkeypatch):
    model = Residual().eval()

    def failing(*_, **__):
        raise RuntimeError("step 3 of 3") from ValueError("no rule\nfor aten::odd" + "\nand more" * 100)

    monkeypatch.setattr(known, "compile", failing)
    for attempt in (lambda: profiled(known, tmp_path, model), lambda: measure({"it": model}, EXAMPLE, DEVICE)):
        with pytest.raises(
            DeviceError, match="runtime known cannot run this network: ValueError: no rule for"
        ) as caught:
            attempt()
        assert len(str(caught.value)) < 500
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_of_all_runtimes_those_that_cannot_run_a_network_are_passed_over(known, tmp_path, monkeypatch, capsys):
    other = KnownRuntime()
    other.name = "other"
    monkeypatch.setattr("latency.command.RUNTIMES", {"other": other, "known": known})
    monkeypatch.setitem(RUNTIMES, "other", other)
    monkeypatch.setattr(other, "compile", lambda *_, **__: {}["odd"])
    options = ["--profiles", str(tmp_path), "--configurations", "4", "--threads", "1", "--json"]
    assert main([*NAMED, "--runtime", "all", *options]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out)["runtime"] == "known"
    assert "warning: runtime other cannot run this network: KeyError: 'odd'" in said
    monkeypatch.setattr(known, "compile", other.compile)
    assert main([*NAMED, "--runtime", "all", "--profiles", str(tmp_path / "none"), "--threads", "1"]) == 2


def test_measuring_leaves_torch_the_threads_that_it_had(tmp_path):
    before, device = torch.get_num_threads(), replace(DEVICE, runtime="torch", threads=1)
    torch.set_num_threads(3)
    try:
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Conv2d(2, 2, 1)).eval()
        net = trace(model, EXAMPLE)
        measure({"it": model}, EXAMPLE, device, rounds=1)
        assert torch.get_num_threads() == 3
        profile(model, net, EXAMPLE, device, tmp_path, configurations=2, rounds=1, progress=False)
        assert torch.get_num_threads() == 3
        time_plans(model, device_table(tmp_path, net, device), net, EXAMPLE, [{}], rounds=1, progress=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_networks_with_plain_tensors_that_have_a_history_are_measured():
    with warnings.catch_warnings(action="ignore"):
        model = torch.nn.utils.weight_norm(torch.nn.Conv2d(3, 2, 1)).eval()
    model(*EXAMPLE)
    ready = RUNTIMES["torch"].compile(model, EXAMPLE, precision="fp32", threads=torch.get_num_threads())
    torch.testing.assert_close(ready.run(), model(*EXAMPLE))


def test_an_accelerators_passes_wait_for_the_thread_that_launches_them_alone(known, monkeypatch):
    asked = []
    monkeypatch.setattr(known, "settle", lambda threads: asked.append(threads) and False)
    for accelerator in ("", "GPU"):
        known.accelerator = accelerator
        measure({"it": Residual().eval()}, EXAMPLE, replace(DEVICE, threads=2), rounds=1)
    assert list(dict.fromkeys(asked)) == [2, 1]


def test_a_layer_that_was_never_measured_is_an_error_that_names_it(known, tmp_path):
    profiled(known, tmp_path, Residual().eval(), configurations=2)
    with pytest.raises(TableError, match="run profile-device"):
        open_table(tmp_path, trace(UNet().eval(), EXAMPLE), runtime="known")


def test_a_correction_scales_the_prediction_and_nothing_else(known, tmp_path):
    net, _ = profiled(known, tmp_path, Residual().eval(), configurations=6)
    table = open_table(tmp_path, net, runtime="known")
    assert table.corrected(1.25).predict_ms(net) == pytest.approx(1.25 * table.predict_ms(net))
    assert table.corrected(1.25).fingerprint == table.fingerprint


def test_the_fingerprint_changes_with_the_rows(known, tmp_path):
    model = Residual().eval()
    net, _ = profiled(known, tmp_path, model, configurations=4)
    before = open_table(tmp_path, net, runtime="known").fingerprint
    assert open_table(tmp_path, net, runtime="known").fingerprint == before
    profiled(known, tmp_path, model, configurations=8)
    assert open_table(tmp_path, net, runtime="known").fingerprint != before


def test_the_design_covers_every_group_from_narrow_to_full():
    net = trace(UNet().eval(), EXAMPLE)
    configurations = design(net, 64)
    assert configurations[0] == net.widths
    assert design(net, 16) == configurations[:16]
    for group in net.groups:
        widths = np.array([each[group.name] for each in configurations])
        assert widths.min() >= 1
        assert widths.min() <= 0.3 * group.width
        assert widths.max() == group.width


def in_integers():
    return quantised(Residual(16).eval(), [EXAMPLE])


EVERY = [
    pytest.param(name, precision, build, marks=[pytest.mark.gpu] if CUDA.search(name) else [])
    for name, runtime in RUNTIMES.items()
    for precision in runtime.precisions
    for build in {"fp32": [Mobile, Generator, Residual], "int8": [in_integers]}.get(precision, [Residual])
]
FUSING = [
    pytest.param(name, marks=[pytest.mark.gpu] if CUDA.search(name) else []) for name in RUNTIMES if name not in EAGER
]


@pytest.fixture(scope="module")
def ready():
    """A network at half its widths, compiled; skips where the runtime is not there. Compiling takes long, so once."""
    made = {}

    def compiled(name, precision, build):
        if reason := RUNTIMES[name].missing():
            pytest.skip(reason)
        if not RUNTIMES[name].supports(precision):
            pytest.skip(f"this machine does not run {precision} in {name}")
        if (name, precision, build) not in made:
            model = build().eval()
            net = trace(model, EXAMPLE)
            thin = narrow(model, net, {group.name: range(max(1, group.width // 2)) for group in net.groups})
            made[name, precision, build] = (
                net,
                thin,
                RUNTIMES[name].compile(thin, EXAMPLE, precision=precision, threads=1),
            )
        return made[name, precision, build]

    return compiled


@pytest.mark.parametrize(("name", "precision", "build"), EVERY)
def test_every_runtime_reads_a_time_for_every_heavy_layer_at_any_width(ready, name, precision, build):
    net, _, compiled = ready(name, precision, build)
    compiled.run()
    counters = compiled.counters()
    heavy = {layer.name for layer in net.layers if layer.macs_per_pair or layer.macs_per_channel}
    assert heavy
    assert heavy <= {key for key, ms in counters.items() if ms >= 0}
    assert sum(counters.values()) > 0


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_what_no_layer_owns_is_told(ready, name):
    assert ready(name, "fp32", Residual)[2].counters()[UNOWNED] > 0


def test_openvino_counters_are_of_the_passes_since_the_first(monkeypatch):
    """What it reports is the average over every pass there was: of 900, 30 and 60 ms here."""
    passes, done = iter((900, 30, 60)), []
    request = SimpleNamespace(
        infer=lambda *_, **__: done.append(next(passes)),
        get_profiling_info=lambda: [SimpleNamespace(node_name="a", real_time=timedelta(milliseconds=np.mean(done)))],
    )
    compiled = SimpleNamespace(create_infer_request=lambda: request, get_runtime_model=lambda: None)
    monkeypatch.setattr("latency.runtimes.openvino.compiled_model", lambda *_, **__: compiled)
    monkeypatch.setattr(OpenVinoModule, "_owners", lambda *_: {"a": "conv2d"})
    module = OpenVinoModule(SimpleNamespace(at=lambda _: None), torch.nn.Identity(), (), "f32", 1)
    assert [module.counters()["conv2d"] for _ in range(2)] == pytest.approx([30, 45])


def test_onnxruntime_counters_are_of_the_passes_since_the_second(monkeypatch, tmp_path):
    """The second lays the memory out anew and fetches it: passes of 90, 300, 30, 32 and 31 ms, half in the layer."""
    passes, events = iter((90, 300, 30, 32, 31)), []

    def run(*_):
        us = 1e3 * next(passes)
        events.append({"name": "model_run", "cat": "Session", "dur": us})
        events.append({"name": "a_kernel_time", "cat": "Node", "dur": us / 2})

    profile = tmp_path / "profile.json"
    session = SimpleNamespace(run=run, end_profiling=lambda: profile.write_text(json.dumps(events)) and profile)
    monkeypatch.setattr("latency.runtimes.onnxruntime.open_session", lambda *_, **__: session)
    module = object.__new__(OnnxModule)
    module._optimised, module._owners, module._feed, module._threads = b"graph", {"a": "conv2d"}, {}, 1
    assert module.counters() == pytest.approx({"conv2d": 15.5, UNOWNED: 15.5})


@pytest.mark.parametrize("name", FUSING)
@pytest.mark.parametrize("build", [Generator, UNet])
def test_another_runtime_computes_what_torch_computes(ready, name, build):
    _, thin, compiled = ready(name, "fp32", build)
    compiled.run()
    with torch.no_grad():
        torch.testing.assert_close(compiled.outputs()[0].cpu(), thin(*EXAMPLE), rtol=FP32, atol=FP32)


@pytest.mark.parametrize("name", FUSING)
def test_time_follows_the_layer_that_it_belongs_to(name):
    """The middle one of three convolutions, fused with norm and activation, does 98 % of the work."""
    if reason := RUNTIMES[name].missing():
        pytest.skip(reason)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 1),
        torch.nn.Conv2d(64, 64, 7, padding=3),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 3, 1),
    ).eval()
    example = (torch.randn(1, 3, 64, 64),)
    net = trace(model, example)
    compiled = RUNTIMES[name].compile(model, example, precision="fp32", threads=1)
    compiled.run()
    counters = compiled.counters()
    (middle,) = (layer.name for layer in net.layers if layer.module == "1")
    assert counters[middle] > 0.6 * sum(counters.values())


@pytest.mark.parametrize("name", FUSING)
def test_both_sides_of_a_sum_keep_their_own_time(name):
    """Two convolutions lose their names to their norms, and the heavy one or the light one takes in the sum."""
    if reason := RUNTIMES[name].missing():
        pytest.skip(reason)

    class Shortened(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 32, 3, padding=1)
            self.body = torch.nn.Sequential(torch.nn.Conv2d(32, 64, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(64))
            self.shortcut = torch.nn.Sequential(torch.nn.Conv2d(32, 64, 1, 2, bias=False), torch.nn.BatchNorm2d(64))

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return torch.relu(self.shortcut(x) + self.body(x))

    model, example = Shortened().eval(), (torch.randn(1, 3, 64, 64),)
    net = trace(model, example)
    compiled = RUNTIMES[name].compile(model, example, precision="fp32", threads=1)
    compiled.run()
    counters = compiled.counters()
    body, shortcut = (
        next(counters.get(layer.name, 0.0) for layer in net.layers if layer.module == module)
        for module in ("body.0", "shortcut.0")
    )
    assert body > 4 * shortcut > 0


@pytest.mark.parametrize("build", [Mobile, Generator, UNet])
def test_the_parts_that_onnxruntime_cuda_times_are_the_network(build):
    """Its parts, on the CPU's provider: they compute what the whole computes, and every heavy layer has its own."""
    if reason := RUNTIMES["onnxruntime"].missing():
        pytest.skip(reason)
    model = build().eval()
    net = trace(model, EXAMPLE)
    compiled = BoundModule(OnnxExport(model, EXAMPLE), model, EXAMPLE, 1, ["CPUExecutionProvider"])
    counters = compiled.counters()
    heavy = {layer.name for layer in net.layers if layer.macs_per_pair or layer.macs_per_channel}
    assert heavy <= {name for name, ms in counters.items() if ms > 0}
    with torch.no_grad():
        expected = model(*EXAMPLE)
    torch.testing.assert_close(compiled.outputs()[0], expected, rtol=FP32, atol=FP32)
    (last,) = compiled._parts[-1][1].outputs.values()
    torch.testing.assert_close(last, expected, rtol=FP32, atol=FP32)


def test_a_provider_that_does_not_load_is_an_error_and_not_the_cpu(monkeypatch):
    if reason := RUNTIMES["onnxruntime"].missing():
        pytest.skip(reason)
    monkeypatch.setattr("onnxruntime.InferenceSession.get_providers", lambda self: ["CPUExecutionProvider"])
    model = torch.nn.Conv2d(3, 4, 1).eval()
    source = OnnxExport(model, EXAMPLE)
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(DeviceError, match="cannot load its CUDAExecutionProvider; install"),
    ):
        BoundModule(source, model, EXAMPLE, 1, ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_the_outputs_of_a_compiled_network_are_those_of_its_dict():
    if reason := RUNTIMES["inductor"].missing():
        pytest.skip(reason)

    class Named(torch.nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return {"left": y[:, :2], "rest": (y[:, 2:],)}

    model = Named(3, 5, 1).eval()
    compiled = RUNTIMES["inductor"].compile(model, EXAMPLE, precision="fp32", threads=1)
    left, rest = compiled.outputs()
    torch.testing.assert_close(left, model(*EXAMPLE)["left"], rtol=FP32, atol=FP32)
    torch.testing.assert_close(rest, model(*EXAMPLE)["rest"][0], rtol=FP32, atol=FP32)


def test_compiling_leaves_nothing_behind(monkeypatch, tmp_path):
    if reason := RUNTIMES["inductor"].missing():
        pytest.skip(reason)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = torch.nn.Conv2d(3, 4, 1).eval()
    RUNTIMES["inductor"].compile(model, EXAMPLE, precision="fp32", threads=1).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("c_in", "c_out"), [(4, 4), (4, 1)])
def test_a_norm_after_a_transposed_convolution_is_folded_right_or_not_at_all(c_in: int, c_out: int):
    if reason := RUNTIMES["inductor"].missing():
        pytest.skip(reason)
    model = torch.nn.Sequential(torch.nn.ConvTranspose2d(c_in, c_out, 4, 2, 1), torch.nn.BatchNorm2d(c_out)).eval()
    for values in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
        torch.nn.init.uniform_(values, 0.5, 2.0)
    inputs = (torch.randn(1, c_in, 8, 8),)
    compiled = RUNTIMES["inductor"].compile(model, inputs, precision="fp32", threads=1)
    torch.testing.assert_close(compiled.outputs()[0], model(*inputs), rtol=FP32, atol=FP32)


def test_inductor_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match="install g\\+\\+"):
        get_runtime("inductor")


def test_a_fused_operation_belongs_to_the_nearest_layer_with_weights():
    reads = {"relu": ["batch_norm"], "batch_norm": ["conv2d_1"], "conv2d_1": ["relu_0"], "relu_0": ["conv2d"]}
    assert owner_of(["relu"], reads, weighted=True) == "conv2d_1"
    assert owner_of(["relu"], reads, weighted=False) == "relu"
    assert owner_of(["view"], {"view": ["x"]}, weighted=True) == "view"


def test_a_convolution_that_took_a_sum_in_is_not_the_one_on_its_other_side():
    reads = {"add": ["relu", "batch_norm"], "relu": ["conv2d"], "batch_norm": ["conv2d_1"]}
    assert owner_of(["add"], reads, weighted=True, taken={"conv2d"}) == "conv2d_1"
    assert owner_of(["add"], reads, weighted=True, taken={"conv2d", "conv2d_1"}) == "conv2d"


def test_an_interpolation_has_no_weights_whatever_its_name():
    reads = {"add": ["upsample_bilinear2d", "batch_norm"], "upsample_bilinear2d": ["relu"], "batch_norm": ["conv2d_1"]}
    assert owner_of(["add"], reads, weighted=True) == "conv2d_1"
    weighted = "conv_transpose2d_1 linear addmm_2 bilinear extern_kernels.bmm mkldnn._linear_pointwise onednn.qconv2d"
    assert all(WEIGHTED.search(name) for name in [*weighted.split(), "scaled_dot_product_attention"])
    assert not any(WEIGHTED.search(name) for name in ("upsample_linear1d", "aten.upsample_trilinear3d_1", "relu"))


def test_what_tensorrt_fused_is_the_layer_with_weights():
    origins = {"node_conv": "conv2d", "node_relu": "relu", "node_conv_1": "conv2d_1", "node_add": "add"}
    reads = {"relu": ["conv2d"], "add": ["relu", "conv2d_1"], "conv2d_1": ["relu"]}
    layers = [
        {"Name": "node_conv + node_relu", "LayerType": "CaskConvolution"},
        {"Name": "fused", "LayerType": "kgen", "Metadata": "[ONNX Layer: node_add]\x1e[ONNX Layer: node_conv_1]"},
        {"Name": "Reformatting CopyNode", "LayerType": "Reformat"},
    ]
    owners = engine_owners(json.dumps({"Layers": layers}), origins, reads)
    assert engine_owners(
        '{"Layers": [{"Name": "node_up"}]}',
        {"node_up": "upsample_bilinear2d"},
        reads | {"upsample_bilinear2d": ["conv2d"]},
    ) == {"node_up": "upsample_bilinear2d"}
    assert owners == {"node_conv + node_relu": "conv2d", "fused": "conv2d_1"}


def test_tensorrts_buffers_are_of_the_types_that_its_engine_says():
    kinds = {"ids": ("INPUT", "INT32"), "scores": ("OUTPUT", "HALF"), "best": ("OUTPUT", "INT64")}
    engine = SimpleNamespace(
        num_io_tensors=3,
        get_tensor_name=list(kinds).__getitem__,
        get_tensor_mode=lambda name: SimpleNamespace(name=kinds[name][0]),
        get_tensor_dtype=lambda name: SimpleNamespace(name=kinds[name][1]),
        get_tensor_shape=lambda name: (2, 3),
    )
    buffers = _buffers(engine, (torch.ones(2, 3, dtype=torch.int64),))
    assert [buffer.dtype for buffer in buffers.values()] == [torch.int32, torch.float16, torch.int64]
    assert buffers["ids"].tolist() == [[1, 1, 1]] * 2


def test_tensorrt_says_when_it_built_nothing(monkeypatch):
    """Its interface, of which only what reads and what builds says anything."""
    builder = SimpleNamespace(
        create_network=lambda flags: None,
        create_builder_config=lambda: SimpleNamespace(clear_flag=lambda flag: None),
        build_serialized_network=lambda network, config: None,
    )
    names = ("NetworkDefinitionCreationFlag", "BuilderFlag", "ProfilingVerbosity")
    tensorrt = SimpleNamespace(
        **{name: SimpleNamespace(STRONGLY_TYPED=1, TF32=0, DETAILED=0) for name in names},
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None}),
        Builder=lambda logger: builder,
        OnnxParser=lambda network, logger: SimpleNamespace(parse=lambda model: True),
        __version__="10.1",
    )
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    with pytest.raises(RuntimeError, match="cannot build"):
        _build(b"")
    assert RUNTIMES["tensorrt"].version == "10.1"


@pytest.mark.parametrize("lacking", ["tensorrt", "onnx", "onnxscript"])
def test_tensorrt_needs_what_exports_to_onnx(monkeypatch, lacking):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == lacking else name)
    assert "narrowgauge[onnx]" in RUNTIMES["tensorrt"].missing()


@pytest.mark.parametrize(
    ("runtime", "precision", "words"),
    [
        ("abacus", "fp32", "choose one of torch"),
        ("torch", "int4", "no precision"),
        ("openvino", "fp16", "no precision"),
        pytest.param("tensorrt", "bf16", "not installed", marks=ABSENT),
        pytest.param("tensorrt", "fp32", "not installed", marks=ABSENT),
        pytest.param("onnxruntime-cuda", "fp32", "no CUDAExecutionProvider; pip uninstall", marks=NO_PROVIDER),
    ],
)
def test_an_unknown_runtime_or_precision_says_which_there_are(runtime, precision, words):
    with pytest.raises(DeviceError, match=words):
        get_runtime(runtime, precision)


def test_the_stairs_of_a_layer_are_drawn_with_its_samples(known, tmp_path):
    model = Residual().eval()
    net, _ = profiled(known, tmp_path, model, configurations=8)
    layer = next(layer for layer in net.layers if layer.weight and layer.spec.op == "conv2d")
    picture = plot_stairs(open_table(tmp_path, net, runtime="known"), net, net.find_layer(layer.module))
    assert picture.startswith("<svg")
    samples = open_table(tmp_path, net, runtime="known").rows.query("kind == 'layer'")
    assert picture.count("<use") > 2 * (samples.spec == spec_text(layer.spec)).sum()
    assert net.find_layer(layer.name) is layer
    with pytest.raises(InputError, match="no layer 'absent'"):
        net.find_layer("absent")


def test_every_width_of_one_layer_is_measured_once_and_goes_on_where_it_stopped(known, tmp_path):
    model = Residual().eval()
    net, _ = profiled(known, tmp_path, model, configurations=4)
    layer = net.find_layer("stem")
    group = net.group(layer.c_out.groups[0])
    _, first = profiled(known, tmp_path, model, configurations=4, exhaustive=layer, minutes=0.0)
    _, rest = profiled(known, tmp_path, model, configurations=4, exhaustive=layer)
    assert 0 < first < group.width
    assert first + rest == group.width
    rows = open_table(tmp_path, net, runtime="known").rows.query("kind == 'layer'")
    mine = rows[rows.spec == spec_text(layer.spec)]
    assert set(range(1, group.width + 1)) <= set(mine.c_out)
    full = mine[(mine.c_in == layer.c_in.at(net.widths)) & (mine.configuration >= 10**6)].sort_values("c_out")
    steps = full.ms.to_numpy()
    assert np.flatnonzero(np.diff(steps)).tolist() == list(range(3, group.width - 1, 4))
    with pytest.raises(InputError, match="are fixed"):
        every_width(net, replace(layer, c_in=Width(3), c_out=Width(8)))


def test_the_command_draws_beside_where_it_was_called(known, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named = (f"{Path(__file__).with_name('helpers.py')}:residual", "--input", "1x3x16x16", "--runtime", "known")
    assert main([*named, "--profiles", "store", "--configurations", "6", "--plot", "stem"]) == 0
    assert Path("stairs-conv2d-known-fp32.svg").read_text().startswith("<svg")
    assert main(["--plot", "stem"]) == 2
    assert "name MODEL" in capsys.readouterr().err


def test_tables_are_carried_from_one_store_to_another(known, tmp_path, capsys):
    model = Residual().eval()
    net, _ = profiled(known, tmp_path / "here", model, configurations=4)
    csv, there = str(tmp_path / "all.csv"), str(tmp_path / "there")
    assert main(["--profiles", str(tmp_path / "here"), "--export", csv]) == 0
    assert main(["--profiles", there, "--import", csv]) == 0
    before, after = (open_table(tmp_path / place, net, runtime="known") for place in ("here", "there"))
    assert after.fingerprint == before.fingerprint
    assert "rows of" in capsys.readouterr().err
    assert main(["--profiles", there, "--import", str(tmp_path / "absent.csv")]) == 2
    assert main(["net.py:Net", "--profiles", there, "--import", csv]) == 2
    said = capsys.readouterr().err
    assert "cannot read" in said
    assert "leave out MODEL" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input", "1x3x8x8"], "name MODEL, or leave out --input"),
        (["--weights", "a.pth"], "name MODEL, or leave out --weights"),
        (["--model-args", '{"width": 8}'], "name MODEL, or leave out --model-args"),
        (
            ["--push", "http://127.0.0.1:1", "--verify", "3"],
            "--push without MODEL measures nothing; leave out --verify",
        ),
        (["--push", "http://127.0.0.1:1", "--runtime", "torch"], "leave out --runtime"),
        (["--export", "a.csv", "--threads", "1"], "--export measures nothing; leave out --threads"),
        (["--list", "--configurations", "8"], "--list measures nothing; leave out --configurations"),
        (["net.py:Net", "--list"], "leave out MODEL"),
        (["--list", "--import", "a.csv"], "--list only shows; leave out --import"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(tmp_path, capsys, options, words):
    assert main([*options, "--profiles", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_all_runtimes_may_be_asked_for_in_one_precision():
    assert {device.precision for device in _devices("all", "fp32", 1)} == {"fp32"}
    assert len(_devices("all", "fp32", 1)) < len(_devices("all", None, 1))
    with pytest.raises(DeviceError, match="fp4"):
        _devices("all", "fp4", 1)


def test_fewer_configurations_than_tell_how_time_follows_width_are_refused(capsys):
    with pytest.raises(SystemExit):
        main([*NAMED, "--configurations", "3"])
    assert "give 4 or more" in capsys.readouterr().err


def test_what_was_carried_is_said_as_one_document(known, tmp_path, monkeypatch, capsys):
    profiled(known, tmp_path / "here", Residual().eval(), configurations=4)
    rows, csv, there = len(Store(tmp_path / "here").rows()), str(tmp_path / "all.csv"), ["--profiles", str(tmp_path)]
    assert main(["--profiles", str(tmp_path / "here"), "--export", csv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exported"] == {"to": csv, "rows": rows}
    sent = []
    monkeypatch.setattr("latency.command._pusher", lambda: lambda *asked: sent.append(asked) or "1 of 1")
    assert main([*there, "--import", csv, "--push", "http://x", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["imported"] == {"from": csv, "new_rows": rows}
    assert said["pushed"] == {"to": "http://x", "said": "1 of 1"}
    assert sent == [(tmp_path, "http://x", None)]


def test_the_minutes_are_those_of_the_command_and_not_of_each_network(known, tmp_path, monkeypatch, capsys):
    now, clock_ms = [0.0], known.compile

    def compiling(*args, **kwargs):
        now[0] += 10.0
        return clock_ms(*args, **kwargs)

    monkeypatch.setattr(known, "compile", compiling)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    other = KnownRuntime()
    other.name = "other"
    monkeypatch.setattr(other, "compile", compiling)
    monkeypatch.setattr("latency.command.RUNTIMES", {"known": known, "other": other})
    monkeypatch.setitem(RUNTIMES, "other", other)
    options = ["--profiles", str(tmp_path), "--threads", "1", "--configurations", "16", "--json"]
    assert main([*NAMED, "--runtime", "all", *options, "--minutes", "1.6"]) == 0
    first, second = (each["measured_configurations"] for each in json.loads(capsys.readouterr().out))
    assert first == 3 * BATCH
    assert second == BATCH


def test_contention_is_told_of_this_network_alone(known, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as busy:
        busy.setattr(known, "stolen_ms", lambda: known.now / 2)
        profiled(known, tmp_path, UNet().eval(), configurations=4)
    options = ["--profiles", str(tmp_path), "--threads", "1", "--configurations", "4", "--runtime", "known", "--json"]
    assert main([*NAMED, *options]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out)["contention"] == 0
    assert "others took" not in said


def test_a_shipped_profile_is_one_file_and_serves_where_nothing_can_be_written(known, tmp_path, monkeypatch):
    model, shipped = Residual().eval(), tmp_path / "profiles"
    net, _ = profiled(known, tmp_path / "reference", model, configurations=12)
    assert main(["--profiles", str(shipped), "--import", str(tmp_path / "reference")]) == 0
    (rows,) = shipped.rglob("*.parquet")
    before = {path: path.stat().st_mtime_ns for path in shipped.rglob("*")}

    def read_only(path, data):
        raise StoreError(f"cannot write {path}: Permission denied")

    monkeypatch.setattr("latency.store.write_atomically", read_only)
    assert main(["--profiles", str(shipped), "--list"]) == 0
    named = (f"{Path(__file__).with_name('helpers.py')}:residual", "--input", "1x3x16x16", "--runtime", "known")
    assert profiled(known, shipped, model, configurations=12)[1] == 0
    assert open_table(shipped, net, runtime="known").predict_ms(net) > 0
    assert main([*named, "--profiles", str(shipped), "--configurations", "16", "--threads", "1"]) == 2
    assert {path: path.stat().st_mtime_ns for path in shipped.rglob("*")} == before
    assert rows.stat().st_size < 50_000
