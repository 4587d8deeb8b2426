"""How the nodes and values of an ONNX file lead back to the exported graph that it was made from."""

from __future__ import annotations

import re

import torch

from latency.runtimes.owners import root_of

__all__ = ["onnx_origins"]

FX_NODE = re.compile(r"%(\w+)")


def onnx_origins(program: torch.onnx.ONNXProgram) -> tuple[dict[str, str], dict[str, list[str]]]:
    """ONNX node or value → node of the exported graph; and what each of those reads."""
    assert program.exported_program is not None
    roots: dict[str, str] = {}
    reads: dict[str, list[str]] = {}
    for node in program.exported_program.graph.nodes:
        roots[node.name] = root_of(node) or node.name
        if node.op == "call_function":
            reads.setdefault(roots[node.name], []).extend(roots[used.name] for used in node.all_input_nodes)
    origins = dict(roots)
    for node in program.model_proto.graph.node:
        texts = [entry.value for entry in node.metadata_props if entry.key.endswith("fx_node")]
        match = FX_NODE.match(texts[0]) if texts else None
        root = roots.get(match[1]) if match else next((roots[v] for v in node.output if v in roots), None)
        if root is not None:
            origins |= dict.fromkeys((node.name, *node.output), root)
    return origins, reads
