"""A latency budget as the user types it: milliseconds, or a ratio of the full network's time. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from network.errors import BudgetError

__all__ = ["Budget", "parse_budget"]

_PATTERN = re.compile(r"\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*(ms|x)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Budget:
    """`value` in milliseconds, or, if `relative`, as a multiple of the full network's latency; `text` as typed."""

    text: str
    value: float
    relative: bool

    def at(self, baseline_ms: float) -> float:
        """The budget in milliseconds for a network of this latency."""
        return self.value * baseline_ms if self.relative else self.value


def parse_budget(text: str | float) -> Budget:
    """Read "20ms" or "0.5x"; a bare number is milliseconds from Python. Raises BudgetError."""
    if isinstance(text, (int, float)):
        text = f"{float(text)!r}ms"
    match = _PATTERN.fullmatch(text)
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or math.isnan(value):
        raise BudgetError(f"budget {text!r} is neither milliseconds nor a ratio; write --latency-budget 20ms or 0.5x")
    if not 0 < value < math.inf:
        raise BudgetError(f"budget {text!r} is not positive; write --latency-budget 20ms or 0.5x")
    return Budget(text.strip(), value, match[2].lower() == "x")
