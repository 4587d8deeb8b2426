"""Rules of the operations that keep channels where they are: pointwise, pooling, norms, reductions, quantisers."""

from __future__ import annotations

from torch import Tensor

from network.calls import Call, rules
from network.ids import Value, spans

__all__ = ["RULES", "met", "pointwise"]


def pointwise(call: Call) -> Value:
    """Operands meet element by element; ids that another operand's fixed extent meets are frozen.

    Where a view has split them and a fixed extent, or a weight, meets the inside of the parts only, they are made alike
    inside, so that whole parts go (a rotary embedding turns every head the same way).
    """
    return Value(call.shape, met(call, call.operands))


def met(call: Call, operands: list[Value]) -> list[Tensor]:
    """The ids that are left where these operands meet, broadcast to the rank of the call's output."""
    rank = len(call.shape)
    kept = []
    for cluster in _clusters(operands, rank):
        widest = max((ids for _, ids in cluster), key=lambda ids: ids.numel())
        whole = []
        for i, ids in cluster:
            if operands[i].weight and _inside(ids, widest):
                call.ledger.freeze(ids, f"{call.op} with the inside of heads")
            else:
                call.ledger.tie(widest, ids)
                whole.append((i, ids))
        fixed = _fixed_dims(operands, whole, rank)
        if fixed and not fixed.keys() < set(spans(widest)):
            call.ledger.freeze(widest, f"{call.op} with {next(iter(fixed.values())).origin or 'a fixed extent'}")
            continue
        for dim in fixed:
            alike = widest.narrow(dim, 0, 1)
            call.ledger.tie(widest, alike)
            widest = alike
        kept.append(widest)
    return kept


def _inside(ids: Tensor, widest: Tensor) -> bool:
    """Whether these vary within what a view has split `widest` into, and not from one part to the next."""
    varying = spans(widest)
    return len(varying) > 1 and set(spans(ids)) < set(varying) and varying[0] not in spans(ids)


Cluster = list[tuple[int, Tensor]]


def _clusters(operands: list[Value], rank: int) -> list[Cluster]:
    """(operand, id tensor) pairs, gathered wherever they vary in a common dimension."""
    clusters: list[tuple[set[int], Cluster]] = []
    for i, operand in enumerate(operands):
        for ids in operand.ids:
            aligned = ids.reshape((1,) * (rank - ids.dim()) + tuple(ids.shape))
            dims, members = set(spans(aligned)), [(i, aligned)]
            if not dims:
                continue
            apart = []
            for other_dims, other_members in clusters:
                if other_dims & dims:
                    dims, members = dims | other_dims, other_members + members
                else:
                    apart.append((other_dims, other_members))
            clusters = [*apart, (dims, members)]
    return [members for _, members in clusters]


def _fixed_dims(operands: list[Value], cluster: Cluster, rank: int) -> dict[int, Value]:
    """The dimensions in which the cluster varies and an operand has an extent, but no ids; with that operand."""
    dims = {dim for _, ids in cluster for dim in spans(ids)}
    inside = {i for i, _ in cluster}
    found: dict[int, Value] = {}
    for i, operand in enumerate(operands):
        shape = (1,) * (rank - len(operand.shape)) + operand.shape
        if i not in inside:
            found |= {dim: operand for dim in dims if shape[dim] > 1}
    return found


def same(call: Call) -> Value:
    """clone, dropout, zeros_like, …: one operand, its ids."""
    return Value(call.shape, call.x.ids)


def written(call: Call) -> Value:
    """copy_, index_put_, scatter: what is written into another tensor cannot be followed."""
    call.freeze(f"{call.op} writes into another tensor")
    return Value(call.shape, origin=f"the tensor that {call.op} writes")


def spatial(call: Call) -> list[Value]:
    """Pooling and resampling: channels pass, other channels in a spatial dimension freeze."""
    rank = len(call.x.shape)
    spatial_rank = next((n for n in (1, 2, 3) if f"{n}d" in call.op), rank - 2)
    channel = rank - spatial_rank - 1
    axes = call.axes(call.x, (channel,))
    for dim in [dim for dim in axes if dim > channel]:
        call.ledger.freeze(axes.pop(dim), f"{call.op} over channels")
    call.freeze(f"{call.op} reads them", *call.operands[1:]) if call.operands[1:] else None
    return [call.value(axes, shape) for shape in call.shapes]


# ---- statistics ------------------------------------------------------------------------------------------------
def reduction(call: Call) -> list[Value]:
    """mean, sum, amax, var, norm, …: a statistic over channels is soft, a sum is exact, a position is frozen."""
    rank = len(call.x.shape)
    dims = call.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank))  # type: ignore[call-overload]
    reduced = {dim % rank for dim in dims}
    axes = call.axes(call.x, [dim for dim in range(rank) if dim not in reduced])
    for dim in reduced & axes.keys():
        ids = axes.pop(dim)
        if call.op in ("argmax", "argmin") or (call.op in ("max", "min", "median") and len(call.shapes) > 1):
            call.ledger.freeze(ids, f"{call.op} gives a position among channels")
        elif call.op not in ("sum", "linalg_vector_norm", "norm"):
            call.ledger.soft.append((ids, call.op))
    if len(call.shape) < rank:
        axes = {dim - sum(other < dim for other in reduced): ids for dim, ids in axes.items()}
    return [call.value(axes, shape) for shape in call.shapes]


