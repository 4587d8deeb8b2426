"""Every way that networks couple channels: each narrows exactly, and what cannot is frozen with its reason."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import network
from benchmarks.checks import calibrated, random_keep, relative_difference
from tests.helpers import EXACT, IMAGE

PHOTO = torch.randn(2, *IMAGE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Spade(nn.Module):
    """Spatially-adaptive normalisation: norm(x) · (1 + γ(map)) + β(map)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = nn.Conv2d(3, 10, 3, padding=1)
        self.gamma = nn.Conv2d(10, channels, 3, padding=1)
        self.beta = nn.Conv2d(10, channels, 3, padding=1)

    def forward(self, x: Tensor, photo: Tensor) -> Tensor:
        seen = functional.relu(self.shared(functional.interpolate(photo, size=x.shape[2:])))
        return self.norm(x) * (1 + self.gamma(seen)) + self.beta(seen)


class SpadeGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 12, 3, padding=1), Spade(12)
        self.conv, self.leave = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(functional.interpolate(x, scale_factor=0.5))
        y = y + self.conv(functional.leaky_relu(self.norm(y, x), 0.2))
        return torch.tanh(self.leave(functional.interpolate(y, scale_factor=2.0)))


class OptionA(nn.Module):
    """A shortcut that pads channels with zeros on both sides."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.conv, self.head = nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.Linear(2 * width, 5)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.width // 2, self.width // 2))
        x = functional.relu(self.conv(functional.relu(self.down(x))) + shortcut)
        return self.head(functional.avg_pool2d(x, x.size(3)).view(x.size(0), -1))


class Distillation(nn.Module):
    """Channels split 4 / 12 by attributes, as in information-distillation networks."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.kept, self.passed = channels // 4, channels - channels // 4
        self.enter = nn.Conv2d(3, channels, 3, padding=1)
        self.first, self.second = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(self.passed, self.kept, 1)
        self.join, self.leave = nn.Conv2d(2 * self.kept, channels, 1), nn.Conv2d(channels, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        kept, passed = torch.split(functional.leaky_relu(self.first(x), 0.05), (self.kept, self.passed), dim=1)
        return functional.pixel_shuffle(self.leave(x + self.join(torch.cat([kept, self.second(passed)], 1))), 2)


class ListedSplit(nn.Module):
    """Split sizes in a list, a depthwise kernel for each part."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.splits, self.leave = nn.Conv2d(3, 20, 1), [12, 8], nn.Conv2d(20, 3, 1)
        self.parts = nn.ModuleList(nn.Conv2d(n, n, k, padding=k // 2, groups=n) for n, k in ((12, 3), (8, 5)))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.enter(x), self.splits, 1)
        return self.leave(torch.cat([conv(part) for conv, part in zip(self.parts, parts, strict=True)], 1))


class Shuffle(nn.Module):
    """Grouped convolutions round a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.grouped = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1, groups=3)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.regrouped, self.leave = nn.Conv2d(24, 12, 1, groups=4), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(functional.relu(self.enter(x)))
        b, c, h, w = y.shape
        y = y.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return self.leave(self.regrouped(self.depthwise(y)))


class Transposed(nn.Module):
    """A depthwise multiplier, a depthwise and a grouped transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.up1 = nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=16)
        self.up2, self.leave = nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.up2(functional.relu(self.up1(self.wide(functional.relu(self.enter(x)))))))


class PixelSelfAttention(nn.Module):
    """Attention of one head over positions, as in self-attention GANs."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 3, 1)
        self.query, self.key = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels, channels // 4, 1)
        self.value, self.gamma = nn.Conv2d(channels, channels, 1), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, c, h, w = x.size()
        query, key = self.query(x).view(b, -1, h * w), self.key(x).view(b, -1, h * w)
        attention = torch.softmax(torch.bmm(query.permute(0, 2, 1), key), -1)
        y = torch.bmm(self.value(x).view(b, -1, h * w), attention.permute(0, 2, 1)).view(b, c, h, w)
        return self.leave(self.gamma * y + x)


