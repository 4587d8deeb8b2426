"""From an exported graph to ids on every tensor: parameters get ids, and each operation's rule carries them on."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from network.calls import Call, Note, Reshape
from network.ids import Ledger, Value, along
from network.narrowing import named_tensors
from network.operations import apply, base_name
from network.quantisers import observations, quantises

__all__ = ["Operation", "Propagation", "propagate"]

Holders = tuple[tuple[str, nn.Module], ...]

LARGEST_CONSTANT = 1_000_000  # elements: larger tables are not computed ahead; reading positions from them freezes


@dataclass(frozen=True, slots=True)
class Operation:
    """One call_function node that was propagated: its operands and outputs, for building layers."""

    name: str
    op: str
    path: str
    arguments: dict[str, object]
    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    inputs: tuple[str, ...]
    where: str


@dataclass(slots=True)
class Propagation:
    """Ids of every parameter dimension, {name: {dim: ids}}, and all that the calls recorded."""

    ledger: Ledger = field(default_factory=Ledger)
    parameters: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    reshapes: list[Reshape] = field(default_factory=list)


def propagate(program: torch.export.ExportedProgram, model: nn.Module) -> Propagation:
    """Run every rule once, in the graph's order. Parameters that share storage share ids, under their first name."""
    state = Propagation()
    signature = program.graph_signature
    named = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    lifted = dict(signature.inputs_to_lifted_tensor_constants)
    tensors = named_tensors(model)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    known: dict[str, Value] = {}
    env: dict[fx.Node, Any] = {}
    running = {path for node in program.graph.nodes for path in _stack(node)}

    @cache
    def holders(path: str) -> Holders:
        return _holders(model, path, running)

    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in named:
            if node.users:
                tensor = tensors[named[node.name]]
                name = first[id(tensor)]
                if name not in known:
                    known[name] = _parameter(state, name, tensor, _owner(model, name), _is_zero_point(node))
                env[node] = known[name]
        elif node.op == "placeholder":
            constant = program.constants[lifted[node.name]] if node.name in lifted else None
            env[node] = _input(node, constant)
        elif node.op == "call_function":
            env[node] = _call(state, node, env, model, holders)
        elif node.op == "output":
            for leaf in tree_leaves(tree_map(lambda n: env.get(n) if isinstance(n, fx.Node) else n, node.args)):
                if isinstance(leaf, Value):
                    state.ledger.freeze(leaf.ids, "the network's output")
    for name, scale in observations(tensors):
        if scale in state.parameters:
            state.parameters[name] = state.parameters[scale]
    return state


def _parameter(state: Propagation, name: str, tensor: Tensor, owner: nn.Module, zero_point: bool) -> Value:
    """A parameter or buffer with fresh ids along its dimensions; a convolution's kernel extents need none.

    Integers are positions and have none, but for the zero points of quantised channels.
    """
    if not (tensor.is_floating_point() or zero_point):
        return Value(tuple(tensor.shape), constant=tensor.detach().cpu().clone(), sources=(name,))
    channels = 2 if isinstance(owner, nn.modules.conv._ConvNd) else tensor.dim()
    ids = {dim: state.ledger.fresh(n) for dim, n in enumerate(tensor.shape) if n > 1 and dim < channels}
    state.parameters[name] = ids
    own = [along(vector, dim, tensor.dim()) for dim, vector in ids.items()]
    return Value(tuple(tensor.shape), own, weight=True, sources=(name,))


def _is_zero_point(placeholder: fx.Node) -> bool:
    return all(quantises(base_name(user.target)) for user in placeholder.users)


