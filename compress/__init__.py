"""From a plan to the network that was promised: condense, cut, repair, teach, measure, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from network.lazy import lazily

if TYPE_CHECKING:
    from compress.pipeline import CompressedModel, apply_plan
    from compress.recipe import Recipe
    from compress.store import load

__all__ = ["CompressedModel", "Recipe", "apply_plan", "load"]

__getattr__ = lazily(
    __name__,
    {
        "pipeline": ("CompressedModel", "apply_plan"),
        "recipe": ("Recipe",),
        "store": ("load",),
    },
)
