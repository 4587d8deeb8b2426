"""Rules of the operations that move data: they run literally on the ids, and only guard against what positions hide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from network.calls import Call, Reshape, rules
from network.elementwise import met
from network.ids import Value, spans

__all__ = ["RULES"]

aten = torch.ops.aten


def move(call: Call) -> list[Value]:
    """The very operation, on ids: flatten, permute, expand, repeat, pixel_unshuffle, im2col, …"""
    if any(operand.constant is None for operand in call.operands[1:]):
        call.freeze(f"{call.op} by positions that depend on the data")
        return [Value(shape) for shape in call.shapes]
    return call.moved([call.run(ids.expand(call.x.shape)) for ids in call.x.ids])


def move_as(call: Call) -> list[Value]:
    """expand_as, view_as, reshape_as: the shape is known, so move there."""
    move_to = aten.expand.default if call.op == "expand_as" else aten.reshape.default
    return call.moved([[move_to(ids.expand(call.x.shape), call.shape)] for ids in call.x.ids])


def view(call: Call) -> list[Value]:
    """view, reshape, unflatten, expand: extents that the user wrote may have to follow the channels."""
    target = call.target if call.op in ("unflatten", "expand") else aten.reshape.default
    (output,) = call.moved([call.run(ids.expand(call.x.shape), target) for ids in call.x.ids])
    sizes = _requested_sizes(call)
    listed = call.guess_list(sizes)
    for ids in output.ids:
        varying = spans(ids)
        call.reshapes.append(Reshape(call.node, ids, sizes, split=len(varying) > 1))
        for dim in varying:
            if sizes[dim] == -1:
                continue
            if listed:
                call.follow_guess([f"{listed}.{dim}"], ids, dim)
            if attributes := call.guess(ids.size(dim)):
                call.follow_guess(attributes, ids, dim)
            elif repeated := _repeated(ids, dim):
                call.follow_guess(call.guess(repeated), ids.narrow(dim, 0, repeated), dim)
    return [output]


def _requested_sizes(call: Call) -> tuple[int, ...]:
    sizes = call.arguments.get("size") or call.arguments.get("shape") or call.arguments.get("sizes")
    given = tuple(int(n) for n in sizes) if isinstance(sizes, Sequence) else call.shape
    if call.op != "unflatten":
        return given
    dim = int(call.arguments["dim"]) % len(call.x.shape)  # type: ignore[call-overload]
    return call.shape[:dim] + given + call.shape[dim + len(given) :]


def _repeated(ids: Tensor, dim: int) -> int | None:
    """The period of ids that repeat along a dimension, as heads do once a view has merged the batch into them."""
    extent = ids.size(dim)
    same = (ids.movedim(dim, 0).reshape(extent, -1)[:, :1] == ids.reshape(-1)[0]).reshape(-1).nonzero().reshape(-1)
    period = int(same[1]) if len(same) > 1 else extent
    if period == extent or extent % period:
        return None
    first = ids.narrow(dim, 0, period)
    return period if all(bool((first == ids.narrow(dim, i, period)).all()) for i in range(0, extent, period)) else None


def pick(call: Call) -> list[Value]:
    """select, unbind, roll, index, gather, …: positions along a dimension are named, so it must keep its extent.

    Ids that vary in other dimensions too are made alike along it (the q, k and v of one projection).
    """
    dims = _picked_dims(call)
    for ids in call.x.ids:
        for dim in (d for d in spans(ids) if d in dims):
            if len(spans(ids)) > 1:
                call.ledger.tie(ids, ids.narrow(dim, 0, 1))
            else:
                call.ledger.freeze(ids, f"{call.op} picks channels by position")
    return move(call)


def _picked_dims(call: Call) -> set[int]:
    rank = len(call.x.shape)
    if call.op == "index":
        indices = call.arguments["indices"]
        assert isinstance(indices, Sequence)
        return {dim for dim, index in enumerate(indices) if index is not None}
    dims = next((call.arguments[n] for n in ("dim", "dims", "dimension") if n in call.arguments), ())
    dims = [dims] if isinstance(dims, int) else list(dims)  # type: ignore[call-overload]
    return {dim % rank for dim in dims} or set(range(rank))


def everything(call: Call) -> list[Value]:
    """as_strided, rot90, diagonal: too literal to follow."""
    call.freeze(f"{call.op} addresses channels by position")
    return [Value(shape) for shape in call.shapes]


def pixel_shuffle(call: Call) -> list[Value]:
    """The r² channels of one pixel go together."""
    (output,) = move(call)
    return [call.value(call.axes(output, (len(output.shape) - 3,)))]


def channel_shuffle(call: Call) -> list[Value]:
    """Groups of channels interleave: positions alike in every group."""
    groups = call.arguments["groups"]
    for ids in (ids for ids in call.x.ids if ids.size(1) > 1):
        _chunks_alike(call, ids, 1, ids.size(1) // groups)  # type: ignore[operator]
    return move(call)


def _chunks_alike(call: Call, ids: Tensor, dim: int, size: int) -> None:
    extent = ids.size(dim)
    for start in range(size, extent - extent % size, size):
        call.ledger.tie(ids.narrow(dim, 0, size), ids.narrow(dim, start, size))


def slices(call: Call) -> list[Value]:
    """A slice of channels: at a module's attribute, else into equal chunks, else frozen.

    Of channels that a view has split, those inside (the halves of a rotary embedding) are made alike: whole heads go.
    """
    dim = int(call.arguments["dim"]) % len(call.x.shape)  # type: ignore[call-overload]
    extent, step = call.x.shape[dim], call.arguments.get("step", 1)
    length = call.shape[dim]
    start, end, _ = slice(call.arguments["start"], call.arguments.get("end")).indices(extent)
    end = start + length if call.op == "narrow" else end
    cuts = [cut for cut in (start, end) if 0 < cut < extent]
    names = [call.guess(cut) for cut in cuts]
    for ids in (ids for ids in call.x.ids if ids.size(dim) > 1 and length < extent):
        if cuts and all(names) and step == 1:
            for name, cut in zip(names, cuts, strict=True):
                call.follow_guess(name, ids.narrow(dim, 0, cut), dim)
        elif extent % length == 0 and step == 1 and start % length == 0:
            _chunks_alike(call, ids, dim, length)
            _follow_whole(call, names, ids, dim)
        elif len(spans(ids)) > 1:
            call.ledger.tie(ids, ids.narrow(dim, 0, 1))
        else:
            call.ledger.freeze(ids, "a slice of channels at fixed positions")
    return move(call)


def split(call: Call) -> list[Value]:
    """split, chunk, tensor_split: equal parts stay alike; uneven ones follow attributes, else freeze."""
    dim = int(call.arguments["dim"]) % len(call.x.shape)  # type: ignore[call-overload]
    sizes = [shape[dim] for shape in call.shapes]
    names = _part_names(call, sizes)
    for ids in (ids for ids in call.x.ids if ids.size(dim) > 1):
        parts = ids.split(sizes, dim)
        if len(set(sizes)) == 1:
            _chunks_alike(call, ids, dim, sizes[0])
            _follow_whole(call, names, ids, dim)
        elif names.count(()) == 1 and (whole := call.guess(ids.size(dim))):  # the rest, `self.width - self.part`
            call.follow_guess(whole, ids, dim)
        elif not all(names):
            call.ledger.freeze(ids, f"uneven {call.op} of channels")
        for name, part in zip(names, parts, strict=True):
            call.follow_guess(name, part, dim)
    return move(call)


def _follow_whole(call: Call, names: Sequence[Sequence[str]], ids: Tensor, dim: int) -> None:
    """Equal parts whose size no attribute has are a fraction of one, `self.width // 2`: it follows the whole extent."""
    if not all(names):
        call.follow_guess(call.guess(ids.size(dim)), ids, dim)


def _part_names(call: Call, sizes: list[int]) -> list[tuple[str, ...]]:
    if not call.op.startswith("split"):
        return [()] * len(sizes)
    listed = call.guess_list(sizes)
    return [(f"{listed}.{i}",) for i in range(len(sizes))] if listed else [call.guess(size) for size in sizes]


def cat(call: Call) -> Value:
    """Concatenation: ids side by side along its dimension, met along the others."""
    tensors = [t for t in call.operands if t.shape != (0,)]
    dim = int(call.arguments["dim"]) % len(call.shape)  # type: ignore[call-overload]
    return _joined(call, tensors, dim)


def stack(call: Call) -> Value:
    """Concatenation along a new dimension."""
    dim = int(call.arguments["dim"]) % len(call.shape)  # type: ignore[call-overload]
    tensors = [
        Value((*t.shape[:dim], 1, *t.shape[dim:]), [ids.unsqueeze(dim) for ids in t.ids], origin=t.origin)
        for t in call.operands
    ]
    return _joined(call, tensors, dim)


def _joined(call: Call, tensors: list[Value], dim: int) -> Value:
    if all(ids.size(dim) == 1 for t in tensors for ids in t.ids):  # heads stay split where only positions are joined
        flat = [Value((*t.shape[:dim], 1, *t.shape[dim + 1 :]), t.ids, origin=t.origin) for t in tensors]
        return Value(call.shape, met(call, flat))
    axes = [call.axes(t, (dim,)) for t in tensors]
    joined: dict[int, Tensor | None] = {}
    for other in sorted({k for each in axes for k in each if k != dim}):
        ids = axes[0].get(other)
        for each in axes[1:]:
            ids = call.meet(ids, each.get(other))
        joined[other] = ids
    if any(dim in each for each in axes):
        fixed = call.ledger.reason(f"{call.op} with a fixed part")
        parts = zip(tensors, axes, strict=True)
        joined[dim] = torch.cat([each.get(dim, fixed.expand(t.shape[dim])) for t, each in parts])
    return call.value(joined)


def pad(call: Call) -> Value:
    """Padding; constant channels padded beside others (option-A shortcuts) are frozen, the others are not."""
    amounts = call.arguments.get("pad") or call.arguments.get("padding")
    assert isinstance(amounts, Sequence)
    constant = call.arguments.get("mode", "constant") == "constant" and "tion_pad" not in call.op
    padded = []
    for ids in call.x.ids:
        own = [0] * len(amounts)
        for i in range(len(amounts) // 2):
            if ids.size(ids.dim() - 1 - i) > 1:
                own[2 * i : 2 * i + 2] = amounts[2 * i : 2 * i + 2]
        if any(own) and (not constant or min(own) < 0):
            call.ledger.freeze(ids, f"{call.op} of channels")
            continue
        fill = float(call.ledger.reason("constant padding beside channels"))
        padded.append(functional.pad(ids, own, value=fill) if any(own) else ids)
    return Value(call.shape, padded)


RULES = rules(
    (
        move,
        """permute transpose t numpy_T mT adjoint movedim moveaxis swapaxes swapdims flatten squeeze unsqueeze
        repeat tile repeat_interleave flip im2col pixel_unshuffle""",
    ),
    (move_as, "expand_as view_as reshape_as"),
    (view, "view reshape _unsafe_view unflatten expand"),
    (pick, "select unbind roll index index_select gather unfold"),
    (everything, "as_strided rot90 diagonal"),
    (split, "split split_with_sizes unsafe_split chunk unsafe_chunk tensor_split"),
    (channel_shuffle, "channel_shuffle native_channel_shuffle"),
    (cat, "cat concat concatenate"),
    (
        pad,
        """pad constant_pad_nd zero_pad2d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
        replication_pad2d replication_pad3d _pad_circular""",
    ),
    (pixel_shuffle, "pixel_shuffle"),
    (slices, "slice narrow"),
    (stack, "stack"),
)
