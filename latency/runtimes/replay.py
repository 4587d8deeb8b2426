"""The exported graph as a list of calls that can be made one by one, under the names that layers bear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from latency.runtimes.reuse import Bound, bound_by, changed_groups

__all__ = ["Step", "StepModule", "output_names", "steps"]


class Step:
    """One node of the exported graph, ready to be called on the values before it; an input has no `function`.

    `dying` names the values that no later node reads, `constants` the placeholders of the tensors among its arguments,
    by the argument's number.
    """

    __slots__ = ("_leaves", "_spec", "constants", "dying", "function", "name", "reads")

    def __init__(self, node: fx.Node, bound: Bound, dying: list[str]):
        self.name, self.dying = node.name, dying
        self.function: Callable[..., Any] | None = None if node.op == "placeholder" else node.target  # type: ignore[assignment]
        self.reads = [used.name for used in node.all_input_nodes if used.name not in bound.tensors]
        args = changed_groups(node, bound.groups.get(node.name))
        leaves, self._spec = pytree.tree_flatten((args, node.kwargs))
        names = [x.name if isinstance(x, fx.Node) else "" for x in leaves]
        self.constants = {number: name for number, name in enumerate(names) if name in bound.tensors}
        self._leaves = [bound.tensors.get(name, x) for name, x in zip(names, leaves, strict=True)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Step:
        """Itself: nothing in it changes, and its nodes hold the whole graph."""
        return self

    def tensor(self, number: int) -> torch.Tensor:
        """One of the tensors among its arguments, by its number."""
        return self._leaves[number]

    def arguments(
        self, values: Mapping[str, Any], constants: Mapping[int, torch.Tensor] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments, taken from the values so far; `constants` take the place of its own."""
        leaves = [values[x.name] if isinstance(x, fx.Node) else x for x in self._leaves]
        for number, tensor in (constants or {}).items():
            leaves[number] = tensor
        return pytree.tree_unflatten(leaves, self._spec)


class StepModule(nn.Module):
    """A step as a module: what it reads of the others are its inputs, its tensors are buffers named as in the graph."""

    def __init__(self, step: Step):
        super().__init__()
        self._step = step
        for number, name in step.constants.items():
            self.register_buffer(name, step.tensor(number))

    def forward(self, *inputs: Any) -> Any:
        assert self._step.function is not None
        constants = {number: self.get_buffer(name) for number, name in self._step.constants.items()}
        args, kwargs = self._step.arguments(dict(zip(self._step.reads, inputs, strict=True)), constants)
        return self._step.function(*args, **kwargs)


def steps(program: torch.export.ExportedProgram, bound: Bound | None = None) -> list[Step]:
    """Inputs and operations in execution order, bound to the program's own tensors or to others."""
    bound = bound or bound_by(program)
    last: dict[str, str] = {}
    for node in program.graph.nodes:
        for used in node.all_input_nodes:
            last[used.name] = node.name
    dying: dict[str, list[str]] = {}
    for used, reader in last.items():
        if used not in bound.tensors and reader != "output":
            dying.setdefault(reader, []).append(used)
    return [
        Step(node, bound, dying.get(node.name, []))
        for node in program.graph.nodes
        if node.op in ("placeholder", "call_function") and node.name not in bound.tensors
    ]


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """The nodes whose values are the user's outputs, in order."""
    return [name for name in program.graph_signature.user_outputs if isinstance(name, str)]
