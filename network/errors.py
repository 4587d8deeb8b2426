"""Errors that are the user's to mend; the commands print them in one line and leave with exit code 2.

    NarrowgaugeError
    ├── ModelReferenceError (ValueError)    MODEL does not import, or does not return a module
    ├── WeightsError (ValueError)           a weights file that does not fit the network
    ├── InputError (ValueError)             a shape, picture or folder that cannot be fed to the network
    ├── TraceError (RuntimeError)           torch.export cannot follow the network, or nothing in it can be narrowed
    ├── DeviceError (LookupError)           an unknown device, a runtime or a precision that is not there
    ├── TableError (LookupError)            a latency table that lacks a layer, or belongs to another network
    ├── StoreError (OSError)                a folder or file that cannot be read or written
    ├── PlanError (ValueError)              a plan of another network, or a damaged one
    ├── ServiceError (OSError)              a service that cannot be reached, or that refuses
    └── BudgetError (ValueError)            a budget that cannot be parsed, or cannot be met
        └── InfeasibleBudgetError           carries the smallest feasible budget

Every message names the value at fault and the next step.
"""

__all__ = [
    "BudgetError",
    "DeviceError",
    "InfeasibleBudgetError",
    "InputError",
    "ModelReferenceError",
    "NarrowgaugeError",
    "PlanError",
    "ServiceError",
    "StoreError",
    "TableError",
    "TraceError",
    "WeightsError",
]


class NarrowgaugeError(Exception):
    """The user's error: one line, with the value and the next step."""


class ModelReferenceError(NarrowgaugeError, ValueError):
    """MODEL does not import, does not exist, or does not return an nn.Module."""


class WeightsError(NarrowgaugeError, ValueError):
    """The weights file cannot be read or does not fit; names the first mismatching key."""


class InputError(NarrowgaugeError, ValueError):
    """A shape, picture, folder or task that cannot be fed to the network."""


class TraceError(NarrowgaugeError, RuntimeError):
    """torch.export cannot follow the network, or nothing in it can be narrowed."""


class DeviceError(NarrowgaugeError, LookupError):
    """An unknown device, runtime or precision; names what is there and the extra that installs more."""


class TableError(NarrowgaugeError, LookupError):
    """The latency table lacks a layer; names the command that measures it."""


class StoreError(NarrowgaugeError, OSError):
    """A folder or file that cannot be read or written."""


class PlanError(NarrowgaugeError, ValueError):
    """A plan file that is damaged, of another schema, or of another network."""


class ServiceError(NarrowgaugeError, OSError):
    """A service that cannot be reached, or that refuses a token, a push or a question."""


class BudgetError(NarrowgaugeError, ValueError):
    """A budget that is not a positive number of ms or a ratio such as 0.5x."""


class InfeasibleBudgetError(BudgetError):
    """No plan meets the budget; `smallest_ms` is the least that one can."""

    def __init__(self, budget_ms: float, smallest_ms: float):
        self.budget_ms, self.smallest_ms = budget_ms, smallest_ms
        super().__init__(
            f"budget {budget_ms:.4g} ms is below the fastest plan, {smallest_ms:.4g} ms; "
            f"raise --latency-budget to at least {smallest_ms:.4g}ms"
        )
