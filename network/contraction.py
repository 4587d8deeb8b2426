"""Rules of the operations that read channels: convolutions, linear layers, matrix products, attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from network.calls import Call, rules
from network.elementwise import pointwise
from network.ids import Value

__all__ = ["RULES"]


# ---- convolution -----------------------------------------------------------------------------------------------
def convolution(call: Call) -> Value:
    """conv1d…3d and their transposes: inputs meet the weight's inputs; outputs are the weight's and the bias's."""
    x, weight = call.tensor("input"), call.tensor("weight")
    assert x is not None
    assert weight is not None
    if len(x.shape) != len(weight.shape):
        call.freeze(f"{call.op} without a batch dimension")
        return Value(call.shape)
    transposed = "transpose" in call.op
    axes, kernel = call.axes(x, (1,)), call.axes(weight, (1, 0) if transposed else (0, 1))
    for dim in [dim for dim in axes if dim > 1]:
        call.ledger.freeze(axes.pop(dim), f"{call.op} slides over channels")
    for dim in (dim for dim in kernel if dim > 1):
        call.ledger.freeze(kernel[dim], KERNEL)
    groups = call.arguments["groups"]
    assert isinstance(groups, int)
    read = axes.pop(1, None)
    if groups > 1:
        outputs = _grouped(call, x, weight, read, kernel, groups, transposed)
    else:
        inputs, outputs = (kernel.get(0), kernel.get(1)) if transposed else (kernel.get(1), kernel.get(0))
        if x.shape[1] > 1:
            call.contract(weight, inputs)
            call.follow("in_channels", call.meet(read, inputs, x))
    if (bias := call.tensor("bias")) is not None and call.shape[1] > 1:
        outputs = call.meet(outputs, call.axes(bias).get(0))
    call.follow("out_channels", outputs)
    return call.value(axes | {1: outputs})


KERNEL = "the extent of a kernel"


