"""From a plan to the network that was promised: condense, cut, repair, teach, measure, report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.pipeline import CompressedModel, apply_plan
    from compress.recipe import Recipe
    from compress.store import load

__all__ = ["CompressedModel", "Recipe", "apply_plan", "load"]

_HOMES = {
    "CompressedModel": "compress.pipeline",
    "Recipe": "compress.recipe",
    "apply_plan": "compress.pipeline",
    "load": "compress.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
