"""The layers of a traced network: what each operation is, whatever its widths, and which widths it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from network.groups import Grouping
from network.ids import Value
from network.propagation import Operation, Propagation
from network.types import Layer, LayerSpec, Width

__all__ = ["build_layers"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = _words(
    """view reshape _unsafe_view view_as reshape_as permute transpose t numpy_T mT adjoint movedim moveaxis swapaxes
    swapdims flatten unflatten squeeze unsqueeze expand expand_as select slice narrow unbind split
    split_with_sizes unsafe_split chunk unsafe_chunk tensor_split alias detach dropout feature_dropout
    alpha_dropout feature_alpha_dropout to _to_copy type_as contiguous clone lift_fresh lift_fresh_copy unfold
    as_strided diagonal zeros_like ones_like empty_like full_like _assert_tensor_metadata"""
)
LAST = _words("linear layer_norm rms_norm embedding")
FIRST = _words("batch_norm instance_norm group_norm prelu pixel_shuffle pixel_unshuffle channel_shuffle")
ATTENTION = "scaled_dot_product_attention"
PRODUCTS = _words(f"matmul mm bmm addmm baddbmm einsum {ATTENTION} mv dot")
STATIC = _words(
    """stride padding dilation output_padding kernel_size ceil_mode output_size scale_factors align_corners pad mode
    dim keepdim upscale_factor downscale_factor is_causal interpolation_mode padding_mode num_groups repeats
    shifts dims exponent"""
)


THROUGH = _words("batch_norm add")
"""What a runtime takes into the layer before it and goes on from: the activation behind is then part of that too."""


def build_layers(state: Propagation, grouping: Grouping) -> tuple[Layer, ...]:
    """One layer for every operation that does work on activations; views are looked through."""
    by_name = {operation.name: operation for operation in state.operations}
    works = [operation for operation in state.operations if _works(operation)]
    inputs = {operation.name: _inputs(operation, by_name) for operation in works}
    readers: dict[str, list[Operation]] = {operation.name: [] for operation in works}
    for operation in works:
        for name in inputs[operation.name]:
            readers[name].append(operation)
    return tuple(
        _layer(
            operation,
            grouping,
            inputs[operation.name],
            fused=(
                *sorted({f"<{by_name[name].op}" for name in inputs[operation.name]}),
                *sorted(_behind(operation, readers, THROUGH)),
            ),
        )
        for operation in works
    )


def _works(operation: Operation) -> bool:
    outputs = operation.outputs[0]
    return operation.op not in VIEWS and not outputs.weight and outputs.constant is None


def _behind(operation: Operation, readers: Mapping[str, Sequence[Operation]], through: frozenset[str]) -> set[str]:
    """What reads this operation, and behind each of `through`, once, what reads that: `>batch_norm>relu`."""
    found = set()
    for reader in readers[operation.name]:
        further = _behind(reader, readers, through - {reader.op}) if reader.op in through else set()
        found |= {f">{reader.op}{path}" for path in further or {""}}
    return found


def _inputs(operation: Operation, by_name: dict[str, Operation]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    pending = list(reversed(operation.inputs))
    while pending:
        source = by_name.get(pending.pop())
        if source is not None and _works(source):
            found[source.name] = None
        elif source is not None and not source.outputs[0].weight:
            pending.extend(reversed(source.inputs))
    return tuple(found)


def _layer(operation: Operation, grouping: Grouping, inputs: tuple[str, ...], fused: tuple[str, ...]) -> Layer:
    output = operation.outputs[0]
    activations = [o for o in operation.operands if not o.weight] or list(operation.operands)
    x = _read(operation) if _is_reader(operation) else max(activations, key=lambda o: prod(o.shape))
    channel_in, channel_out = _channel(operation, grouping, x), _channel(operation, grouping, output)
    c_in, c_out = _extent(grouping, x, channel_in), _extent(grouping, output, channel_out)
    c_in, per_pair, per_channel = _multiplications(operation, grouping, c_in, c_out)
    weight = operation.arguments.get("weight") or next((o for o in operation.operands if o.weight), None)
    named = isinstance(weight, Value) and weight.weight and (_is_reader(operation) or operation.op in FIRST | LAST)
    return Layer(
        name=operation.name,
        module=operation.path,
        spec=LayerSpec(
            op=operation.op,
            attributes=_attributes(operation),
            batch=1 if channel_out == 0 or not x.shape else x.shape[0],  # else channels would be counted twice
            spatial_in=_spatial(x, channel_in),
            spatial_out=_spatial(output, channel_out),
            fused_with=fused,
        ),
        c_in=c_in,
        c_out=c_out,
        inputs=inputs,
        weight=weight.sources[0] if named and isinstance(weight, Value) and weight.sources else None,
        macs_per_pair=per_pair,
        macs_per_channel=per_channel,
    )


# ---- axes ------------------------------------------------------------------------------------------------------
def _is_reader(operation: Operation) -> bool:
    return operation.op.startswith("conv") or operation.op == "linear" or operation.op in PRODUCTS


def _read(operation: Operation) -> Value:
    return next((o for o in operation.operands if not o.weight), operation.operands[0])


def _channel(operation: Operation, grouping: Grouping, value: Value) -> int | None:
    """The channel axis: fixed by what the operation is, else where ids are, else 1."""
    rank = len(value.shape)
    if rank == 0:
        return None
    if operation.op in LAST:
        return rank - 1
    if operation.op in FIRST or operation.op.startswith("conv"):
        return min(1, rank - 1)
    found = grouping.channel_dim(value)
    return min(1, rank - 1) if found is None else found


def _extent(grouping: Grouping, value: Value, dim: int | None) -> Width:
    return Width(1) if dim is None else grouping.extent(value, dim)


def _spatial(value: Value, channel: int | None) -> tuple[int, ...]:
    return tuple(n for dim, n in enumerate(value.shape) if dim not in (0, channel))


# ---- static arguments ------------------------------------------------------------------------------------------
def _attributes(operation: Operation) -> tuple[tuple[str, str], ...]:
    found = {
        name: _text(value)
        for name, value in operation.arguments.items()
        if name in STATIC and value is not None and not isinstance(value, Value)
    }
    weight = operation.arguments.get("weight")
    if operation.op.startswith("conv") and isinstance(weight, Value):
        found["kernel"] = _text(weight.shape[2:])
        found["groups"] = _group_kind(operation)
    if _is_reader(operation) and operation.op not in PRODUCTS:
        found["bias"] = "yes" if isinstance(operation.arguments.get("bias"), Value) else "no"
    if operation.op == ATTENTION:
        key = operation.arguments["key"]
        assert isinstance(key, Value)
        found["keys"] = _text(key.shape[-2])
        found["mask"] = "yes" if isinstance(operation.arguments.get("attn_mask"), Value) else "no"
    others = [o for o in operation.operands if not o.weight]
    if len(others) > 1 and not _is_reader(operation):
        whole = prod(operation.outputs[0].shape)
        found["operands"] = "+".join(_share(prod(o.shape), whole) for o in others)
    return tuple(sorted(found.items()))


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(_text(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _share(own: int, whole: int) -> str:
    return "full" if own == whole else "scalar" if own == 1 else "part"


def _group_kind(operation: Operation) -> str:
    groups = operation.arguments["groups"]
    channels = operation.operands[0].shape[1]
    return "dense" if groups == 1 else "depthwise" if groups == channels else str(groups)


# ---- multiply-accumulates --------------------------------------------------------------------------------------
def _multiplications(operation: Operation, grouping: Grouping, c_in: Width, c_out: Width) -> tuple[Width, float, float]:
    """(c_in, macs per channel pair, macs per output channel)."""
    output = operation.outputs[0]
    if operation.op.startswith("conv"):
        return c_in, *_conv_macs(operation, c_in, c_out)
    if operation.op == "linear":
        return c_in, prod(output.shape[:-1]), 0.0
    if operation.op == ATTENTION:
        return _attention_macs(operation, grouping, c_in, c_out)
    if operation.op in PRODUCTS:
        return _product_macs(operation, grouping, c_in, c_out)
    return c_in, 0.0, 0.0


def _conv_macs(operation: Operation, c_in: Width, c_out: Width) -> tuple[float, float]:
    weight, x, output = operation.arguments["weight"], operation.operands[0], operation.outputs[0]
    groups = operation.arguments["groups"]
    assert isinstance(weight, Value)
    assert isinstance(groups, int)
    positions = x if "transpose" in operation.op else output
    taps = prod(weight.shape[2:]) * positions.shape[0] * prod(positions.shape[2:])
    inside = x.shape[1] // groups
    if groups > 1 and groups >= inside:
        return 0.0, float(taps * inside)
    return taps / groups, 0.0


def _product_macs(operation: Operation, grouping: Grouping, c_in: Width, c_out: Width) -> tuple[Width, float, float]:
    """Matrix products: the contracted extent is c_in where it loses channels, else it is part of the constant."""
    output = operation.outputs[0]
    a, b = _factors(operation)
    inner = a.shape[-1]
    total = prod(output.shape) * inner
    inner_width = grouping.extent(a, len(a.shape) - 1)
    widest = _full(grouping, c_out)
    if inner_width.terms and operation.op != "einsum":
        return inner_width, total / inner / widest, 0.0
    if b.weight and operation.op != "einsum":
        return Width(inner), total / inner / widest, 0.0
    if operation.op == "einsum":
        total = _einsum_macs(operation)
    return c_in, 0.0, total / widest


def _attention_macs(operation: Operation, grouping: Grouping, c_in: Width, c_out: Width) -> tuple[Width, float, float]:
    """Queries by keys over the d channels of a head, and weights by values over its d_v: both for every pair.

    Where d loses channels it is c_in. Where d_v does, the first product counts as if it became smaller too.
    """
    query, key = operation.arguments["query"], operation.arguments["key"]
    assert isinstance(query, Value)
    assert isinstance(key, Value)
    output, inner = operation.outputs[0], query.shape[-1]
    pairs = prod(output.shape[:-1]) * key.shape[-2] / _full(grouping, c_out)
    inner_width = grouping.extent(query, len(query.shape) - 1)
    if inner_width.terms:
        return inner_width, pairs, pairs * output.shape[-1]
    return c_in, 0.0, pairs * (inner + output.shape[-1])


def _full(grouping: Grouping, width: Width) -> int:
    """The count at full width, at least 1."""
    return max(1, width.fixed + sum(m * grouping.full(name) for name, m in width.terms))


def _factors(operation: Operation) -> tuple[Value, Value]:
    skip = 1 if operation.op in ("addmm", "baddbmm") else 0
    pair: Sequence[Value] = operation.operands[skip : skip + 2]
    return pair[0], pair[-1]


def _einsum_macs(operation: Operation) -> int:
    """The product of the extents of all letters: every operand's and the output's elements, letters counted once."""
    equation = str(operation.arguments["equation"]).replace(" ", "").partition("->")[0]
    if "..." in equation:
        return prod(operation.outputs[0].shape) * operation.operands[0].shape[-1]
    extents = {
        letter: extent
        for letters, operand in zip(equation.split(","), operation.operands, strict=True)
        for letter, extent in zip(letters, operand.shape, strict=True)
    }
    return prod(extents.values())