class Heads(nn.Module):
    """A transformer block whose Python divides the embedding by the number of heads."""

    def __init__(self, width: int = 24, heads: int = 4):
        super().__init__()
        self.num_heads, self.embed, self.norm = heads, nn.Linear(3, width), nn.LayerNorm(width)
        self.qkv, self.proj, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 3)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        b, n, c = x.shape
        shape = (b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = self.qkv(self.norm(x)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * 6**-0.5).softmax(-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))
        return self.leave(x + self.mlp(x))


class NormalisedHeads(nn.Module):
    """Queries and keys normalised within each head; attention and MLP side by side from one projection."""

    def __init__(self, width: int = 24, heads: int = 4):
        super().__init__()
        self.num_heads, self.head_dim, self.parts = heads, width // heads, [2 * width, width, width, width]
        self.embed, self.enter = nn.Linear(3, width), nn.Linear(width, 5 * width)
        self.query_norm, self.key_norm = nn.RMSNorm(width // heads), nn.LayerNorm(width // heads)
        self.attended, self.hidden = nn.Linear(width, width), nn.Linear(2 * width, width)
        self.leave = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2))
        b, n, c = x.shape
        hidden, *qkv = torch.split(self.enter(x), self.parts, -1)
        q, k, v = (part.view(b, n, self.num_heads, self.head_dim) for part in qkv)
        q, k, v = self.query_norm(q).transpose(1, 2), self.key_norm(k).transpose(1, 2), v.transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.leave(x + self.attended(y) + self.hidden(functional.gelu(hidden)))


class PositionBias(nn.Module):
    """A bias per head from relative positions, asked for by a method and not by forward."""

    def __init__(self, heads: int, side: int):
        super().__init__()
        self.num_heads, self.shape = heads, [side, side, heads]
        self.mlp = nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, heads))
        at = torch.arange(side)
        self.register_buffer("offsets", torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).double())
        self.register_buffer("index", torch.arange(side * side).flip(0))

    def bias(self) -> Tensor:
        return self.mlp(self.offsets).view(-1, self.num_heads)[self.index].view(self.shape).permute(2, 0, 1)


class BiasedHeads(nn.Module):
    """Heads with a position bias each; their number is known to two modules."""

    def __init__(self, width: int = 24, heads: int = 4):
        super().__init__()
        self.num_heads, self.embed, self.qkv = heads, nn.Linear(3, width), nn.Linear(width, 3 * width)
        self.positions, self.leave = PositionBias(heads, 16), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2))
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, 6).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.positions.bias().unsqueeze(0))
        return self.leave(y.transpose(1, 2).reshape(b, n, -1))


class RotaryHeads(nn.Module):
    """Heads whose insides are turned by position, all alike, but for the first token; then attention once more."""

    def __init__(self, width: int = 24, heads: int = 4):
        super().__init__()
        self.num_heads, self.embed = heads, nn.Linear(3, width)
        self.first, self.second, self.leave = (nn.Linear(width, n) for n in (3 * width, 3 * width, 3))
        angle = torch.arange(15)[:, None] * torch.tensor([1.0, 0.3, 0.1]).repeat_interleave(2)
        self.register_buffer("sin", angle.sin().double())
        self.register_buffer("cos", angle.cos().double())

    def turned(self, x: Tensor) -> Tensor:
        y = x[:, :, 1:]
        swapped = torch.stack([-y[..., 1::2], y[..., ::2]], -1).reshape(y.shape)
        return torch.cat([x[:, :, :1], y * self.cos + swapped * self.sin], 2)

    def attended(self, x: Tensor, qkv: nn.Module) -> Tensor:
        b, n, c = x.shape
        q, k, v = qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return x + y.transpose(1, 2).reshape(b, n, c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)[:, :16])
        return self.leave(self.attended(self.attended(x, self.first), self.second))