def softmax(call: Call) -> Value:
    """Over channels it is a soft statistic."""
    dim = call.arguments["dim"]
    assert isinstance(dim, int)
    for ids in call.x.ids:
        if ids.size(dim) > 1:
            call.ledger.soft.append((ids, "softmax"))
    return same(call)


def _channel_norm(call: Call) -> dict[int, Tensor]:
    """Ids of x met with those of the per-channel vectors of a norm, by dimension."""
    channel = 1 if len(call.x.shape) > 1 else 0
    axes = call.axes(call.x, (channel,))
    ids = axes.pop(channel, None)
    for vector in call.operands[1:]:
        if vector.shape != (1,) and call.x.shape[channel] > 1:
            ids = call.meet(ids, call.axes(vector).get(0), call.x)
    for dim in [dim for dim in axes if dim > channel]:
        call.ledger.freeze(axes.pop(dim), f"{call.op} over channels")
    return axes if ids is None else axes | {channel: ids}


def batch_norm(call: Call) -> Value:
    """Batch and instance norm, PReLU: one entry of each vector per channel."""
    if call.x.weight and call.arguments.get("training"):
        return _standardised_weight(call)
    axes = _channel_norm(call)
    call.follow("num_parameters" if call.op == "prelu" else "num_features", axes.get(1))
    return call.value(axes)


def _standardised_weight(call: Call) -> Value:
    """Weight standardisation by batch norm: (1, out, in·k²), statistics over the inputs."""
    for ids in (ids for ids in call.x.ids if spans(ids) != [1]):
        call.ledger.soft.append((ids, "weight standardisation"))
    own = next((ids.reshape(-1) for ids in call.x.ids if spans(ids) == [1]), None)
    for vector in call.operands[1:]:
        call.meet(own, call.axes(vector).get(0))
    return same(call)


def layer_norm(call: Call) -> Value:
    """Layer and RMS norm over the last dimension are soft; over several dimensions they freeze.

    Within heads (queries and keys normalised alone) whole heads go.
    """
    rank, normalized = len(call.shape), call.arguments["normalized_shape"]
    assert isinstance(normalized, (list, tuple))
    if len(normalized) > 1:
        call.freeze(f"{call.op} over several dimensions")
        return Value(call.shape)
    axes = call.axes(call.x, range(rank))
    ids = axes.pop(rank - 1, None)
    for vector in call.operands[1:]:
        if vector.shape != (1,):
            ids = call.meet(ids, call.axes(vector).get(0), call.x)
    if ids is None:
        return call.value(axes)
    call.ledger.soft.append((ids, call.op))
    call.follow("normalized_shape", ids)
    return call.value(axes | {rank - 1: ids})


def group_norm(call: Call) -> Value:
    """Many small groups lose whole groups, exactly; few large ones are thinned alike, which is soft."""
    axes = _channel_norm(call)
    ids = axes.get(1)
    if ids is None:
        return call.value(axes)
    groups = call.arguments["num_groups"]
    assert isinstance(groups, int)
    grouped = ids.reshape(groups, -1)
    if 1 < groups >= grouped.size(1):
        call.ledger.tie(grouped, grouped[:, :1])
        call.follow("num_groups", grouped[:, 0])
    else:
        call.ledger.tie(grouped, grouped[:1])
        call.ledger.soft.append((ids, call.op))
    call.follow("num_channels", ids)
    return call.value(axes)


def weight_norm(call: Call) -> list[Value]:
    """g · v / ‖v‖: magnitudes and directions meet."""
    joined = pointwise(call)
    magnitude = next(t for t in call.operands if t is not call.x)
    return [joined, *(Value(shape, magnitude.ids) for shape in call.shapes[1:])]


def fake_quantize(call: Call) -> Value:
    """Per channel: one entry of scale and zero point for each; per tensor: its operand's ids."""
    axis = call.arguments.get("axis")
    axes = call.axes(call.x)
    if isinstance(axis, int) and call.x.shape[axis] > 1:
        ids = axes.pop(axis, None)
        for vector in call.operands[1:]:
            ids = call.meet(ids, call.axes(vector).get(0), call.x)
        return call.value(axes | {axis: ids})
    return same(call)


RULES = rules(
    (
        same,
        """contiguous clone alias detach dropout feature_dropout alpha_dropout feature_alpha_dropout
        native_dropout to _to_copy type_as lift_fresh lift_fresh_copy zeros_like ones_like rand_like
        randn_like empty_like full_like fill zero float double half bernoulli cumsum _assert_tensor_metadata""",
    ),
    (
        pointwise,
        """celu rrelu softplus mish hardswish hardtanh relu6 selu leaky_relu elu log_sigmoid logsigmoid
        threshold rsub silu gelu hardsigmoid relu glu_jvp""",
    ),
    (
        spatial,
        """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d lp_pool2d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        upsample_nearest1d upsample_linear1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
        upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa grid_sampler grid_sampler_2d""",
    ),
    (
        reduction,
        """mean sum amax amin var std logsumexp linalg_vector_norm norm max min prod var_mean std_mean argmax
        argmin median any all""",
    ),
    (softmax, "softmax _softmax log_softmax _log_softmax"),
    (written, "copy index_put scatter masked_scatter masked_fill_scatter slice_scatter"),
    (batch_norm, "batch_norm instance_norm prelu _native_batch_norm_legit_no_training"),
    (layer_norm, "layer_norm rms_norm"),
    (weight_norm, "_weight_norm _weight_norm_interface"),
    (fake_quantize, "fake_quantize_per_channel_affine fake_quantize_per_tensor_affine"),
    (group_norm, "group_norm"),
)