def _grouped(
    call: Call, x: Value, weight: Value, read: Tensor | None, kernel: dict[int, Tensor], groups: int, transposed: bool
) -> Tensor | None:
    """Output ids of a grouped convolution: many small groups are removed whole, few large ones are thinned alike."""
    if read is None:
        read = call.ledger.reason(f"{call.op} reads {x.origin or 'a fixed extent'}").expand(x.shape[1])
    if 0 not in kernel:
        call.ledger.freeze(read, f"{call.op} with a fixed kernel")
        return None
    inner = kernel.get(1)
    grouped, own = read.reshape(groups, -1), kernel[0].reshape(groups, -1)
    call.follow("in_channels", read)
    if groups >= grouped.size(1):
        call.ledger.tie(grouped, grouped[:, :1])
        call.ledger.tie(own, grouped[:, :1])
        if inner is not None:
            call.ledger.freeze(inner, KERNEL)
        call.follow("groups", grouped[:, 0])
        return grouped[:, :1].expand(groups, call.shape[1] // groups).reshape(-1)
    call.ledger.tie(grouped, grouped[:1])
    call.ledger.tie(own, own[:1])
    if transposed:
        call.contract(weight, kernel[0])
        call.ledger.tie(read, kernel[0])
        return inner.repeat(groups) if inner is not None else None
    if inner is not None:
        call.contract(weight, inner)
        call.ledger.tie(grouped[0], inner)
    return kernel[0]


# ---- products --------------------------------------------------------------------------------------------------
def linear(call: Call) -> Value:
    """x (…, in) · weightᵀ (in, out) + bias."""
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.tensor("bias")
    assert x is not None
    assert weight is not None
    return _linear(call, x, weight, bias)


def _linear(call: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    last = len(x.shape) - 1
    axes, kernel = call.axes(x, (last,)), call.axes(weight, (0, 1))
    read, inputs, outputs = axes.pop(last, None), kernel.get(1), kernel.get(0)
    if x.shape[last] > 1:
        call.contract(weight, inputs)
        read = call.meet(read, inputs, x)
        call.follow("in_features", read)
        for attribute in ("embed_dim", "kdim", "vdim"):
            if read is not None and vars(call.holders[0][1]).get(attribute) == x.shape[last]:
                call.follow_guess([attribute], read, 0)
    if bias is not None and call.shape[-1] > 1:
        outputs = call.meet(outputs, call.axes(bias).get(0))
    call.follow("out_features", outputs)
    return call.value(axes | {len(call.shape) - 1: outputs})


def matmul(call: Call) -> Value:
    """A product with a matrix of weights is a linear layer; one of two activations ties heads first."""
    a, b = call.operands[:2]
    return _product(call, a, b, call.shape)


def _product(call: Call, a: Value, b: Value, shape: tuple[int, ...]) -> Value:
    if len(b.shape) == 2 and len(a.shape) >= 2:
        transposed = Value(b.shape[::-1], [ids.t() for ids in b.ids], weight=b.weight, origin=b.origin)
        return _linear(call, a, transposed)
    if len(a.shape) < 2 or len(b.shape) < 2:
        return _vector_product(call, a, b, shape)
    batch = "".join(chr(ord("a") + i) for i in range(len(shape) - 2))
    letters = [batch[len(batch) - len(t.shape) + 2 :] + ends for t, ends in ((a, "mk"), (b, "kn"))]
    return _contract(call, [a, b], letters, batch + "mn", shape)


def _vector_product(call: Call, a: Value, b: Value, shape: tuple[int, ...]) -> Value:
    """mv, dot, vector · matrix: as matrices with one row or column."""
    batch = "".join(chr(ord("a") + i) for i in range(max(len(a.shape), len(b.shape)) - 2))
    left = "k" if len(a.shape) == 1 else batch[: len(a.shape) - 2] + "mk"
    right = "k" if len(b.shape) == 1 else batch[: len(b.shape) - 2] + "kn"
    output = "".join(letter for letter in batch + "mn" if letter in left + right)
    return _contract(call, [a, b], [left, right], output, shape)


def addmm(call: Call) -> Value:
    """bias + a · b."""
    bias, a, b = call.operands[:3]
    product = _product(call, a, b, call.shape)
    call.args = (product, bias)
    return pointwise(call)


def einsum(call: Call) -> Value:
    """Any equation of one or two operands without repeated letters."""
    equation, operands = str(call.arguments["equation"]).replace(" ", ""), call.operands
    letters, output = _letters(equation, operands)
    if not letters or any(len(set(each)) < len(each) for each in letters):
        call.freeze(f"einsum {equation}")
        return Value(call.shape)
    return _contract(call, operands, letters, output, call.shape)


def _letters(equation: str, operands: Sequence[Value]) -> tuple[list[str], str]:
    """The letters of each operand and of the output, with "…" spelled out; empty where it is implicit."""
    left, arrow, output = equation.partition("->")
    if not arrow:
        return [], ""
    spare = "ZYXWVUTS"
    letters, widest = [], 0
    for each, operand in zip(left.split(","), operands, strict=True):
        hidden = len(operand.shape) - len(each.replace("...", ""))
        widest = max(widest, hidden if "..." in each else 0)
        letters.append(each.replace("...", spare[:hidden][::-1]))
    return letters, output.replace("...", spare[:widest][::-1])


def _contract(
    call: Call, operands: Sequence[Value], letters: Sequence[str], output: str, shape: tuple[int, ...]
) -> Value:
    """One letter, one vector of ids. Undecided channels go to the letters of the output: heads before their insides."""
    found: dict[str, list[tuple[Value, Tensor | None]]] = {}
    for operand, own in zip(operands, letters, strict=True):
        prefer = sorted(range(len(own)), key=lambda i: own[i] not in output)
        axes = call.axes(operand, prefer)
        for dim, letter in enumerate(own):
            if operand.shape[dim] > 1:
                found.setdefault(letter, []).append((operand, axes.get(dim)))
    kept: dict[str, Tensor] = {}
    for letter, views in found.items():
        ids = views[0][1]
        for operand, own_ids in views:
            if letter not in output:
                call.contract(operand, own_ids)
            if own_ids is not views[0][1]:
                ids = call.meet(ids, own_ids, operand if own_ids is None else views[0][0])
        if ids is not None and letter in output:
            kept[letter] = ids
    return call.value({i: kept[letter] for i, letter in enumerate(output) if letter in kept}, shape)


def attention(call: Call) -> Value:
    """softmax(q · kᵀ · scale + mask) · v, as two products; torch's own scale counts the head's channels."""
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))
    assert query is not None
    assert key is not None
    assert value is not None
    if call.arguments.get("scale") is None:
        for ids in query.ids:
            if ids.size(-1) > 1 and ids.numel() == ids.size(-1):
                call.ledger.freeze(ids, "the scale of attention counts them")
    call.ledger.freeze([ids for ids in key.ids if ids.size(-2) > 1], "attention weighs these positions")
    scores_shape = (*query.shape[:-1], key.shape[-2])
    swapped = Value((*key.shape[:-2], *key.shape[:-3:-1]), [ids.transpose(-1, -2) for ids in key.ids])
    scores = _product(call, query, swapped, scores_shape)
    mask = call.tensor("attn_mask")
    if mask is not None:
        call.args, call.kwargs, call.shapes = (scores, mask), {}, (scores_shape, call.shape)
        scores = pointwise(call)
        call.shapes = call.shapes[1:]
    return _product(call, scores, value, call.shape)


def embedding(call: Call) -> Value:
    """Rows of a table: the vocabulary stays, its columns are channels."""
    weight = call.tensor("weight")
    assert weight is not None
    axes = call.axes(weight, (1,))
    if 0 in axes:
        call.ledger.freeze(axes[0], "the vocabulary of an embedding")
    call.follow("embedding_dim", axes.get(1))
    return call.value({len(call.shape) - 1: axes.get(1)})


RULES = rules(
    (convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    (matmul, "matmul mm bmm mv dot vdot"),
    (addmm, "addmm baddbmm addmv"),
    (linear, "linear"),
    (einsum, "einsum"),
    (attention, "scaled_dot_product_attention"),
    (embedding, "embedding"),
)