class TorchAttention(nn.Module):
    """torch's own multi-head attention, residual, with layer norm."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.embed, self.norm = nn.Linear(3, width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.leave = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2))
        y = self.norm(x)
        return self.leave(x + self.attention(y, y, y, need_weights=False)[0])


class Modulated(nn.Module):
    """Adaptive instance norm: one vector, chunked into scales and shifts."""

    def __init__(self, channels: int = 12):
        super().__init__()
        self.enter, self.conv = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.style = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 2 * channels))
        self.norm, self.leave = nn.InstanceNorm2d(channels), nn.Conv2d(channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.style(x.mean((2, 3))).chunk(2, 1)
        y = self.norm(self.conv(functional.relu(self.enter(x))))
        return self.leave(y * (1 + scale[:, :, None, None]) + shift[:, :, None, None])


class Normalised(nn.Module):
    """Weight norm, spectral norm, PReLU, pixel shuffles."""

    def __init__(self) -> None:
        super().__init__()
        weight_norm, spectral_norm = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
        self.enter, self.act = weight_norm(nn.Conv2d(12, 16, 3, padding=1)), nn.PReLU(16)
        self.middle, self.leave = spectral_norm(nn.Conv2d(16, 14, 3, padding=1)), nn.Conv2d(14, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.enter(functional.pixel_unshuffle(x, 2)))
        return functional.pixel_shuffle(self.leave(functional.relu(self.middle(y))), 2)


class GroupNorms(nn.Module):
    """Many small groups, few large ones, one."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(n, 32, 1) for n in (3, 32, 32))
        self.norms, self.leave = nn.ModuleList(nn.GroupNorm(n, 32) for n in (16, 4, 1)), nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        return self.leave(x)


class OneAndThree(nn.Module):
    """1-D and 3-D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.volume = nn.Conv1d(3, 12, 3, padding=1), nn.Conv3d(12, 10, 1)
        self.up, self.leave = nn.ConvTranspose1d(10, 8, 2, 2), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.line(x.flatten(2))
        y = self.volume(y.view(y.shape[0], y.shape[1], 4, 8, 8)).flatten(2)
        return self.leave(self.up(y))


class SamePadding(nn.Module):
    """TensorFlow's SAME padding, and a transposed convolution cropped to the first 2H × 2W."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.norm = nn.InstanceNorm2d(12, affine=True, eps=1e-3)
        self.up, self.leave = nn.ConvTranspose2d(12, 8, 3, stride=2, bias=False), nn.Conv2d(8, 3, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.enter(functional.pad(x, (1, 1, 1, 1))))
        y = functional.relu(self.norm(self.down(functional.pad(y, (0, 1, 0, 1)))))
        h, w = y.shape[2:]
        y = functional.relu(self.up(y)[:, :, : 2 * h, : 2 * w])
        return torch.tanh(self.leave(functional.pad(y, (4, 4, 4, 4)))) * 150 + 127.5


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised per output, and its statistics follow the inputs that are left."""

    def __init__(self, width: int, out: int, *, plain: bool = False):
        super().__init__(width, out, 3, padding=1, bias=not plain)
        self.gain = None if plain else nn.Parameter(torch.ones(out))

    def forward(self, x: Tensor) -> Tensor:
        weight = functional.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, weight=self.gain, training=True, momentum=0.0
        ).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class PlainlyStandardised(nn.Sequential):
    """The same without bias or gain: no one-dimensional parameter tells which channels are gone."""

    def __init__(self) -> None:
        convolutions = (Standardised(*widths, plain=True) for widths in ((3, 8), (8, 6), (6, 3)))
        super().__init__(*convolutions)


class Biased(nn.Module):
    """An attention bias that eval mode computes once, and train mode forgets."""

    def __init__(self, heads: int = 4):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, heads, 1), nn.Conv2d(heads, 3, 1)
        self.biases, self.cache = nn.Parameter(torch.rand(heads, 5)), {}

    def train(self, mode: bool = True) -> Biased:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and "bias" not in self.cache:
            self.cache["bias"] = self.biases.sum(1)
        bias = self.biases.sum(1) if self.training else self.cache["bias"]
        return self.leave(functional.relu(self.enter(x) + bias[:, None, None]))


class CrossStage(nn.Module):
    """Halves of an attribute, `self.width // 2`, by split and by slice, as CSPNets write them."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.width, self.enter, self.middle = width, nn.Conv2d(3, width, 1), nn.Conv2d(width // 2, width // 2, 1)
        self.leave = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.enter(x).split(self.width // 2, dim=1)
        y = torch.cat([self.middle(left), right], 1)
        return self.leave(torch.cat([y[:, self.width // 2 :], y[:, : self.width // 2]], 1))


class Blocks(nn.Module):
    """Blocks under torch.autocast and torch.no_grad, one within the other, the last of them making the output."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        with torch.autocast("cpu", enabled=False):
            z = torch.relu(self.middle(y))
            with torch.autocast("cpu", enabled=False):
                z = z * 2
        with torch.autocast("cpu", enabled=False):
            return self.leave(z)


class TheRest(nn.Module):
    """A split into a part that an attribute counts and the rest of another one."""

    def __init__(self, width: int = 14, part: int = 4):
        super().__init__()
        self.width, self.part, self.enter = width, part, nn.Conv2d(3, width, 1)
        self.middle, self.leave = nn.Conv2d(part, part, 3, padding=1), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.enter(x), [self.part, self.width - self.part], 1)
        return self.leave(torch.cat([self.middle(left), right], 1))


class Registers(nn.Module):
    """Tokens of the network's own beside those of the photo: attention weighs all of them."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.tokens, self.embed = nn.Parameter(torch.randn(1, 4, width)), nn.Linear(3, width)
        self.query, self.key, self.value = (nn.Linear(width, 10) for _ in range(3))
        self.leave = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2))
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)
        y = functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), scale=0.3)
        return self.leave(y[:, 4:])


