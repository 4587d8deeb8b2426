"""The plan: one width per channel group, with its proof. What `search` hands to `apply-plan`. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from network.errors import PlanError, StoreError
from network.files import write_atomically

if TYPE_CHECKING:
    from network.types import Network

__all__ = [
    "LEAST",
    "SCHEMA",
    "Feed",
    "FrozenGroup",
    "ModelReference",
    "Plan",
    "PlanLayer",
    "Promise",
    "Settings",
    "load_plan",
    "module_times",
    "plan_of",
]

SCHEMA = 1

LEAST = 0.1
"""Of a group's channels this share stays at least, unless the settings say otherwise, or it goes whole."""


@dataclass(frozen=True, slots=True)
class ModelReference:
    """How the network is named on the command line: callable, JSON arguments, input shapes, hash of its weights."""

    ref: str
    args: str = "{}"
    input: tuple[tuple[int, ...], ...] = ()
    weights_sha256: str = ""


@dataclass(frozen=True, slots=True)
class PlanLayer:
    """One layer of the plan: its widths, and its predicted milliseconds in the plan and in the full network."""

    name: str
    module: str
    c_in: int
    c_out: int
    ms: float
    baseline_ms: float


@dataclass(frozen=True, slots=True)
class FrozenGroup:
    """Channels that stay whole, and why."""

    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promise:
    """What a plan promises on one device: its budget, and what its table says of the full network and of the plan.

    `budget` is as the user typed it ("20ms", "0.35x"), `budget_ms` what that came to.
    """

    device: str
    runtime: str
    precision: str
    threads: int
    table_fingerprint: str
    budget: str
    budget_ms: float
    baseline_ms: float
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class Feed:
    """The data that importance was measured on, so that training need not be told again."""

    images: str | None = None
    preprocess: str = "unit"
    bgr: bool = False
    task: str | None = None
    task_args: str = "{}"

    def located(self) -> Feed:
        """The same with whole paths: photos, photos/ and ./photos are one folder."""
        images = self.images and str(Path(self.images).resolve())
        task = self.task and _located(self.task)
        return dataclasses.replace(self, images=images, task=task, preprocess=_located(self.preprocess))


def _located(ref: str) -> str:
    """path/file.py:callable with its whole path; any other name as it is."""
    place, _, name = ref.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else ref


@dataclass(frozen=True, slots=True)
class Settings:
    """What bounds the choices beside the latency budget; a corrected table is searched again under the same.

    options: widths per group. min_width and multiple_of: pattern → least share of a group's channels, and what its
    width must be a multiple of unless it is the full one; the last pattern that matches decides. removal: whether
    groups that the network can do without may go whole, where min_width asks for no more than LEAST. keep: patterns of
    modules whose outputs stay whole; frozen: of modules that stay whole, their inputs too. A pattern, as of a file
    name, is matched with the group, with the modules that make its channels, and with the modules around them.
    max_memory bounds the bytes of activations held at once; max_bytes those of all parameters and buffers, every
    element as wide as the table's precision is.
    """

    options: int | None = None
    min_width: Mapping[str, float] = field(default_factory=lambda: {"*": LEAST})
    multiple_of: Mapping[str, int] = field(default_factory=dict)
    removal: bool = True
    keep: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    max_params: int | None = None
    max_macs: float | None = None
    max_memory: int | None = None
    max_bytes: int | None = None
    time_limit_s: float | None = 60.0