def _owner(model: nn.Module, name: str) -> nn.Module:
    path = name.split(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
    return model.get_submodule(path)


def _input(node: fx.Node, constant: object) -> object:
    example = node.meta.get("val")
    if isinstance(constant, Tensor):
        return Value(tuple(constant.shape), constant=constant.detach().cpu().clone(), origin="a constant")
    if isinstance(example, Tensor):
        return Value(tuple(example.shape), origin="the network's input")
    return example


def _call(
    state: Propagation, node: fx.Node, env: dict[fx.Node, Any], model: nn.Module, holders: Callable[[str], Holders]
) -> object:
    args, kwargs = tree_map(lambda n: env.get(n) if isinstance(n, fx.Node) else n, (node.args, dict(node.kwargs)))
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], (list, tuple)) else args[0]
    example = node.meta.get("val")
    results = list(example) if isinstance(example, (list, tuple)) else [example]
    shapes = tuple(tuple(each.shape) for each in results if isinstance(each, Tensor))
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
    if not shapes:
        return None
    if all(operand.constant is not None for operand in operands):
        return _folded(node, args, kwargs, example, shapes)
    path = module_path(node)
    call = Call(
        state.ledger, node.name, base_name(node.target), cast(Any, node.target), tuple(args), kwargs,
        _arguments(node.target, args, kwargs), shapes, model, holders(path), state.notes, state.reshapes,
    )  # fmt: skip
    outputs = apply(call)
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        _rewrite(node, env, outputs[0])
    inputs = tuple(n.name for n in node.all_input_nodes)
    state.operations.append(
        Operation(node.name, call.op, path, call.arguments, tuple(operands), tuple(outputs), inputs, _line(node))
    )
    return outputs if isinstance(example, (list, tuple)) else outputs[0]


def _folded(node: fx.Node, args: Any, kwargs: Any, example: object, shapes: tuple[tuple[int, ...], ...]) -> object:
    """A tensor that no input and no weight touches: computed now, so that positions read from it are known."""
    several = isinstance(example, (list, tuple))
    blank = [Value(shape, constant=None, origin="a constant") for shape in shapes]
    if sum(torch.Size(shape).numel() for shape in shapes) > LARGEST_CONSTANT:
        return blank if several else blank[0]
    args, kwargs = tree_map(lambda v: v.constant if isinstance(v, Value) else v, (args, kwargs))
    try:
        result = node.target(*args, **(kwargs | {"device": "cpu"} if "device" in kwargs else kwargs))  # type: ignore[operator]
    except Exception:  # an operation that cannot run on the CPU or ahead of time: its value stays unknown
        return blank if several else blank[0]
    values = [Value(tuple(t.shape), constant=t, origin="a constant") for t in (result if several else [result])]
    return values if several else values[0]


def _views(node: fx.Node) -> bool:
    """Whether its result shares memory with its first operand."""
    if node.target is operator.getitem:
        return True
    returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
    return any(each.alias_info is not None for each in returns)


def _rewrite(write: fx.Node, env: dict[fx.Node, Any], made: Value) -> None:
    """What shares memory with what is written to is no constant any more, and a weight only if `made` is one."""

    def changed(value: object) -> object:
        if not isinstance(value, Value) or not (value.weight or value.constant is not None):
            return value
        origin = "a tensor that is written to"
        return replace(value, constant=None, weight=made.weight, sources=made.sources, origin=origin)

    pending: list[Any] = []
    for base in _written(write):
        while isinstance(base, fx.Node) and _views(base):
            base = base.args[0]
        pending.append(base)
    while pending:
        node = pending.pop()
        if isinstance(node, fx.Node) and node in env:
            env[node] = tree_map(changed, env[node])
            pending += [user for user in node.users if _views(user) and user.args[0] is node]


def _written(node: fx.Node) -> Iterator[Any]:
    """The operands that it writes to."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)


def _arguments(target: object, args: Any, kwargs: dict[str, object]) -> dict[str, object]:
    """Schema names → operands, defaults filled in."""
    if not isinstance(target, torch._ops.OpOverload):
        return dict(kwargs)
    names = [argument.name for argument in target._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    return defaults | given


def _line(node: fx.Node) -> str:
    """The user's file and line that called this operation, as "file.py:12"; "" where torch does not tell."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    ours = [(file, line) for file, line in found if "/torch/" not in file.replace("\\", "/")]
    return f"{Path(ours[-1][0]).name}:{ours[-1][1]}" if ours else ""


def module_path(node: fx.Node) -> str:
    """The qualified name of the innermost module whose forward made this node; "" for the network itself."""
    return _stack(node)[-1]


def _stack(node: fx.Node) -> list[str]:
    """The qualified names of the modules whose forward was running, outermost first."""
    return [re.sub(r"@\d+", "", path) for path, _ in (node.meta.get("nn_module_stack") or {"": ("", None)}).values()]


def _holders(model: nn.Module, path: str, running: Set[str]) -> Holders:
    """The module of this path, then those inside it that run nothing (the model, where there is none of that path)."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = model
    inner = [(".".join(filter(None, (path, name))), each) for name, each in module.named_modules() if name]
    return ((path, module), *(held for held in inner if held[0] not in running))
