"""What is delivered: the weights, and the few numbers that rebuild the network at its widths."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

import network
from compress.checkpoint import read_json, read_tensors, write_json, write_tensors
from network.errors import StoreError
from network.narrowing import named_tensors
from network.removal import remains_of
from network.types import Network
from search.plan import Plan

__all__ = ["SCHEMA", "load", "save"]

SCHEMA = 1


def save(folder: Path, model: nn.Module, plan: Plan, net: Network) -> None:
    """Write model.safetensors and network.json, all that `load` needs beside the user's own class.

    Of the buffers that are in no state dict those that were narrowed are written too: the class makes the others.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    full = net.parameters
    narrowed = {name: x for name, x in named_tensors(model).items() if tuple(x.shape) != full.get(name, tuple(x.shape))}
    state = narrowed | tensors
    write_tensors(folder / "model.safetensors", state)
    document = {
        "schema": SCHEMA,
        "model": {"ref": plan.model.ref, "args": plan.model.args, "input": [list(s) for s in net.input_shapes]},
        "widths": dict(plan.widths),
        "attributes": [list(patch) for patch in network.attributes(net, plan.widths)],
        "remains": remains_of(net, plan.widths),
        "shapes": {name: list(value.shape) for name, value in state.items()},
    }
    write_json(folder / "network.json", document)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The delivered network, in eval mode: the user's own class at the plan's widths, with its trained weights.

    model: a fresh instance of the original class, where the reference in network.json cannot be imported from here.
    Raises StoreError when the folder is incomplete, ModelReferenceError when the class is not found.
    """
    folder = Path(folder)
    document = read_json(folder / "network.json")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise StoreError(f"{folder / 'network.json'} has no schema {SCHEMA}; write it again with apply-plan")
    if model is None:
        model = network.load_model(document["model"]["ref"], document["model"]["args"])
    shapes = {name: tuple(shape) for name, shape in document["shapes"].items()}
    patches = [(path, name, value) for path, name, value in document["attributes"]]
    state, _ = read_tensors(folder / "model.safetensors")
    try:
        network.resize(model, shapes, patches, document.get("remains"))
        known = model.state_dict().keys()
        for name, tensor in named_tensors(model).items():
            if name in state and name not in known:
                tensor.detach().copy_(state.pop(name))
        model.load_state_dict(state)
    except (AttributeError, KeyError, IndexError, RuntimeError) as error:  # a layer of the file's is not the model's
        said = (str(error).splitlines() or [""])[-1].strip()
        raise StoreError(f"{folder}: {type(model).__name__}: {said}; is the model's code still the same?") from error
    return model.eval()