@dataclass(frozen=True, slots=True)
class Plan(Promise):
    """One width per channel group and the proof that goes with it.

    The promise is the first device's. `objective` is the importance kept (`search.build:worth`), `bound` no plan can
    exceed, `gap` = (bound - objective) / |objective|; status "optimal" means a gap proved to be at most 1e-4.
    `others` are devices beside the first, on which the same network keeps a budget of its own. `survivors` are the
    channels, ascending, of groups in which training has decided which to keep, in place of the most important.
    Raises PlanError if widths and importance do not belong together or a number is not finite.
    """

    model: ModelReference
    status: str
    objective: float
    bound: float
    gap: float
    solve_seconds: float
    choices_log10: float
    widths: Mapping[str, int]
    layers: tuple[PlanLayer, ...]
    frozen: tuple[FrozenGroup, ...]
    importance: Mapping[str, tuple[float, ...]]
    feed: Feed = field(default_factory=Feed)
    settings: Settings = field(default_factory=Settings)
    others: tuple[Promise, ...] = ()
    survivors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in ("optimal", "feasible"):
            raise PlanError(f"status {self.status!r} is neither 'optimal' nor 'feasible'; search again")
        if self.widths.keys() != self.importance.keys():
            odd = sorted(self.widths.keys() ^ self.importance.keys())[0]
            raise PlanError(f"group {odd!r} has a width or an importance but not both; search again")
        for group, scores in self.importance.items():
            if not 0 <= self.widths[group] <= len(scores):
                raise PlanError(f"group {group!r} keeps {self.widths[group]} of {len(scores)} channels; search again")
        for group, kept in self.survivors.items():
            known = range(len(self.importance.get(group, ())))
            if len(kept) != self.widths.get(group) or not set(kept) <= set(known) or list(kept) != sorted(set(kept)):
                raise PlanError(f"the survivors of group {group!r} are not {self.widths.get(group, 0)} of its channels")

    @property
    def keep(self) -> dict[str, tuple[int, ...]]:
        """For each group the sorted survivors, else its most important channels; of equals the first."""
        chosen = {group: _largest(scores, self.widths[group]) for group, scores in self.importance.items()}
        return chosen | dict(self.survivors)

    @property
    def total_importance(self) -> float:
        """The importance of every channel together, the objective of the full network; 1 where nothing has any."""
        return sum(sum(scores) for scores in self.importance.values()) or 1.0

    @property
    def importance_kept(self) -> float:
        """The objective as a share of the full network's."""
        return self.objective / self.total_importance

    def check(self, net: Network) -> None:
        """Raises PlanError unless the plan's groups are this network's."""
        if self.widths.keys() != net.widths.keys():
            odd = sorted(self.widths.keys() ^ net.widths.keys())[0]
            owner = "the plan" if odd in self.widths else "the network"
            raise PlanError(f"only {owner} has a channel group {odd!r}: the plan is of another network; search again")
        for group, scores in self.importance.items():
            if len(scores) != net.widths[group]:
                raise PlanError(
                    f"group {group!r} has {net.widths[group]} channels and {len(scores)} in the plan: "
                    "the plan is of another network; search again"
                )
        for name in (each.name for each in net.groups if not each.removable):
            if self.widths[name] == 0:
                raise PlanError(f"group {name!r} has width 0, and this network needs it; search again")

    def untimed(self) -> Plan:
        """The same plan whatever its search took: equal for every search that finds it."""
        return dataclasses.replace(self, solve_seconds=0.0)

    def asked(self) -> Plan:
        """The same plan however it came about: untimed, and with whole paths to the network and the data."""
        model = dataclasses.replace(self.model, ref=_located(self.model.ref))
        return dataclasses.replace(self.untimed(), model=model, feed=self.feed.located())

    def to_json(self) -> str:
        """The plan as one JSON document."""
        document = {"schema": self.schema} | dataclasses.asdict(self)
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, whole or not at all. Raises StoreError."""
        write_atomically(Path(path), self.to_json().encode())


def load_plan(path: str | Path) -> Plan:
    """Read a plan. Raises StoreError if the file cannot be read, PlanError if it is damaged or of another schema."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot read the plan {path}: {error.strerror}; make one with search -o {path}") from None
    except UnicodeDecodeError:
        raise PlanError(f"{path} is no plan: it is not a text file; make one with search -o") from None
    try:
        return plan_of(json.loads(text))
    except json.JSONDecodeError as error:
        raise PlanError(f"{path} is damaged: {error}; make it anew with search -o") from None
    except PlanError as error:
        raise PlanError(f"{path} is damaged: {error}; make it anew with search -o") from None


def plan_of(document: Any) -> Plan:
    """The plan that a parsed JSON document says. Raises PlanError for what is none, or of another schema."""
    if not isinstance(document, dict):
        raise PlanError("it is not a JSON object")
    if document.get("schema") != SCHEMA:
        raise PlanError(f"it has schema {document.get('schema')!r}, and this version reads {SCHEMA}")
    return _decode(Plan, document, "")


def module_times(layers: Iterable[PlanLayer]) -> list[tuple[str, float, float]]:
    """(module, original ms, planned ms) in order of execution; a layer outside all modules goes by its own name."""
    sums: dict[str, list[float]] = {}
    for layer in layers:
        pair = sums.setdefault(layer.module or layer.name, [0.0, 0.0])
        pair[0] += layer.baseline_ms
        pair[1] += layer.ms
    return [(name, before, after) for name, (before, after) in sums.items()]


YOUNGER = {(Feed, "task_args"), (Settings, "max_bytes"), (Settings, "removal"), (Plan, "survivors")}
"""Fields that plans of this schema may lack, since they were written before these."""


def _largest(scores: tuple[float, ...], count: int) -> tuple[int, ...]:
    return tuple(sorted(sorted(range(len(scores)), key=lambda channel: (-scores[channel], channel))[:count]))


def _decode(kind: Any, value: Any, where: str) -> Any:
    """`value`, as parsed from JSON, as the type `kind`; PlanError names the key where it does not fit."""
    if dataclasses.is_dataclass(kind):
        return _decode_record(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else _decode(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise PlanError(f"{where} is {json.dumps(value)[:40]}")


def _decode_record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise PlanError(f"{where} is not an object")
    hints = get_type_hints(kind)
    missing = [name for name in hints if name not in value and (kind, name) not in YOUNGER]
    if missing:
        raise PlanError(f"{where}.{missing[0]} is missing".lstrip("."))
    found = {name: hint for name, hint in hints.items() if name in value}
    return kind(**{name: _decode(hint, value[name], f"{where}.{name}".lstrip(".")) for name, hint in found.items()})
