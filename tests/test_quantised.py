"""Networks that simulate int8: their quantisers lose the channels that their layers lose, and OpenVINO runs them so."""

import json
import platform

import pytest
import torch
from torch import nn
from torch.ao import quantization

import network
from benchmarks.quantising import quantised
from compress import apply_plan, load
from compress.exports import TOLERANCE, compared, export_onnx, export_openvino, in_onnxruntime, in_openvino
from compress.repair import repair
from latency import Measurement
from latency.command import main
from latency.device import cpu_fields
from latency.runtimes import RUNTIMES, here
from network.errors import DeviceError, TraceError
from search import Imitation, magnitude, search
from tests.compression import Photos
from tests.helpers import FP32, Residual
from tests.staircase import AnalyticTable

EXAMPLE = (torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)
SATURATES = platform.machine() == "x86_64" and "vnni" not in cpu_fields().get("flags", "")
EXACT_INTEGERS = pytest.mark.skipif(SATURATES, reason="without VNNI a processor's int8 products saturate at 16 bits")
OPENVINO = pytest.mark.skipif(RUNTIMES["openvino"].missing() is not None, reason="OpenVINO is not installed")


def residual() -> nn.Module:
    """What `profile-device tests/test_quantised.py:residual` measures."""
    torch.manual_seed(0)
    return quantised(Residual(16).eval(), [EXAMPLE])


@pytest.fixture(scope="module")
def traced():
    model = residual()
    return model, network.trace(model, EXAMPLE)


def halved(net):
    return {group.name: range(0, group.width, 2) for group in net.groups}


def test_quantised_channels_are_coupled_as_the_plain_ones_are(traced):
    net = traced[1]
    plain = network.trace(Residual(16).eval(), EXAMPLE)
    assert {group.name: group.width for group in net.groups} == {group.name: group.width for group in plain.groups}
    assert [f.width for f in net.frozen] == [f.width for f in plain.frozen]


def test_scales_zero_points_and_what_was_observed_go_with_their_channels(traced):
    model, net = traced
    keep = halved(net)
    thin = network.narrow(model, net, keep)
    stem, quantiser = thin.stem, thin.stem.weight_fake_quant
    wide = model.stem.weight_fake_quant
    assert stem.out_channels == 8
    for name in ("scale", "zero_point"):
        assert getattr(quantiser, name).tolist() == getattr(wide, name)[::2].tolist()
    assert quantiser.activation_post_process.max_val.tolist() == wide.activation_post_process.max_val[::2].tolist()
    assert quantiser.zero_point.dtype == torch.int32
    silent = network.mask(model, net, keep)
    expected = silent(*EXAMPLE)
    assert (thin(*EXAMPLE) - expected).abs().max() <= FP32 * expected.abs().max()


def test_a_quantised_network_can_do_without_its_branches(traced):
    model, net = traced
    gone = [group.name for group in net.groups if group.removable]
    assert len(gone) == 2
    for keep in ({gone[0]: []}, {name: [] for name in gone}):
        expected = network.mask(model, net, keep)(*EXAMPLE)
        assert (network.narrow(model, net, keep)(*EXAMPLE) - expected).abs().max() <= FP32 * expected.abs().max()


def test_a_narrowed_quantised_network_can_be_trained_on_with_its_observers(traced):
    model, net = traced
    thin = network.narrow(model, net, halved(net)).train().apply(quantization.enable_observer)
    before = thin.stem.weight_fake_quant.scale.clone()
    thin.stem.weight.data *= 2
    thin(*EXAMPLE).square().sum().backward()
    assert torch.isfinite(thin.stem.weight.grad).all()
    assert (thin.stem.weight_fake_quant.scale > before).all()


def test_a_quantiser_with_branches_is_followed():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
            self.between = quantization.FakeQuantize(quant_min=0, quant_max=255)

        def forward(self, x):
            return self.b(self.between(torch.relu(self.a(x))))

    model = Plain().eval()
    model(*EXAMPLE)
    model.apply(quantization.disable_observer)
    net = network.trace(model, EXAMPLE)
    assert [group.name for group in net.groups] == ["a"]
    assert [layer.spec.op for layer in net.layers] == ["conv2d", "relu", "fake_quantize_per_tensor_affine", "conv2d"]
    model.apply(quantization.disable_fake_quant)
    assert [x.spec.op for x in network.trace(model, EXAMPLE).layers] == ["conv2d", "relu", "conv2d"]


def test_a_quantiser_with_a_forward_of_its_own_keeps_it():
    class Halved(quantization.FakeQuantize):
        def forward(self, x):
            return x / 2

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Halved(), nn.Conv2d(8, 4, 3)).eval()
    assert [layer.spec.op for layer in network.trace(model, EXAMPLE).layers] == ["conv2d", "div", "conv2d"]


def test_a_network_that_still_observes_is_refused():
    model = residual().apply(quantization.enable_observer)
    with pytest.raises(TraceError, match=r"still observes .*disable_observer"):
        network.trace(model, EXAMPLE)


