"""What a network's weighted layers read and gave: their true calls, caught while the user's own forward runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["LayerCall", "Observer", "Sum", "sample_rows"]

CONVOLUTIONS: dict[Any, tuple[int, bool]] = {
    torch.conv1d: (1, False),
    torch.conv2d: (2, False),
    torch.conv3d: (3, False),
    torch.conv_transpose1d: (1, True),
    torch.conv_transpose2d: (2, True),
    torch.conv_transpose3d: (3, True),
}
QUANTISERS = {
    torch.fused_moving_avg_obs_fake_quant,
    torch.fake_quantize_per_channel_affine,
    torch.fake_quantize_per_tensor_affine,
}
SUMS = {torch.add, Tensor.add, Tensor.add_}
CHANNELWISE = {
    *(torch.add, Tensor.add, torch.sub, Tensor.sub, torch.mul, Tensor.mul, torch.div, Tensor.div),
    *(F.batch_norm, F.dropout),
}
"""What may scale and shift a map channel by channel."""

PLAIN = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a convolution or linear layer: y = op(x, W, b), with its arguments as they really were.

    `spatial` is 0 for linear layers, whose x is (…, C_in); else x is (B, C_in, *extents).
    """

    x: Tensor
    y: Tensor
    bias: Tensor | None
    spatial: int = 0
    transposed: bool = False
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def positions(self) -> int:
        """Output positions, over the batch and all extents."""
        return self.y.numel() // self.y.shape[1 if self.spatial else -1]

    @property
    def mean(self) -> Tensor:
        """The output's mean by channel: (C_out,), float64."""
        return self.y.movedim(1 if self.spatial else -1, -1).flatten(0, -2).double().mean(0)


@dataclass(frozen=True, slots=True)
class Sum:
    """What a layer's output y is added to, such as a shortcut, before that is done: slope · y + offset + other.

    taken: what `take` returned for the layer. other: of y's shape, its channels moved to the end. slope: (C,), by batch
    norms and constant factors between the layer and the sum; 0 for a channel that is constant.
    """

    taken: Any
    other: Tensor
    slope: Tensor


class Observer(TorchFunctionMode):
    """Passes on each call whose weight is one of `weights` (parameter name → tensor), the moment it has been made.

    Watching calls, not modules, meets layers that pad by hand, subclass nn.Conv2d, or are called functionally. A weight
    that a quantiser has rounded counts as the weight. `added` is told what a layer's output is added to, if only a
    scale and a shift of each channel lie between; where both terms are such outputs, of the one that was made last.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        take: Callable[[str, LayerCall], Any],
        added: Callable[[Sum], None] | None = None,
    ):
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self._take, self._added = take, added
        self._rounded: dict[str, Tensor] = {}
        self._terms = WeakIdKeyDictionary()
        self._order = count()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._added is not None and func in SUMS and not kwargs:
            self._tell(*args)
        result = func(*args, **kwargs)
        if func in QUANTISERS and args:
            self._follow(args[0], result)
        elif func is F.linear or func in CONVOLUTIONS:
            found = _arguments(func, args, kwargs)
            name = self._names.get(id(found["weight"]))
            if name is not None:
                taken = self._take(name, _call(func, found, result))
                if self._added is not None:
                    axis = 1 if func in CONVOLUTIONS else -1
                    self._terms[result] = _Term(next(self._order), taken, axis)
        elif len(self._terms) and args and (result is args[0] or func is Tensor.__setitem__):
            self._terms.pop(args[0], None)  # changed in place: no longer what the layer made
        elif len(self._terms) and func in CHANNELWISE:
            self._pass_on(args, result)
        return result

    def _pass_on(self, args: tuple[Any, ...], result: Tensor) -> None:
        """The result is a term too, if it is one argument scaled and shifted by numbers that all items share."""
        maps = [x for x in args if isinstance(x, Tensor) and x.shape == result.shape]
        if len(maps) == 1 and maps[0] in self._terms:
            term = self._terms[maps[0]]
            numbers = [x.numel() for x in args if isinstance(x, Tensor) and x is not maps[0]]
            if all(number <= result.shape[term.axis] for number in numbers):
                self._terms[result] = replace(term, y=maps[0] if term.y is None else term.y)

    def _tell(self, a: Any, b: Any) -> None:
        """Before two maps are added, perhaps in place."""
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a is not b):
            return
        found = [(self._terms[x], x, other) for x, other in ((a, b), (b, a)) if x in self._terms]
        if found and self._added is not None:
            term, x, other = max(found, key=lambda each: each[0].order)
            self._added(Sum(term.taken, other.detach().movedim(term.axis, -1), _slope(term, x)))

    def _follow(self, weight: Tensor, rounded: Tensor) -> None:
        name = self._names.get(id(weight))
        if name is not None:
            self._names.pop(id(self._rounded.get(name)), None)
            self._rounded[name] = rounded  # held, so that nothing else gets its id
            self._names[id(rounded)] = name


@dataclass(frozen=True, slots=True)
class _Term:
    """The layer that a map comes from: when it was called, what `take` said, its channels' axis, and its output y, None
    if the map is y itself.
    """

    order: int
    taken: Any
    axis: int
    y: Tensor | None = None


def _slope(term: _Term, x: Tensor) -> Tensor:
    """By how much the map x changes with the layer's output, by channel: (C,)."""
    if term.y is None:
        return torch.ones(x.shape[term.axis], dtype=x.dtype, device=x.device)
    y, x = (each.detach().movedim(term.axis, -1).flatten(0, -2) for each in (term.y, x))
    y = y - y.mean(0)
    spread = y.square().sum(0)
    return torch.where(spread > 0, (y * x).sum(0) / spread, 0.0)


