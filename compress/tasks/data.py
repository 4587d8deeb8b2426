"""What the tasks share: which items teach and which judge, how two sets are matched, the scale of true pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from network.album import held_out_names
from network.errors import InputError
from network.preprocess import Preprocess, preprocess_of

__all__ = ["matched", "scale_of", "split"]


def split(names: Sequence[str], fraction: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """(train, held out): as the data's folders say (test, val, …), else a random `fraction`, at least one of each.

    Raises InputError for fewer than two names.
    """
    if len(names) < 2:
        raise InputError(f"{len(names)} item cannot both teach and judge; give two or more")
    held = set(held_out_names(names))
    if not held or len(held) == len(names):
        count = min(len(names) - 1, max(1, round(len(names) * fraction)))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:count]
        held = {names[i] for i in order.tolist()}
    return [name for name in names if name not in held], [name for name in names if name in held]


def matched(inputs: Sequence[str], targets: Sequence[str], suffix: str = "") -> list[tuple[str, str]]:
    """Pairs (input, target) of equal paths, endings such as .png aside; an input's ends with `suffix` besides.

    Raises InputError naming the first input that has no target, or where there is no pair at all.
    """
    known = {_stem(name): name for name in targets if not (suffix and _stem(name).endswith(suffix))}
    chosen = [name for name in inputs if _stem(name).endswith(suffix)]
    if not chosen:
        raise InputError(f"no input's name ends with {suffix!r}; give the ending that inputs have before .png")
    pairs = [(name, known.get(_stem(name).removesuffix(suffix))) for name in chosen]
    alone = next((name for name, target in pairs if target is None), None)
    if alone is not None:
        raise InputError(f"the input {alone} has no target of the same name; add it, or remove the input")
    return [(name, target) for name, target in pairs if target is not None]


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def scale_of(text: str, bgr: bool = False) -> Preprocess:
    """The scale of a network's output pictures, which must lead back to bytes. Raises InputError."""
    found = preprocess_of(text, bgr)
    if found.custom is not None:
        raise InputError(f"output {text} leads from pictures to tensors only; name unit, signed, byte or imagenet")
    return found
