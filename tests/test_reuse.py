"""An export used again at other widths computes what the narrower network computes, or is not used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latency.runtimes import RUNTIMES, reuse
from network import export, narrow, trace

EXAMPLE = (torch.randn(1, 3, 16, 16),)
REUSING = ("torch", "openvino", "onnxruntime")


class Classifier(nn.Module):
    """A norm that is folded, a depthwise and a grouped convolution, a transposed one, a concatenation, a flattening."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(24, 12, 2, 2)
        self.head = nn.Linear(12 + 16, 10)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        y = self.up(torch.relu(self.grouped(self.depthwise(x))))
        pooled = torch.cat([F.adaptive_avg_pool2d(each, 1) for each in (y, x)], 1)
        return self.head(torch.flatten(pooled, 1))


class Shuffle(nn.Module):
    """A view whose sizes follow from the input's, but are numbers in the export."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

    def forward(self, x):
        x = self.first(x)
        b, c, h, w = x.shape
        return self.last(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))


class Scaled(nn.Module):
    """A number in the export that fits every width, and is wrong."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(x * x.shape[1])


class Misnamed(nn.Module):
    """A module whose `groups` are not its convolution's."""

    groups = 2

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
        self.filters = nn.Parameter(torch.randn(16, 1, 3, 3))

    def forward(self, x):
        x = self.first(x)
        return self.last(F.conv2d(x, self.filters, groups=x.shape[1]))


@pytest.fixture
def exports(monkeypatch):
    """The networks that were exported."""
    made = []
    monkeypatch.setattr(reuse, "export", lambda module, inputs: made.append(module) or export(module, inputs))
    return made


def compiled(name, module, like=None):
    """A network ready in a runtime, its counters read once."""
    if reason := RUNTIMES[name].missing():
        pytest.skip(reason)
    ready = RUNTIMES[name].compile(module, EXAMPLE, precision="fp32", threads=1, like=like)
    ready.counters()
    return ready


def narrowed(model, share):
    """The network at this share of every width, its channels drawn at random, and its trace."""
    net = trace(model, EXAMPLE)
    keep = {}
    for group in net.groups:
        count = max(1, int(group.width * share))
        keep[group.name] = torch.randperm(group.width)[:count].sort().values.tolist()
    return narrow(model, net, keep), net


def computes(ready, thin):
    """Whether it computes what the module does."""
    with torch.no_grad():
        torch.testing.assert_close(ready.outputs()[0], thin(*EXAMPLE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REUSING)
def test_one_export_serves_every_width(name, exports):
    model = Classifier().eval()
    full = compiled(name, model)
    assert len(exports) == 1
    for share in (0.25, 0.5, 0.75):
        thin, net = narrowed(model, share)
        assert net.groups
        assert thin.depthwise.groups < 16
        ready = compiled(name, thin, like=full)
        computes(ready, thin)
        heavy = {layer.name for layer in net.layers if layer.macs_per_pair}
        assert ready.counters().keys() >= heavy
    assert len(exports) == 1
    computes(full, model)


class Flat(nn.Module):
    """Flattened from a dimension that is left out or counted from the end."""

    def __init__(self, *start):
        super().__init__()
        self.first, self.last, self.start = nn.Conv2d(3, 8, 3), nn.Linear(8 * 14 * 14, 4), start

    def forward(self, x):
        return self.last(self.first(x).flatten(*self.start))


@pytest.mark.parametrize("start", [(), (0,), (-3,)])
@pytest.mark.parametrize("name", ["onnxruntime"])
def test_one_export_serves_every_width_wherever_it_is_flattened_from(name, start, exports):
    model = Flat(*start).eval()
    full = compiled(name, model)
    thin, net = narrowed(model, 0.5)
    assert net.groups
    computes(compiled(name, thin, like=full), thin)
    assert len(exports) == 1


@pytest.mark.parametrize("name", REUSING)
@pytest.mark.parametrize("build", [Shuffle, Scaled, Misnamed])
def test_what_cannot_be_used_again_is_exported_anew(name, build, exports):
    model = build().eval()
    full = compiled(name, model)
    computes(full, model)
    for number, share in enumerate((0.25, 0.5), 2):
        thin, _ = narrowed(model, share)
        computes(compiled(name, thin, like=full), thin)
        assert len(exports) == number


class Residual(nn.Module):
    """A branch that may go, round which all widths may stay what they are."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)
        self.branch = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 1))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x))


@pytest.mark.parametrize("name", REUSING)
def test_a_network_without_one_of_the_layers_is_exported_anew_and_others_are_not(name, exports):
    model = Residual().eval()
    full, net = compiled(name, model), trace(model, EXAMPLE)
    for keep in ({"branch.0": []}, {"branch.0": [1, 3]}, {"branch.0": []}, {"stem": [0, 5], "branch.0": [2]}):
        thin = narrow(model, net, keep)
        computes(compiled(name, thin, like=full), thin)
    assert len(exports) == 3


def test_an_export_of_another_runtime_is_not_used(exports):
    model = Classifier().eval()
    foreign = compiled("torch", model)
    for name in ("openvino", "onnxruntime"):
        before = len(exports)
        compiled(name, model, like=foreign)
        assert len(exports) == before + 1