def _arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = TRANSPOSED if func in CONVOLUTIONS and CONVOLUTIONS[func][1] else PLAIN
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _call(func: Any, found: Mapping[str, Any], y: Tensor) -> LayerCall:
    if func is F.linear:
        return LayerCall(found["input"].detach(), y.detach(), found.get("bias"))
    spatial, transposed = CONVOLUTIONS[func]
    kernel = tuple(found["weight"].shape[2:])
    dilation = _tuple(found.get("dilation", 1), spatial)
    padding = found.get("padding", 0)
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    return LayerCall(
        found["input"].detach(),
        y.detach(),
        found.get("bias"),
        spatial=spatial,
        transposed=transposed,
        groups=found.get("groups", 1),
        kernel=kernel,
        stride=_tuple(found.get("stride", 1), spatial),
        padding=_tuple(0 if padding == "valid" else padding, spatial),
        dilation=dilation,
    )


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list | torch.Size) else (value,)
    return values * length if len(values) == 1 else values


def sample_rows(call: LayerCall, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The layer as a linear map at some output positions: X @ W_flat + b = Y.

    positions: (P,) flat indices over (batch, *output extents), or over all leading axes for linear layers.
    Returns X (P, C_in·K), kernel offset fastest, and Y (P, C_out). A transposed convolution reads, for each kernel
    offset, the input position that lands on the output position, or nothing.
    """
    if call.spatial == 0:
        return call.x.flatten(0, -2)[positions], call.y.flatten(0, -2)[positions]
    extents = call.y.shape[2:]
    index = torch.unravel_index(positions, (len(call.y), *extents))
    batch, output = index[0], torch.stack(index[1:], 1)
    offsets = torch.tensor(list(product(*map(range, call.kernel))), device=positions.device)
    source, valid = _sources(call, output[:, None, :], offsets[None])
    clipped = [source[..., d].clamp(0, size - 1) for d, size in enumerate(call.x.shape[2:])]
    rows = call.x.movedim(1, -1)[(batch[:, None], *clipped)] * valid[..., None].to(call.x.dtype)
    y = call.y.movedim(1, -1)[(batch, *output.unbind(1))]
    return rows.transpose(1, 2).flatten(1), y


def _sources(call: LayerCall, output: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Input positions (P, K, spatial) that meet these outputs at these offsets, and which of them exist (P, K)."""
    stride, padding, dilation = (
        torch.tensor(v, device=output.device) for v in (call.stride, call.padding, call.dilation)
    )
    if call.transposed:
        reach = output + padding - offsets * dilation
        source, whole = reach.div(stride, rounding_mode="floor"), (reach % stride == 0).all(-1)
    else:
        source = output * stride - padding + offsets * dilation
        whole = torch.ones(source.shape[:-1], dtype=torch.bool, device=output.device)
    extents = torch.tensor(call.x.shape[2:], device=output.device)
    return source, whole & (source >= 0).all(-1) & (source < extents).all(-1)
