"""The table of operations: which rule follows which ATen operation, and what happens to one that is not in it."""

from __future__ import annotations

import torch

from network import contraction, elementwise, movement
from network.calls import Call, Rule
from network.ids import Value

__all__ = ["RULES", "apply", "base_name"]

RULES: dict[str, Rule] = {**movement.RULES, **elementwise.RULES, **contraction.RULES}


def base_name(target: object) -> str:
    """The ATen name without overload or trailing underscore: aten.relu_.default → relu."""
    name = target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else _plain(target)
    return name.rstrip("_") or name


def _plain(target: object) -> str:
    return str(getattr(target, "__name__", target)).split(".")[0]


def apply(call: Call) -> list[Value]:
    """Propagate one call. An operation without a rule freezes what touches it and says so."""
    rule = _rule(call)
    if rule is None:
        call.freeze(f"unknown operation {call.op}")
        outputs = [Value(shape, origin=f"the output of {call.op}") for shape in call.shapes]
    else:
        result = rule(call)
        outputs = result if isinstance(result, list) else [result]
    _inherit(call, outputs)
    return outputs


def _rule(call: Call) -> Rule | None:
    if call.op in RULES and (call.op not in ("max", "min") or len(call.operands) == 1):
        return RULES[call.op]
    if call.op.startswith("new_"):
        return lambda call: Value(call.shape)
    tagged = isinstance(call.target, torch._ops.OpOverload) and torch.Tag.pointwise in call.target.tags
    return elementwise.pointwise if tagged else None


def _inherit(call: Call, outputs: list[Value]) -> None:
    """What outputs take from the operands: being weights, the parameters behind them, why their extents are fixed."""
    operands = call.operands
    weight = any(o.weight for o in operands) and all(o.weight or o.constant is not None for o in operands)
    sources = tuple(dict.fromkeys(name for o in operands for name in o.sources)) if weight else ()
    origin = next((o.origin for o in operands if o.origin), "")
    for output in outputs:
        output.weight, output.sources = weight, sources
        output.origin = output.origin or ("" if output.ids else origin)
