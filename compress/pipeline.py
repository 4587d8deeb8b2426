"""Fourth room of the spine: a plan goes in, the network that was promised comes out, each stage measured.

deliver (is the plan as fast as promised?) → condense → prune → repair → distil → measure → store and report
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import latency
import network
from compress import processes
from compress.batches import image_format
from compress.checkpoint import read_json, write_json
from compress.condense import Condenser, costs_per_channel
from compress.delivery import Delivery, Measure, Round, deliver, is_here, promised, prove
from compress.distill import choose_teacher
from compress.exports import compared, exported, in_torch
from compress.gates import Gated
from compress.ledger import LAST, Ledger, identity
from compress.page import write_page
from compress.prune import check_plan, prune
from compress.recipe import Allowance, Recipe
from compress.repair import repair
from compress.report import Stage, build_report
from compress.school import School, alone
from compress.store import load, save
from compress.training import thawed
from latency import LatencyTable
from network.errors import StoreError
from network.exporting import stand_in
from network.files import check_writable
from network.types import Network
from search import Plan, load_plan
from search.task import Task
from search.weights import weights_sha256

__all__ = ["CompressedModel", "apply_plan"]

REPAIR_ITEMS = 256
REPAIR_BATCH = 16
REPAIR_BYTES = 2**29
CUT_ITEMS = 64
FINAL_TRIES = 5
FINAL_ROUNDS = 25


@dataclass(frozen=True, slots=True)
class CompressedModel:
    """The delivered network in eval mode, the plan that it has (corrected where the first missed), and its report."""

    model: nn.Module
    plan: Plan
    report: dict[str, Any]
    folder: Path

    @property
    def met(self) -> bool:
        """Whether the delivered latency keeps the budget; the predicted one where the plan is for another machine."""
        return bool(self.report["delivered_ms"] <= self.report["budget_ms"])


def apply_plan(
    plan: Plan,
    model: nn.Module,
    net: Network,
    table: LatencyTable,
    task: Task,
    out: str | Path,
    others: Sequence[LatencyTable] = (),
    *,
    resume: bool = False,
    measure: Measure | None = None,
    notify: Callable[[str], Any] = lambda line: None,
    **choices: Any,
) -> CompressedModel:
    """Compress `model`, which stays as it is, to the plan, and write what `compress.load` and a reader need to `out`.

    others: the tables of the plan's other devices, whose budgets are kept as predicted; only `table`'s is measured.
    choices: the fields of `Recipe` (steps or minutes, condense, teacher, repair, lr, seed, …). measure: what times
    networks as `table`'s device would; without it latency.measure does where that device is this machine, and on any
    other the plan is taken as predicted. notify: told one line per stage.
    A run in `out` that was cut off goes on by itself when plan, weights, choices and the number of items are the same;
    `resume` insists. One of other choices is kept beside it until it is asked for again. What the task is fed from is
    the plan's `feed`: of other data, give the plan that.
    Weights that are denormal numbers count as 0 (`network.flush_denormals`), in the original too.
    Training happens where the model is; one of which no parameter requires a gradient is trained whole.
    Under torchrun or `accelerate launch` the processes share every batch, and the first does the rest.
    Raises StoreError before any work if `out` cannot be written, PlanError for a plan of another network,
    BudgetError when no plan keeps the budget, InputError when training diverges.
    """
    recipe, out = Recipe(**choices), Path(out)
    check_plan(plan, model, net)
    processes.join()
    notify = notify if processes.leads() else _silent
    processes.decided(lambda: check_writable(out))
    if measure is None and processes.decided(lambda: is_here(table.device)):
        measure = latency.measure
    items = [len(data) for data in (task.train, task.heldout)]  # type: ignore[arg-type]
    place = table.device.id, measure is not None
    key = identity(plan.asked().to_json(), weights_sha256(model), recipe.as_dict(), place, items)
    ledger = Ledger(out / "run", key, resume=resume, notify=notify)
    run = _Run(plan, model, net, (table, *others), task, out, recipe, ledger, measure, notify)
    return run.finished() or run.work()


class _Run:
    """One compression: what every stage needs, and the stages."""

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        net: Network,
        tables: Sequence[LatencyTable],
        task: Task,
        out: Path,
        recipe: Recipe,
        ledger: Ledger,
        measure: Measure | None,
        notify: Callable[[str], Any],
    ):
        self.plan, self.net, self.task, self.out = plan, net, task, out
        self.table, *self.others = tables
        self.recipe, self.ledger, self.measure, self.notify = recipe, ledger, measure, notify
        device = next(model.parameters()).device
        self.source = network.flush_denormals(thawed(stand_in(model, share=False).cpu()))
        self.original = _formatted(copy.deepcopy(self.source).eval().to(device), image_format())
        self.stages: dict[str, Stage] = {}

    def finished(self) -> CompressedModel | None:
        """The result of a run that had come to its end."""
        report = self.out / "report.json"
        if self.ledger.notes(LAST) is None or not processes.decided(report.exists):
            return None
        self.notify(f"{self.out} holds this very run, finished; delete it to start anew")
        plan, found = processes.decided(lambda: (load_plan(self.out / "plan.json"), read_json(report)))
        source = copy.deepcopy(self.source)
        model = load(self.out, source) if processes.leads() else prune(plan, source, self.net).eval()
        processes.share_state(model)
        return CompressedModel(model, plan, found, self.out)

    def work(self) -> CompressedModel:
        """Every stage that is not on record, and the report."""
        found = self._deliver()
        processes.share_state(self.original)
        self.school = School(self.original, self.net, self.task, self.recipe, self.ledger, self.notify)
        condensing, distilling = self.school.split()
        self._stage("original", self.original, lambda model: {}, keep=False)
        condensed = self._condense(condensing)
        pruned = self._stage(
            "pruned", prune(self.plan, condensed, self.net), lambda m: alone(m, lambda: self._cut(condensed, m))
        )
        name, teacher = self._teacher(condensed, pruned)
        repaired = self._stage(
            "repaired", copy.deepcopy(pruned), lambda m: alone(m, lambda: self._repair(m, pruned, condensed))
        )
        final = self._stage("distilled", copy.deepcopy(repaired), lambda m: self._distil(m, teacher, distilling))
        final = network.flush_denormals(_formatted(final, torch.contiguous_format).cpu().eval())
        models = {"original": self.original, "condensed": condensed, "pruned": pruned, "repaired": repaired}
        done = {stage: model for stage, model in (models | {"distilled": final}).items() if stage in self.stages}
        report = processes.decided(lambda: self._hand_over(final, found, name, done))
        return CompressedModel(final, self.plan, report, self.out)

    def _deliver(self) -> Delivery:
        """Decided by the first process, whose machine is the one that is measured."""
        found = processes.decided(self._delivered)
        self.plan = found.plan
        return found

    def _delivered(self) -> Delivery:
        notes = self.ledger.notes("delivery")
        path = self.ledger.folder / "plan.json"
        if notes is None:
            found = self._chosen()
            self.ledger.folder.mkdir(parents=True, exist_ok=True)
            found.plan.save(path)
            chosen = found.rounds.index(found.chosen)
            self.ledger.finish("delivery", {"rounds": [asdict(r) for r in found.rounds], "chosen": chosen})
        else:
            rounds = tuple(Round(**fields) for fields in notes["rounds"])
            found = Delivery(load_plan(path), rounds[notes["chosen"]], rounds)
        return found

    def _chosen(self) -> Delivery:
        if self.measure is None:
            self.notify(f"{self.table.device.id} is another machine: nothing is measured, the plan is as predicted")
            return promised(self.plan, self.net, self.table, self.others)
        return deliver(
            self.plan,
            self.source,
            self.net,
            self.table,
            self.measure,
            self.others,
            corrections=self.recipe.corrections,
            notify=self.notify,
        )

    def _stage(
        self, name: str, model: nn.Module, build: Callable[[nn.Module], dict[str, Any]], *, keep: bool = True
    ) -> nn.Module:
        """Do a stage on `model` in place and put it on record, or load what it came to before."""
        notes = self.ledger.notes(name)
        if notes is not None:
            if keep and processes.leads():
                model.load_state_dict(self.ledger.tensors(name))
        else:
            start = time.monotonic()
            detail = build(model.train(False))
            seconds = time.monotonic() - start
            notes = processes.decided(lambda: asdict(self.school.examiner.judge(model, full=True))) | {
                "seconds": max(seconds, detail.get("curve", {}).get("seconds", 0.0)),
                "detail": detail,
            }
            self.ledger.finish(name, notes, _state(model) if keep else None)
            self.notify(f"{name}: " + ", ".join(f"{metric} {value:.4g}" for metric, value in notes["quality"].items()))
        processes.share_state(model)
        self.stages[name] = Stage(**notes | {"error": math.inf if notes["error"] is None else notes["error"]})
        return model.eval()

    def _condense(self, allowance: Allowance) -> nn.Module:
        if allowance.empty:
            return self.original
        model = self._stage("condensed", copy.deepcopy(self.original), lambda m: self._condensed(m, allowance))
        self.plan = replace(self.plan, survivors=self._condenser(model).keep)
        return model

    def _condensed(self, model: nn.Module, allowance: Allowance) -> dict[str, Any]:
        def hook(student: nn.Module) -> Callable[[float], None]:
            return student.after_step if isinstance(student, Gated) else self._condenser(student).after_step

        gated = self.recipe.condense == "hard-concrete"
        student = Gated(model, self.net, self.plan.widths, self.plan.importance) if gated else model
        curve = self.school.train("condensed", student, self.original, allowance, hook=hook)
        if isinstance(student, Gated):
            student.fold()
        last = self._condenser(model)
        last.after_step(1.0)
        alone(model, lambda: self.school.settle(model))
        return {"curve": curve} | asdict(last.report())

    def _condenser(self, model: nn.Module) -> Condenser:
        plan, entries = self.plan, self.recipe.condense == "l1"
        costs = costs_per_channel({layer.name: layer.baseline_ms for layer in plan.layers}, self.net)
        return Condenser(model, self.original, self.net, plan.widths, plan.importance, costs=costs, entries=entries)

    def _cut(self, condensed: nn.Module, pruned: nn.Module) -> dict[str, Any]:
        """Compare the network before and after the cut: what condensation was to make small."""
        return {"against_condensed": self.school.examiner_of(condensed, CUT_ITEMS).judge(pruned).quality}

    def _teacher(self, condensed: nn.Module, pruned: nn.Module) -> tuple[str, nn.Module]:
        candidate = condensed if "condensed" in self.stages else None
        wanted, error, original = self.recipe.teacher, self.stages["pruned"].error, self.original
        name = processes.decided(lambda: choose_teacher(wanted, original, candidate, error, self.school.examiner)[0])
        teacher = candidate if name == "condensed" and candidate is not None else self.original
        if name != self.recipe.teacher and candidate is not None:
            self.notify("teacher: the original, as the condensed network is no better than what was cut from it")
        return name, teacher

    def _repair(self, model: nn.Module, pruned: nn.Module, dense: nn.Module) -> dict[str, Any]:
        """Refit towards what it was cut from, and recalibrate; a repair that raises the held-out error is undone."""
        refits = []
        if self.recipe.repair:
            batches = self.school.batches
            size = min(batches.batch_size, REPAIR_BATCH)
            item = sum(x[0].numel() * x.element_size() for x in next(batches.plain(1))[0])
            count = max(2 * REPAIR_BATCH, min(REPAIR_ITEMS, REPAIR_BYTES // item))
            calibration = list(batches.plain(count, size))
            refits = repair(model, dense, self.net, self.plan.keep, calibration)
            self.school.settle(model)
            before = self.stages["pruned"].error
            if not self.school.examiner.judge(model).error <= before:
                model.load_state_dict(pruned.state_dict())
                self.school.settle(model)
        return {"layers": [asdict(refit) for refit in refits]}

    def _distil(self, model: nn.Module, teacher: nn.Module, allowance: Allowance) -> dict[str, Any]:
        return self.school.distil(model, teacher, allowance, self.plan.keep, self.stages["repaired"].error)

    def _hand_over(
        self, final: nn.Module, found: Delivery, teacher: str, models: dict[str, nn.Module]
    ) -> dict[str, Any]:
        last = found.chosen if self.measure is None else self._measured(final, self.measure)
        examiner = self.school.examiner
        example = network.example_inputs(self.net.input_shapes)
        self._save(final, example)
        files = exported(self.out, final, example, self.plan.runtime)
        for name, made in files.items():
            if made["file"] is None:
                self.notify(f"{name} {made['note']}")
        notes = {"teacher": teacher, "held_out_items": examiner.count, "files": files}
        notes |= {"measured": self.measure is not None}
        notes |= {"bf16": self.school.bf16, "teacher_runtime": self.school.teacher_runtime}
        notes["not_measured"] = list(examiner.absent)
        report = build_report(self.plan, self.net, found, last, self.stages, self.recipe, notes)
        write_json(self.out / "report.json", report)
        report = dict(read_json(self.out / "report.json"))
        write_page(self.out / "report.html", report, self.task, examiner, models)
        self.ledger.finish(LAST, {})
        self.ledger.clear()
        return report

    def _save(self, final: nn.Module, example: tuple[Tensor, ...]) -> None:
        """Write what `load` reads, and read it. Raises StoreError where that is not the network that was trained."""
        save(self.out, final, self.plan, self.net)
        self.plan.save(self.out / "plan.json")
        error, alike = compared(in_torch(load(self.out, copy.deepcopy(self.source))), final, example)
        if not alike:
            raise StoreError(
                f"{self.out}: the network loaded from there differs from the trained one by {error:.2g} of the largest "
                "output; give its class no state beside parameters and buffers, and run this again"
            )

    def _measured(self, final: nn.Module, measure: Measure) -> Round:
        """The delivered latency; the median of FINAL_TRIES measurements when the first is over the budget."""
        example = network.example_inputs(self.net.input_shapes)
        tries: list[Round] = []
        while not tries or (tries[0].ratio > 1 and len(tries) < FINAL_TRIES):
            tries.append(prove(self.plan, self.source, final, example, self.table.device, measure, FINAL_ROUNDS))
        return sorted(tries, key=lambda found: found.ratio)[len(tries) // 2]


def _silent(line: str) -> None:
    """What the processes that follow say."""


def _formatted(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    return model.to(memory_format=memory_format)  # type: ignore[call-overload]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