def test_what_read_removed_channels_is_refitted_before_it_is_rounded(traced):
    model, net = traced
    keep = halved(net)
    thin = network.narrow(model, net, keep)
    batches = [((torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(k)),), None) for k in range(8)]

    def apart():
        with torch.no_grad():
            return sum(float((thin(*x) - model(*x)).square().sum()) for x, _ in batches)

    before, rounded = apart(), thin.head.weight.clone()
    reports = repair(thin, model, net, keep, batches)
    assert {"head.weight", "block1.conv2.weight", "shortcut.weight"} <= {report.layer for report in reports}
    assert not torch.equal(thin.head.weight, rounded)
    assert apart() < 0.5 * before


@OPENVINO
def test_openvino_runs_it_in_integers_at_any_width(traced):
    model, net = traced
    runtime = RUNTIMES["openvino"]
    made = runtime.compile(model, EXAMPLE, precision="int8", threads=1)
    assert made.in_integers()
    thin = network.narrow(model, net, halved(net))
    narrow = runtime.compile(thin, EXAMPLE, precision="int8", threads=1, like=made)
    assert narrow.source is made.source
    assert narrow.in_integers()
    step = float(next(iter(model.children())).scale)  # nothing is known better than to a quantiser's step
    for module, compiled in ((model, made), (thin, narrow)):
        expected = module(*EXAMPLE)
        assert (compiled.outputs()[0] - expected).abs().max() <= 0.1 * expected.abs().max() + step


@OPENVINO
def test_int8_is_for_quantised_networks_and_they_for_int8(traced):
    model, runtime = traced[0], RUNTIMES["openvino"]
    with pytest.raises(DeviceError, match="the network is quantised, and fp32 is not for it; use --precision int8"):
        runtime.compile(model, EXAMPLE, precision="fp32", threads=1)
    with pytest.raises(DeviceError, match="the network is not quantised, and int8 is not for it; use --precision fp32"):
        runtime.compile(Residual().eval(), EXAMPLE, precision="int8", threads=1)


@OPENVINO
def test_quantisers_that_openvino_cannot_use_are_told():
    model = residual()
    for module in model.modules():
        if isinstance(module, quantization.FakeQuantize):
            module.activation_post_process.quant_min, module.activation_post_process.quant_max = 0, 100
    with pytest.raises(DeviceError, match="none of the quantised layers in int8; let its quantisers have 256 levels"):
        RUNTIMES["openvino"].compile(model, EXAMPLE, precision="int8", threads=1)


@OPENVINO
def test_all_precisions_are_those_that_suit_the_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("latency.command.RUNTIMES", {"openvino": RUNTIMES["openvino"]})
    common = [
        "--input",
        "1x3x16x16",
        "--runtime",
        "all",
        "--configurations",
        "4",
        "--profiles",
        str(tmp_path),
        "--json",
    ]
    assert main([f"{__file__}:residual", *common]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int8"


@OPENVINO
def test_a_quantised_network_goes_all_the_way(traced, tmp_path):
    model, net = traced
    table = AnalyticTable(device=here("openvino", "int8"))
    plan = search(model, net, table, "0.6x", magnitude(model, net))
    quick = {"steps": 4, "condense": "none", "heldout": 4, "measure": half_as_long}
    apply_plan(plan, model, net, table, Imitation(Photos(24), batch_size=4), tmp_path / "out", **quick)
    again = load(tmp_path / "out", residual())
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())
    assert RUNTIMES["openvino"].compile(again, EXAMPLE, precision="int8", threads=1).in_integers()


def half_as_long(modules, example, device, *, rounds=1):
    """A `measure` by which what is narrow takes half the time."""
    return {name: Measurement(2.0 if name.startswith("original") else 1.0, 0.0, rounds, 0.0) for name in modules}


def deep(seed: int) -> nn.Module:
    """Ten quantised layers between instance norms: one value on another level moves all that follow."""
    torch.manual_seed(seed)
    layers = [part for width in (3, *[8] * 9) for part in (nn.Conv2d(width, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())]
    return quantised(nn.Sequential(*layers).eval(), [(torch.rand(1, 3, 40, 40),)])


@EXACT_INTEGERS
def test_an_onnx_file_may_be_as_far_from_torch_as_rounding_moves_the_network_itself(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    example = network.example_inputs([(1, 3, 40, 40)])
    found = export_onnx(tmp_path, deep(0), example)
    assert found["file"] == "model.onnx"
    assert found["relative_error"] > TOLERANCE
    assert not compared(in_onnxruntime(tmp_path / "model.onnx"), deep(1), example)[1]


@EXACT_INTEGERS
@OPENVINO
def test_the_delivered_openvino_model_is_quantised(tmp_path):
    example, model = network.example_inputs([(1, 3, 40, 40)]), deep(0)
    assert export_openvino(tmp_path, model, example)["file"] == "model.xml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    program = in_openvino(tmp_path / "model.xml")
    assert compared(program, model, example)[1]
    assert not compared(program, deep(1), example)[1]
