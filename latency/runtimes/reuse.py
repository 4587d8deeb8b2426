"""A network's export used again for its narrower selves: its tensors change, and the groups of its convolutions.

Exporting and converting a network takes seconds, running it milliseconds; a table needs it at many widths. What else is
written into a graph, such as the sizes of a view or of a split, cannot be changed so. Then shapes contradict each
other, or the outputs are not the module's, and each narrower network is exported anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from latency.runtimes.base import Inputs
from network import export

__all__ = ["Bound", "Export", "bound_by", "changed_groups", "lifted", "reusing", "tensors_of"]

logger = logging.getLogger(__name__)

GROUPS = 6
"""The argument of every aten convolution that is its number of groups."""


class Bound(NamedTuple):
    """What an exported graph is bound to.

    tensors: by placeholder node, every parameter, buffer and constant. groups: by convolution node, those that differ
    from the number in the graph, or may.
    """

    tensors: dict[str, Tensor]
    groups: dict[str, int]


def bound_by(program: torch.export.ExportedProgram) -> Bound:
    """What the program itself is bound to."""
    state = {**program.state_dict, **program.constants}
    return Bound({node: state[target].detach() for node, target in lifted(program).items()}, {})


def lifted(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Placeholder node → the name of the parameter, buffer or constant that it stands for."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def changed_groups(node: fx.Node, groups: int | None) -> tuple[Any, ...]:
    """The node's arguments, with this number of groups if it has one."""
    return node.args if groups is None else (*node.args[:GROUPS], groups, *node.args[GROUPS + 1 :])


class OtherLayers(Exception):
    """A module is not the exported one at other widths: some of its layers are gone (`network.removal`)."""


class Export:
    """A network exported in a runtime's terms.

    reusable: whether it has been found to compute a narrower network, which is asked at the first; None before that.
    tolerance: norm of the difference from the module's outputs, relative to theirs; a low precision makes some.
    """

    reusable: bool | None = None
    tolerance = 0.1

    def __init__(self, module: nn.Module, inputs: Inputs):
        self.program = export(module, inputs)
        self._grouped = dict(_grouped(self.program.graph, module))

    def bound(self, module: nn.Module) -> Bound:
        """What the program is bound to by the module, which may be narrower.

        Raises OtherLayers where the module lacks some: bound to the program's own tensors they would run all the same.
        """
        held: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        held |= dict(module.named_buffers(remove_duplicate=False))
        names, own = lifted(self.program), self.program.constants
        if lacking := set(names.values()) - held.keys() - own.keys():
            raise OtherLayers(f"the module has no {min(lacking)}")
        theirs = {node: held[name].detach() for node, name in names.items() if name in held}
        groups = {node: int(module.get_submodule(path).groups) for node, path in self._grouped.items()}  # type: ignore[arg-type]
        return Bound(bound_by(self.program).tensors | theirs, groups)


def _grouped(graph: fx.Graph, module: nn.Module) -> Iterator[tuple[str, str]]:
    """The grouped convolutions whose module says how many groups they have, and that module's path."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        if "conv" in str(node.target) and len(node.args) > GROUPS and node.args[GROUPS] > 1:
            *_, (path, _) = node.meta.get("nn_module_stack", {"": ("", "")}).values()
            if getattr(modules.get(path), "groups", None) == node.args[GROUPS]:
                yield node.name, path


class Checked(Protocol):
    """What says what it computed."""

    def outputs(self) -> Sequence[Tensor]:
        """The outputs of a run."""
        ...


E = TypeVar("E", bound=Export)
T = TypeVar("T", bound=Checked)


def reusing(kind: type[E], of: Callable[[E], T], module: nn.Module, inputs: Inputs, like: object) -> T:
    """What `of` builds from the export of `like`, if it has one of this kind and that computes what the module does.

    Else from a new export of the module.
    """
    source = getattr(like, "source", None)
    made = _reused(source, of, module, inputs) if isinstance(source, kind) else None
    return made or of(kind(module, inputs))


def _reused(source: E, of: Callable[[E], T], module: nn.Module, inputs: Inputs) -> T | None:
    if source.reusable is False:
        return None
    try:
        made = of(source)
        found = made.outputs()
    except OtherLayers:
        return None
    except Exception as error:  # whatever a runtime says of shapes that contradict each other
        logger.debug("%s made anew: %s", type(source).__name__, error)
        source.reusable = bool(source.reusable)
        return None
    if source.reusable is None:
        source.reusable = _computes(found, module, inputs, source.tolerance)
        logger.debug("%s can be reused: %s", type(source).__name__, source.reusable)
    return made if source.reusable else None


def _computes(found: Sequence[Tensor], module: nn.Module, inputs: Inputs, tolerance: float) -> bool:
    with torch.inference_mode():
        expected = tensors_of(module(*inputs))
    same_shapes = [x.shape for x in found] == [x.shape for x in expected]
    return same_shapes and all(_agree(*pair, tolerance) for pair in zip(found, expected, strict=True))


def tensors_of(output: object) -> list[Tensor]:
    """The tensors in what a network returned, in the order of its graph's outputs."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    found, expected = found.double().cpu(), expected.double().cpu()
    return bool((found - expected).norm() <= tolerance * expected.norm())
