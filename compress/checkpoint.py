"""Where a run keeps what it has: tensors and numbers in one safetensors file, replaced in one rename."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from network.errors import StoreError
from network.files import atomic

__all__ = ["flatten", "read_json", "read_tensors", "unflatten", "write_json", "write_tensors"]


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically; JSON has no NaN and no infinity, which become null."""
    text = json.dumps(_finite(document), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _finite(tree: Any) -> Any:
    """A document of which numbers that are not finite are None."""
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def read_json(path: Path) -> Any:
    """The document in `path`. Raises StoreError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Any = None) -> None:
    """Write tensors, each on its own and contiguous, and a JSON document in the header, atomically."""
    flat = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with atomic(path) as temporary:
        try:
            save_file(flat, temporary, metadata={"notes": json.dumps(notes)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of `path` and the document in its header. Raises StoreError when it cannot be read.

    Copies: tensors that lie in a file's memory are not aligned, and products of those have other last digits.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("notes", "null"))
            return {name: file.get_tensor(name).clone() for name in file.keys()}, notes  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{path} is not there; apply-plan writes it")
    return StoreError(f"cannot read {path}: {error}; delete it to start anew")


def flatten(tree: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a nested state into `tensors`; returns the state as JSON, tensors replaced by their names.

    Mappings become lists of pairs, since an optimiser's state has integer keys and JSON has none.
    """
    if isinstance(tree, Tensor):
        tensors[prefix] = tree
        return {"tensor": prefix}
    if isinstance(tree, Mapping):
        pairs = [[key, flatten(value, f"{prefix}.{key}", tensors)] for key, value in tree.items()]
        return {"pairs": pairs}
    if isinstance(tree, list | tuple):
        return {"items": [flatten(value, f"{prefix}.{i}", tensors) for i, value in enumerate(tree)]}
    return {"value": tree}


def unflatten(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `flatten` took apart; tuples come back as lists."""
    if "tensor" in document:
        return tensors[document["tensor"]]
    if "pairs" in document:
        return {key: unflatten(value, tensors) for key, value in document["pairs"]}
    if "items" in document:
        return [unflatten(value, tensors) for value in document["items"]]
    return document["value"]
