"""A part of an ONNX file as a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["cut"]


def cut(model: Any, nodes: Sequence[Any]) -> Any:
    """These operations of an ONNX model, in its order, as a model of their own with their weights.

    Its inputs are what they read of others, its outputs what others read of them, each by its name in the model, where
    every value's type must be known.
    """
    import onnx

    graph = model.graph
    made = {name for node in nodes for name in node.output if name}
    reads = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
    inside = {id(node) for node in nodes}
    wanted = {name for node in graph.node if id(node) not in inside for name in node.input}
    wanted |= {value.name for value in graph.output}
    known = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    weights = [weight for weight in graph.initializer if weight.name in reads]
    held = {weight.name for weight in weights}
    part = onnx.helper.make_graph(
        list(nodes),
        "part",
        [known[name] for name in reads if name not in held],
        [known[name] for node in nodes for name in node.output if name in wanted],
        weights,
    )
    return onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