class SeveralOutputs(nn.Module):
    """Outputs in a dict and a tuple, from halves of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.part = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1)
        self.left, self.right = nn.Conv2d(16, 4, 1), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.enter(x)
        c = y.shape[1] // 2
        y = torch.cat([self.part(y[:, :c]), y[:, c:]], 1)
        return {"left": self.left(y), "pooled": (self.right(y.mean((2, 3))),)}


ZOO: list[Callable[[], nn.Module]] = [
    SpadeGenerator, OptionA, Distillation, ListedSplit, Shuffle, Transposed, PixelSelfAttention, Heads, TorchAttention,
    Modulated, Normalised, GroupNorms, OneAndThree, SamePadding, SeveralOutputs,
    PlainlyStandardised, Biased, CrossStage, Registers, TheRest, Blocks, NormalisedHeads, BiasedHeads, RotaryHeads,
]  # fmt: skip


PARTLY_FIXED = (OptionA, Registers, NormalisedHeads, BiasedHeads, RotaryHeads)
"""They pad channels, have tokens of their own, norm or turn the inside of heads, or pick rows by position."""


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """A seeded, calibrated float64 network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return calibrated(build().double(), IMAGE)


def flat(output: object) -> Tensor:
    """All of a network's outputs in one vector."""
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(output)])


def assert_exact(model: nn.Module, net: network.Network, seed: int) -> None:
    """Narrowed equals masked for random channels of every group at once."""
    keep = random_keep(net, seed)
    with torch.no_grad():
        thin, masked = network.narrow(model, net, keep)(PHOTO), network.mask(model, net, keep)(PHOTO)
    assert relative_difference(flat(thin), flat(masked)) <= EXACT


@pytest.mark.parametrize("build", ZOO, ids=lambda build: build.__name__)
def test_every_construction_narrows_exactly(build: Callable[[], nn.Module]) -> None:
    model = built(build)
    net = network.trace(model, (PHOTO,))
    for seed in range(3):
        assert_exact(model, net, seed)


@pytest.mark.parametrize("build", [b for b in ZOO if b not in PARTLY_FIXED], ids=lambda build: build.__name__)
def test_only_inputs_and_outputs_are_frozen(build: Callable[[], nn.Module]) -> None:
    net = network.trace(built(build), (PHOTO,))
    for frozen in net.frozen:
        assert any("the network's" in reason for reason in frozen.reasons), frozen


def test_zero_padded_channels_of_a_shortcut_are_frozen_and_the_others_are_not() -> None:
    net = network.trace(built(OptionA), (PHOTO,))
    padded = [frozen for frozen in net.frozen if "constant padding beside channels" in frozen.reasons]
    assert [frozen.width for frozen in padded] == [8]
    assert net.group("stem").producers == ("stem", "conv")


def test_heads_leave_with_their_share_of_the_embedding() -> None:
    model = built(Heads)
    net = network.trace(model, (PHOTO,))
    group = net.group("embed")
    assert group.width == 4
    thin = network.narrow(model, net, {"embed": [0, 2, 3]})
    assert (thin.num_heads, thin.qkv.weight.shape, thin.norm.normalized_shape) == (3, (54, 18), (18,))


