"""How a network is named on the command line: its callable, its weights, the shapes of its inputs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from network.denormals import flush_denormals
from network.errors import InputError, ModelReferenceError, NarrowgaugeError, WeightsError
from network.seeding import seeded

__all__ = ["example_inputs", "import_attribute", "json_arguments", "load_model", "load_weights", "parse_input"]


def load_model(ref: str, args_json: str = "{}", weights: str | Path | None = None) -> nn.Module:
    """Build the network that `ref` names, in eval mode, and load its `weights` if there are any.

    Weights that its constructor draws at random are the same at every call.

    ref: "package.module:callable" or "path/file.py:callable". args_json: its keyword arguments, a JSON object. Weights
    that are denormal numbers become 0, with a warning.
    Raises ModelReferenceError, WeightsError.
    """
    arguments = json_arguments("--model-args", args_json, ModelReferenceError)
    build = import_attribute(ref)
    if not callable(build):
        raise ModelReferenceError(f"{ref} is a {type(build).__name__}, not callable; name a function or a class")
    try:
        with seeded(0):  # one that starts at random is the same in every command
            model = build(**arguments)
    except Exception as error:  # the user's code may raise anything
        raise ModelReferenceError(f"{ref} called with {args_json} raised {_one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelReferenceError(f"{ref} returned a {type(model).__name__}, not an nn.Module; return the network")
    return load_weights(model.eval(), weights) if weights else flush_denormals(model.eval(), ref)


def json_arguments(flag: str, text: str, kind: type[NarrowgaugeError]) -> dict[str, Any]:
    """The keyword arguments that a flag gives as a JSON object. Raises an error of this kind."""
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError as error:
        raise kind(f"{flag} {text!r} is not JSON: {error}; quote it for the shell") from error
    if not isinstance(arguments, dict):
        raise kind(f'{flag} {text!r} is not a JSON object; write {{"name": value}}')
    return arguments


def import_attribute(ref: str) -> object:
    """What "package.module:name" or "path/file.py:name" names. Raises ModelReferenceError."""
    source, colon, name = ref.rpartition(":")
    if not colon or not source or not name:
        raise ModelReferenceError(f"{ref!r} has no colon; write package.module:callable or path/file.py:callable")
    module = _file(Path(source), ref) if source.endswith(".py") else _module(source, ref)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ModelReferenceError(f"{source} has no {name!r}{_suggestion(module)}")
        found = getattr(found, part)
    return found


def _suggestion(module: ModuleType) -> str:
    own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return f"; it has {', '.join(own[:8])}{', …' if len(own) > 8 else ''}" if own else ""


def _file(path: Path, ref: str) -> ModuleType:
    if not path.is_file():
        raise ModelReferenceError(f"{ref}: there is no file {path}; give a path relative to {Path.cwd()}")
    name = f"_narrowgauge_{re.sub(r'[^0-9a-zA-Z]', '_', str(path.resolve()))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise ModelReferenceError(f"importing {path} raised {_one_line(error)}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _module(name: str, ref: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelReferenceError(f"{ref}: there is no module {name}; install it, or give path/file.py") from error
        raise ModelReferenceError(f"importing {name} raised {_one_line(error)}") from error
    except Exception as error:  # the user's code may raise anything
        raise ModelReferenceError(f"importing {name} raised {_one_line(error)}") from error
    finally:
        sys.path.remove(here)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


# ---- weights ---------------------------------------------------------------------------------------------------
def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict (.pth, read without pickled code, or .safetensors) into the model, in place; returns it.

    Half-precision tensors are cast to the parameters' type; denormal numbers become 0, with a warning; batch norms'
    counters may be absent, as in files that were saved before torch had them.
    Raises WeightsError, which names the first key that is missing, unexpected or of another shape.
    """
    state = _read(Path(path))
    own = model.state_dict()
    state |= {key: own[key] for key in own if key.endswith("num_batches_tracked") and key not in state}
    for key, tensor in own.items():
        if key not in state:
            raise WeightsError(f"{path} lacks {key!r} of {type(model).__name__}; it has {_few(state)}")
        if tuple(state[key].shape) != tuple(tensor.shape):
            found, wanted = _shape(state[key]), _shape(tensor)
            raise WeightsError(f"{path}: {key!r} has shape {found}, {type(model).__name__} needs {wanted}")
    for key in state:
        if key not in own:
            raise WeightsError(f"{path} has {key!r}, which {type(model).__name__} has not; check MODEL, --model-args")
    model.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in state.items()})
    return flush_denormals(model, str(path))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise WeightsError(f"{path} is not a state dict (.pth or .safetensors): {_one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds {type(state).__name__}, not a plain state dict of tensors; save that")
    return dict(state)


def _few(state: dict[str, Tensor]) -> str:
    keys = list(state)
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "") if keys else "nothing"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


# ---- inputs ----------------------------------------------------------------------------------------------------
def parse_input(text: str) -> tuple[int, ...]:
    """ "1x3x224x224" → (1, 3, 224, 224). Raises InputError."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text.strip()):
        raise InputError(f"--input {text!r} is not a shape; write positive extents such as 1x3x224x224")
    return tuple(int(extent) for extent in text.strip().split("x"))


def example_inputs(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> tuple[Tensor, ...]:
    """Standard normal float32 tensors of these shapes, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)
