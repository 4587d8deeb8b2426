"""The benchmark of predictions: rows that resume, in an order that says something early, and the summary of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import network
from benchmarks import prediction
from benchmarks.isolated import Isolated
from benchmarks.prediction import asked, main, parser
from benchmarks.prediction_report import plot, summary
from latency import here
from latency.drawing import AFTER, BEFORE, MARK
from latency.runtimes import RUNTIMES
from network.command_line import run
from network.errors import InputError
from tests.helpers import FP32, Residual
from tests.known_runtime import KnownRuntime, install

SHAPE = (1, 3, 16, 16)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> KnownRuntime:
    runtime = install(monkeypatch)
    runtime.windows_ms = 0.0
    monkeypatch.setattr(prediction, "CountingClock", lambda: runtime)
    monkeypatch.setattr(prediction, "NETWORKS", {name: (lambda: Residual(), SHAPE) for name in ("one", "two")})
    prediction._traced.cache_clear()
    return runtime


def row(kind: str, delivered: list[float], name: str = "one", **columns: list) -> dict:
    plans = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = [plan | {"delivered_ms": ms} for plan, ms in zip(plans, delivered, strict=True)]
    return {"network": name, "runtime": "torch", "precision": "fp32", "kind": kind, "rows": rows, "floors": [0.01]}


def test_rows_are_written_as_they_come_and_never_measured_again(
    known: KnownRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "rows.jsonl"
    options = ["--runtime", "known", "--plans", "5", "--configurations", "12", "--threads", "1", "--isolated", "0"]
    options += ["--profiles", str(tmp_path / "profiles"), "--out", str(out)]
    assert main([*options, "--only", "one"]) == 0
    compiled = known.compiled
    (first,) = map(json.loads, out.read_text().splitlines())
    assert len(first["rows"]) == 5
    assert first["configurations"] == 12 + 1  # without the groups that may go
    assert first["floors"] == [pytest.approx(0)] * 2
    assert all(each["predicted_ms"] == pytest.approx(each["delivered_ms"], rel=0.05) for each in first["rows"])
    assert main([*options, "--only", "one"]) == 0
    assert known.compiled == compiled
    assert len(out.read_text().splitlines()) == 1
    assert main([*options, "--only", "one", "--plans", "3"]) == 0
    assert [len(json.loads(row)["rows"]) for row in out.read_text().splitlines()] == [5, 3]
    assert main([*options, "--only", "one", "--plans", "3"]) == 0
    assert len(out.read_text().splitlines()) == 2
    last = json.loads(out.read_text().splitlines()[-1])
    capsys.readouterr()
    assert main(["--report", str(out)]) == 0
    assert capsys.readouterr().out.strip() == summary([last])


def test_another_seed_draws_other_plans_but_never_those_that_are_profiled(known: KnownRuntime, tmp_path: Path):
    options = ["--runtime", "known", "--plans", "3", "--configurations", "12", "--threads", "1", "--isolated", "0"]
    options += ["--only", "one", "--profiles", str(tmp_path / "profiles")]
    out = tmp_path / "rows.jsonl"
    for seed in ("1", "2"):
        assert main([*options, "--seed", seed, "--out", str(out)]) == 0
    one, two = map(json.loads, out.read_text().splitlines())
    assert (one["asked_with"]["seed"], two["asked_with"]["seed"]) == (1, 2)
    assert {each["macs"] for each in one["rows"]}.isdisjoint(each["macs"] for each in two["rows"])
    with pytest.raises(InputError, match="profiled"):
        main([*options, "--seed", "0"])


def test_a_runtime_that_is_none_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(main, ["--only", "resnet56", "--runtime", "abacus", "--out", str(tmp_path / "rows.jsonl")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "abacus" in said[0]


def test_plans_without_groups_are_predicted_where_there_are_any_and_judged_apart(
    known: KnownRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "rows.jsonl"
    options = ["--runtime", "known", "--plans", "6", "--configurations", "12", "--threads", "1", "--isolated", "0"]
    options += ["--profiles", str(tmp_path / "profiles"), "--out", str(out), "--only", "one", "--removal"]
    assert main(options) == 0
    whole, without = map(json.loads, out.read_text().splitlines())
    assert without["kind"] == "removal"
    assert 0 < max(each["gone"] for each in without["rows"]) <= 2
    assert [each["predicted_ms"] for each in without["rows"]] != [each["predicted_ms"] for each in whole["rows"]]
    (_, said, *_) = capsys.readouterr().out.splitlines()
    assert "without up to" in said
    assert summary([whole, without]) == summary([whole])


def test_every_runtime_is_asked_about_a_network_before_the_next_and_predictions_before_the_rest():
    text = ["--runtime", "torch", "--runtime", "openvino:bf16", "--only", "resnet56", "--only", "johnson"]
    keys = list(asked(parser().parse_args(text)))
    assert keys[:3] == [
        ("resnet56", "torch", "fp32", "prediction"),
        ("resnet56", "openvino", "bf16", "prediction"),
        ("johnson", "torch", "fp32", "prediction"),
    ]
    assert [kind for *_, kind in keys] == ["prediction"] * 4 + ["isolated"] * 4


def test_the_summary_takes_all_plans_together_and_ranks_network_by_network():
    ten, macs = [10.0, 20.0, 30.0, 40.0], [4.0, 3.0, 2.0, 1.0]
    rows = [
        row("prediction", ten, predicted_ms=[10.0, 20.4, 31.8, 48.0], macs=macs, drift=[1.0, 1.0, 1.0, 0.8]),
        row("prediction", ten, "two", predicted_ms=ten, macs=macs, drift=[None] * 4),
        row("isolated", ten[:3], isolated_ms=[20.0, 40.0, 60.0]),
    ]
    (*_, line) = summary(rows).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:8] == ["torch", "fp32", "2", "8", "0.0%", "75%", "88%", "20.0%"]
    assert cells[8:] == ["0.0%", "88%", "100%", "1.0%", "1.000", "1.000", "-1.000", "2.00"]
    assert summary([]) == "no rows of predictions yet"


def test_the_picture_has_a_panel_per_runtime_and_a_dot_per_plan_and_rule(tmp_path: Path):
    four = [10.0, 20.0, 30.0, 40.0]
    one = row("prediction", four, predicted_ms=four, macs=[4.0, 3.0, 2.0, 1e-9], drift=[None] * 4)
    two = row("prediction", four, "two", predicted_ms=four, macs=four, drift=[2.0] * 4)
    alone = row("isolated", four[:3], isolated_ms=four[:3])
    picture = plot([one, two, alone])
    dots = [
        len(re.findall(f"<use [^>]*fill: {colour}", picture)) - 1 for colour in (BEFORE, MARK, AFTER)
    ]  # less its label
    assert dots == [8, 3, 8]
    assert "fill: #ffffff" in picture  # dark viewers too
    picture = plot([one, two | {"runtime": "openvino", "precision": "bf16"}])
    assert "<!-- torch fp32 -->" in picture
    assert "<!-- openvino bf16 -->" in picture
    rows, drawn = tmp_path / "rows.jsonl", tmp_path / "drawn.svg"
    rows.write_text("")
    assert run(main, ["--report", str(rows), "--plot", str(drawn)]) == 2
    rows.write_text(json.dumps(one) + "\n")
    assert run(main, ["--report", str(rows), "--plot", str(drawn)]) == 0
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_layers_cut_out_of_the_onnx_file_are_timed_alone(runtime: str):
    if reason := RUNTIMES[runtime].missing():
        pytest.skip(reason)
    model, example = Residual().eval(), (torch.randn(SHAPE),)
    net = network.trace(model, example)
    isolated = Isolated(model, net, example, here(runtime, threads=1))
    assert isolated.milliseconds(net.widths) > 0
    heavy = {layer.spec for layer in net.layers if layer.macs_per_pair}
    assert sum(ms > 0 for ms in isolated._known.values()) >= len(heavy)


def test_the_parts_of_an_onnx_file_one_after_the_other_are_the_whole():
    onnxruntime = pytest.importorskip("onnxruntime")
    from latency.runtimes.onnx_cut import cut

    model: nn.Module = Residual().eval()
    example = torch.randn(SHAPE)
    whole = network.to_onnx(network.export(model, (example,))).model_proto
    values = {whole.graph.input[0].name: example.numpy()}
    for number in range(0, len(whole.graph.node), 3):
        part = cut(whole, whole.graph.node[number : number + 3])
        session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [value.name for value in part.graph.output]
        values |= dict(zip(names, session.run(None, {x.name: values[x.name] for x in part.graph.input}), strict=True))
    with torch.no_grad():
        result = torch.from_numpy(values[whole.graph.output[0].name])
        torch.testing.assert_close(result, model(example), rtol=FP32, atol=FP32)