@pytest.mark.parametrize("build", [NormalisedHeads, BiasedHeads, RotaryHeads])
def test_whole_heads_go_where_their_insides_are_normalised_and_where_positions_bias_them(
    build: Callable[[], nn.Module],
) -> None:
    model = built(build)
    net = network.trace(model, (PHOTO,))
    heads = next(group for group in net.groups if group.width == 4)
    thin = network.narrow(model, net, {heads.name: [0, 3]})
    assert thin.num_heads == 2
    if build is BiasedHeads:
        assert (thin.positions.num_heads, list(thin.positions.shape)) == (2, [16, 16, 2])


class Crossed(nn.Module):
    """Photo positions ask tokens: fewer keys than queries, of other extents than the values; once with a mask."""

    def __init__(self, heads: int = 3, inner: int = 4, given: int = 5):
        super().__init__()
        self.heads, self.tokens = heads, nn.Parameter(torch.randn(1, 7, 6))
        self.query, self.key = nn.Linear(3, heads * inner), nn.Linear(6, heads * inner)
        self.value, self.leave = nn.Linear(6, heads * given), nn.Linear(heads * given, 3)
        self.register_buffer("mask", torch.randn(1, 1, 256, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        tokens = self.tokens.expand(len(x), -1, -1) * x.mean(1, keepdim=True)[..., :1]
        q, k, v = self.query(x), self.key(tokens), self.value(tokens)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        y = y + functional.scaled_dot_product_attention(q, k[:, :, :5], v[:, :, :5], self.mask[..., :5], scale=0.5)
        return self.leave(y.transpose(1, 2).flatten(2))


def test_attention_is_counted_and_specified_by_its_keys_too() -> None:
    model = built(Crossed)
    net = network.trace(model, (PHOTO,))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(PHOTO)
    assert net.macs() == counter.get_total_flops() / 2
    specs = [dict(layer.spec.attributes) for layer in net.layers if "attention" in layer.spec.op]
    assert [(spec["keys"], spec["mask"]) for spec in specs] == [("7", "no"), ("5", "yes")]


class Filled(nn.Module):
    """Buffers of zeros that are filled by halves, by views made before and after, and a kernel put together so."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 3, 1)
        self.filters = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.zeros(3, 3, 3, 3, dtype=x.dtype)
        kernel[:, :, 1, 1] = self.filters
        x = functional.conv2d(x, kernel, padding=1)
        h = torch.zeros(len(x), 4, 16, 16, dtype=x.dtype)
        seen = h[:, :, 1:]
        h[:, :, ::2], h[:, :, 1::2] = self.enter(x)[:, :, ::2], self.enter(x)[:, :, 1::2]
        return self.leave(self.middle(seen))


def test_what_is_computed_from_a_buffer_that_is_written_to_is_a_layer() -> None:
    model = built(Filled)
    net = network.trace(model, (PHOTO,))
    weights = [layer.weight for layer in net.layers if layer.spec.op == "conv2d"]
    assert weights == ["filters", "enter.weight", "enter.weight", "middle.weight", "leave.weight"]
    assert [group.name for group in net.groups] == ["middle"]
    assert_exact(model, net, 0)


class MergedHeads(nn.Module):
    """Heads merged into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.leave = nn.Linear(3, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        heads = self.embed(x).view(b, n, -1, 3).permute(2, 0, 1, 3).reshape(-1, n, 3)
        heads = torch.softmax(heads @ heads.transpose(1, 2), -1) @ heads
        return self.leave(heads.view(-1, b, n, 3).permute(1, 2, 0, 3).reshape(b, n, -1))


def test_what_channels_are_counted_in_is_no_batch() -> None:
    model, photo = built(MergedHeads), PHOTO[:1]
    net = network.trace(model, (photo,))
    merged = [layer for layer in net.layers if layer.spec.op in ("matmul", "softmax")]
    assert [layer.c_out.at(net.widths) for layer in merged] == [4, 4, 4]
    sizes = [net.output_bytes(layer, layer.c_out.at(net.widths), item_bytes=1) for layer in merged]
    assert sizes == [4 * 16 * 16, 4 * 16 * 16, 4 * 16 * 3]


def test_blocks_under_autocast_are_part_of_the_graph() -> None:
    model = built(Blocks)
    program = network.export(model, (PHOTO,))
    assert sum("conv2d" in str(node.target) for node in program.graph.nodes) == 3
    with torch.no_grad():
        assert torch.equal(program.module()(PHOTO), model(PHOTO))
    assert {group.name for group in network.trace(model, (PHOTO,)).groups} == {"enter", "middle"}


def test_splits_by_attributes_are_patched() -> None:
    model = built(Distillation)
    net = network.trace(model, (PHOTO,))
    thin = network.narrow(model, net, {"first": [0, 1], "first:2": [0, 4, 7]})
    assert (thin.kept, thin.passed) == (2, 3)


def test_what_a_network_computed_once_in_eval_mode_is_computed_anew_at_another_width() -> None:
    model = built(Biased)
    with torch.no_grad():
        dense = model(PHOTO)
    net = network.trace(model, (PHOTO,))
    assert net.group("enter").width == 4
    assert_exact(model, net, 0)
    with torch.no_grad():
        assert torch.equal(model(PHOTO), dense)
    assert model.cache["bias"].shape == (4,)


def test_the_rest_of_an_attribute_follows_both() -> None:
    model = built(TheRest)
    net = network.trace(model, (PHOTO,))
    assert sorted(group.width for group in net.groups if "enter" in group.producers) == [4, 10]
    thin = network.narrow(model, net, {group.name: [0, 1] for group in net.groups})
    assert (thin.width, thin.part) == (4, 2)


def test_a_fraction_of_an_attribute_follows_it() -> None:
    model = built(CrossStage)
    net = network.trace(model, (PHOTO,))
    keep = random_keep(net, 1, most=0.5)
    thin = network.narrow(model, net, keep)
    assert thin.width == thin.enter.out_channels < 12


def test_tokens_of_the_network_stay() -> None:
    net = network.trace(built(Registers), (PHOTO,))
    (tokens,) = [frozen for frozen in net.frozen if frozen.name == "tokens"]
    assert tokens.width == 4
    assert "attention weighs these positions" in tokens.reasons


def test_statistics_over_channels_make_a_group_soft() -> None:
    net = network.trace(built(GroupNorms), (PHOTO,))
    assert [group.soft for group in net.groups] == [(), ("group_norm",), ("group_norm",)]
    assert [group.width for group in net.groups] == [16, 8, 32]


# ---- what cannot be followed -----------------------------------------------------------------------------------
class LiteralHeads(nn.Module):
    """Four heads, literally: fewer channels give four narrower heads, which is legal and wrong."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.embed, self.qkv = nn.Linear(3, width), nn.Linear(width, 3 * width)
        self.proj, self.leave = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * 0.4).softmax(-1)
        return self.leave(x + self.proj((attention @ v).transpose(1, 2).flatten(2)))


class LiteralView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.conv = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.hidden, self.leave = nn.Linear(8 * 256, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.hidden(self.conv(functional.relu(self.enter(x))).view(-1, 2048)))


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.conv, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.sort(self.conv(functional.relu(self.enter(x))), dim=1).values)


class Picked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.conv, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(functional.relu(self.enter(x)))
        return self.leave(y) * y[:, 2:3] + torch.roll(y, 1, 1).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("build", "frozen", "reason"),
    [
        (LiteralHeads, "qkv", r"test_network_operations\.py:\d+ hard-codes"),
        (LiteralView, "conv", r"the forward fails .*test_network_operations\.py:\d+"),
        (Unknown, "conv", "unknown operation sort"),
        (Picked, "conv", "roll picks channels by position"),
    ],
)
def test_what_cannot_be_followed_is_frozen_with_its_reason(
    build: Callable[[], nn.Module], frozen: str, reason: str
) -> None:
    model = built(build)
    net = network.trace(model, (PHOTO,))
    found = {each.name: "; ".join(each.reasons) for each in net.frozen}
    assert re.search(reason, found[frozen]), found
    for seed in range(3):
        assert_exact(model, net, seed)


# ---- any assembly of them --------------------------------------------------------------------------------------
REPLACING = ("widen", "weight norm", "standardised")


class Assembled(nn.Module):
    """A random chain: every step keeps (N, width, 8, 8) or changes the width."""

    def __init__(self, steps: list[tuple[str, int]]):
        super().__init__()
        self.kinds = [kind for kind, _ in steps]
        self.enter, self.pieces, width = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ModuleList(), 8
        for kind, out in steps:
            self.pieces.append(self._piece(kind, width, out))
            width = {"grouped": 2 * out, "concat": width + out}.get(kind, out if kind in REPLACING else width)
        self.leave = nn.Conv2d(width, 3, 1)

    @staticmethod
    def _piece(kind: str, width: int, out: int) -> nn.Module:
        makers: dict[str, Callable[[], nn.Module]] = {
            "widen": lambda: nn.Conv2d(width, out, 3, padding=1),
            "concat": lambda: nn.Conv2d(width, out, 1),
            "residual": lambda: nn.Sequential(nn.Conv2d(width, out, 1), nn.BatchNorm2d(out), nn.Conv2d(out, width, 1)),
            "depthwise": lambda: nn.Conv2d(width, width, 3, padding=1, groups=width),
            "gate": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid()),
            "norm": lambda: nn.InstanceNorm2d(width, affine=True),
            "resample": lambda: nn.ConvTranspose2d(width, width, 4, 2, 1),
            "tokens": lambda: nn.Linear(width, width),
            "grouped": lambda: nn.Conv2d(width, 2 * out, 3, padding=1, groups=2),
            "shuffle": lambda: nn.Conv2d(width, width, 1, groups=2),
            "pixels": lambda: nn.Conv2d(4 * width, 4 * width, 1),
            "halves": lambda: nn.Conv2d(width // 2, width // 2, 3, padding=1),
            "modulate": lambda: nn.Linear(width, 2 * width),
            "attention": lambda: nn.ModuleList(nn.Conv2d(width, n, 1) for n in (out, out, width)),
            "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(width, out, 1)),
            "standardised": lambda: Standardised(width, out),
            "prelu": lambda: nn.PReLU(width),
        }
        return makers[kind]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for kind, piece in zip(self.kinds, self.pieces, strict=True):
            if kind == "concat":
                x = torch.cat([x, piece(x)], 1)
            elif kind == "residual":
                x = functional.relu(x + piece(x))
            elif kind == "gate":
                x = x * piece(x)
            elif kind == "resample":
                x = functional.avg_pool2d(piece(x), 2)
            elif kind == "tokens":
                b, _, h, w = x.shape
                x = piece(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, -1, h, w)
            elif kind == "shuffle":
                y = piece(x)
                b, c, h, w = y.shape
                x = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
            elif kind == "pixels":
                x = functional.pixel_shuffle(piece(functional.pixel_unshuffle(x, 2)), 2)
            elif kind == "halves":
                left, right = x.chunk(2, 1)
                x = torch.cat([piece(left), right], 1)
            elif kind == "modulate":
                scale, shift = piece(x.mean((2, 3)))[:, :, None, None].chunk(2, 1)
                x = x * (1 + scale) + shift
            elif kind == "attention":
                query, key, value = (each(x).flatten(2) for each in piece)
                x = x + (value @ (key.transpose(1, 2) @ query).softmax(1)).view(x.shape[0], -1, *x.shape[2:])
            else:
                x = functional.relu(piece(functional.pad(x, (1, 1, 1, 1), "reflect"))[..., 1:-1, 1:-1])
        return self.leave(x)


KINDS = [
    "widen", "concat", "residual", "depthwise", "gate", "norm", "resample", "tokens", "grouped", "shuffle", "pixels",
    "halves", "modulate", "attention", "weight norm", "standardised", "prelu",
]  # fmt: skip


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([2, 6, 8])), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_assembly_narrows_exactly_and_loads_again(steps: list[tuple[str, int]], seed: int) -> None:
    model = built(lambda: Assembled(steps))
    net = network.trace(model, (PHOTO,))
    assert_exact(model, net, seed)
    keep = random_keep(net, seed)
    thin, fresh = network.narrow(model, net, keep), built(lambda: Assembled(steps))
    shapes = {name: tuple(value.shape) for name, value in thin.state_dict().items()}
    network.resize(fresh, shapes, network.attributes(net, {name: len(stay) for name, stay in keep.items()}))
    fresh.load_state_dict(thin.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(PHOTO), thin(PHOTO))
