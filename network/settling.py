"""From recorded ids to a Network that the user's own forward agrees with: build, try, freeze or link, build anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from network.calls import Reshape
from network.errors import TraceError
from network.groups import Grouping
from network.ids import line
from network.layers import build_layers
from network.propagation import Operation, Propagation
from network.removal import with_removable
from network.trial import Trial
from network.types import Group, Network, SizeRule, Width, widths_of

__all__ = ["settle"]

SOMETIMES_ABSENT = {"contiguous", "clone", "to", "_to_copy"}  # not recorded where they would do nothing


def settle(model: nn.Module, state: Propagation, trial: Trial, shapes: tuple[tuple[int, ...], ...]) -> Network:
    """The Network whose every group narrows, alone and with all others, in the user's own forward.

    Each round only adds ties to the ledger, so it ends; what cannot be narrowed is frozen with the forward's words.
    """
    linked = verified = False
    tied: set[int] = set()
    while True:
        grouping = Grouping(state)
        sizes = _sizes(state, grouping, tied)
        if sizes is None:
            continue
        net = _network(model, state, grouping, sizes, shapes)
        if trial.complaint(net, [group.name for group in net.groups]) is not None:
            if not linked:
                linked = True
                if _link(state, grouping, net, trial):
                    continue
            for name, why in trial.culprits(net).items():
                grouping.freeze(name, why)
            verified = False
        elif not verified and _doubtful(state, grouping):
            wrong = _unlike_prediction(state, grouping, net, trial)
            verified = not wrong
            for name, why in wrong.items():
                grouping.freeze(name, why)
        else:
            return with_removable(replace(net, layers=build_layers(state, grouping)), model, trial.indispensable)


def _network(
    model: nn.Module,
    state: Propagation,
    grouping: Grouping,
    sizes: tuple[SizeRule, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> Network:
    parameters = dict(model.named_parameters())
    return Network(
        layers=(),
        groups=grouping.groups,
        frozen=grouping.frozen,
        sizes=sizes,
        parameters={name: tuple(t.shape) for name, t in [*parameters.items(), *model.named_buffers()]},
        input_shapes=shapes,
        trainable=frozenset(parameters),
    )


# ---- attributes ------------------------------------------------------------------------------------------------
def _sizes(state: Propagation, grouping: Grouping, tied: set[int]) -> tuple[SizeRule, ...] | None:
    """The attributes that follow widths; None if groups had to be tied or frozen first, so that all is built anew.

    A guessed attribute that several extents share gets one width: those extents are tied, once (`tied` holds the
    notes). An attribute that still would follow two widths freezes both.
    """
    rules: dict[tuple[str, str], Width] = {}
    first = {}
    settled = True
    for number, note in sorted(enumerate(state.notes), key=lambda item: item[1].guessed):
        width, key = grouping.width(note.ids, note.dim), (note.module, note.attribute)
        if not width.terms and note.guessed:
            continue
        if key not in rules:
            rules[key], first[key] = width, note
        elif _unlike(rules[key], width):
            other = first[key]
            settled = False
            if note.guessed and number not in tied:
                tied.add(number)
                state.ledger.tie(line(other.ids, other.dim).reshape(-1), line(note.ids, note.dim).reshape(-1))
                continue
            for name in {*rules[key].groups, *width.groups}:
                grouping.freeze(name, f"{note.module}.{note.attribute} would have to follow two widths")
    if not settled:
        return None
    return tuple(SizeRule(module, name, width) for (module, name), width in rules.items() if width.terms)


def _unlike(a: Width, b: Width) -> bool:
    return (a.fixed, sorted(a.terms)) != (b.fixed, sorted(b.terms))


# ---- linked counts ---------------------------------------------------------------------------------------------
def _link(state: Propagation, grouping: Grouping, net: Network, trial: Trial) -> bool:
    """Heads that cannot go alone, since Python divides the embedding by their number, go with their share of it.

    The embedding's channels are tied, chunk by chunk, to the heads of every attention that reads it: coarse, exact.
    """
    attention = list(_heads(state, grouping, net))
    if not attention or trial.complaint(net, [heads.name for heads, _ in attention]) is None:
        return False
    found = False
    for heads, module in attention:
        for embedding in _read_for(heads, module, net):
            if embedding.name != heads.name and embedding.width % heads.width == 0:
                ids = [
                    state.parameters[m.parameter][m.dim][m.index[:, 0]]
                    for m in (heads.members[0], embedding.members[0])
                ]
                state.ledger.tie(ids[0].reshape(-1, 1), ids[1].reshape(heads.width, -1))
                found = True
    return found


def _heads(state: Propagation, grouping: Grouping, net: Network) -> Iterator[tuple[Group, str]]:
    """Groups whose width is exactly the value of a guessed attribute, and the module that has it."""
    guessed = [note for note in state.notes if note.guessed]
    for width, module in {(grouping.width(note.ids, note.dim), note.module): None for note in guessed}:
        if width.fixed == 0 and [multiplicity for _, multiplicity in width.terms] == [1]:
            yield net.group(width.terms[0][0]), module


def _read_for(heads: Group, module: str, net: Network) -> list[Group]:
    """The groups that those weights of the module read which make these heads."""
    inside = f"{module}." if module else ""
    makers = {m.parameter for m in heads.members if m.role == "producer" and m.parameter.startswith(inside)}
    return [g for g in net.groups if any(m.role == "consumer" and m.parameter in makers for m in g.members)]


# ---- views that could be legal and wrong -----------------------------------------------------------------------
def _doubtful(state: Propagation, grouping: Grouping) -> bool:
    return any(_ambiguous(reshape, grouping) for reshape in state.reshapes)


def _ambiguous(reshape: Reshape, grouping: Grouping) -> bool:
    """A view that splits channels, or infers another extent, may run at the wrong shape if its sizes are hard-coded."""
    axis = grouping.axis(reshape.ids)
    if axis is None or reshape.sizes[axis] == -1 or not grouping.width(reshape.ids, axis).terms:
        return False
    return reshape.split or -1 in reshape.sizes


def _unlike_prediction(state: Propagation, grouping: Grouping, net: Network, trial: Trial) -> dict[str, str]:
    """Export the narrowed network once and hold every tensor's shape against its predicted widths."""
    keep = trial.draw(net, [group.name for group in net.groups])
    widths = net.complete(widths_of(keep))
    try:
        program = trial.exported(net, keep)
    except TraceError as error:
        return {group.name: str(error) for group in net.groups}
    shapes = {
        node.name: tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)
    }
    for operation in state.operations:
        if len(operation.outputs) > 1 or operation.op in SOMETIMES_ABSENT:
            continue
        output = operation.outputs[0]
        expected = tuple(grouping.extent(output, dim).at(widths) for dim in range(len(output.shape)))
        if shapes.get(operation.name) != expected:
            why = f"{operation.op} at {operation.where or operation.path} hard-codes a size of the channels it moves"
            return dict.fromkeys(_blamed(operation, grouping) or net.widths, why)
    return {}


def _blamed(operation: Operation, grouping: Grouping) -> set[str]:
    values = [*operation.outputs, *operation.operands]
    return {name for value in values for ids in value.ids for name in grouping.depends(ids)}
