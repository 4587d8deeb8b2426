"""The exported graph as a list of calls that can be made one by one, under the names that layers bear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

__all__ = ["Step", "output_names", "steps"]


class Step:
    """One node of the exported graph, ready to be called on the values before it; an input has no `function`.

    `dying` names the values that no later node reads.
    """

    __slots__ = ("_leaves", "_spec", "dying", "function", "name", "reads")

    def __init__(self, node: fx.Node, constants: dict[str, torch.Tensor], dying: list[str]):
        self.name, self.dying = node.name, dying
        self.function: Callable[..., Any] | None = None if node.op == "placeholder" else node.target  # type: ignore[assignment]
        self.reads = [used.name for used in node.all_input_nodes if used.name not in constants]
        leaves, self._spec = pytree.tree_flatten((node.args, node.kwargs))
        self._leaves = [constants.get(x.name, x) if isinstance(x, fx.Node) else x for x in leaves]

    def __deepcopy__(self, memo: dict[int, Any]) -> Step:
        """Itself: nothing in it changes, and its nodes hold the whole graph."""
        return self

    def constants(self) -> list[tuple[int, torch.Tensor]]:
        """The parameters, buffers and constants among its arguments, by their number."""
        return [(number, x) for number, x in enumerate(self._leaves) if isinstance(x, torch.Tensor)]

    def arguments(
        self, values: Mapping[str, Any], constants: Mapping[int, torch.Tensor] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments, taken from the values so far; `constants` take the place of its own."""
        leaves = [values[x.name] if isinstance(x, fx.Node) else x for x in self._leaves]
        for number, tensor in (constants or {}).items():
            leaves[number] = tensor
        return pytree.tree_unflatten(leaves, self._spec)


def steps(program: torch.export.ExportedProgram) -> list[Step]:
    """Inputs and operations in execution order, with parameters, buffers and constants bound."""
    signature = program.graph_signature
    state = {**program.state_dict, **program.constants}
    lifted = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    constants = {node: state[target].detach() for node, target in lifted.items()}
    last: dict[str, str] = {}
    for node in program.graph.nodes:
        for used in node.all_input_nodes:
            last[used.name] = node.name
    dying: dict[str, list[str]] = {}
    for used, reader in last.items():
        if used not in constants and reader != "output":
            dying.setdefault(reader, []).append(used)
    return [
        Step(node, constants, dying.get(node.name, []))
        for node in program.graph.nodes
        if node.op in ("placeholder", "call_function") and node.name not in constants
    ]


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """The nodes whose values are the user's outputs, in order."""
    return [name for name in program.graph_signature.user_outputs if isinstance(name, str)]
