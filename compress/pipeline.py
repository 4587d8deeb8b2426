"""Fourth room of the spine: a plan goes in, the network that was promised comes out, each stage measured.

deliver (is the plan as fast as promised?) → condense → prune → repair → distil → measure → store and report
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import latency
import network
from compress import processes
from compress.batches import Batches, forward, seeded
from compress.checkpoint import read_json, write_json
from compress.condense import Condenser, costs_per_channel
from compress.delivery import Delivery, Measure, Round, deliver, measure_pair
from compress.distill import Distillation, choose_teacher
from compress.imitation import tensors
from compress.ledger import Ledger, identity
from compress.metrics import Examiner
from compress.norms import has_statistics, recalibrate
from compress.page import write_page
from compress.precision import faster_in_bf16
from compress.prune import check_plan, prune
from compress.rate import Choice, choose_rate
from compress.recipe import ITEMS, PICTURES, Allowance, Recipe
from compress.repair import repair
from compress.report import Stage, build_report
from compress.store import check_writable, export_onnx, export_torch, load, save
from compress.training import Trainer
from latency import LatencyTable
from network.types import Network
from search import Plan, load_plan, parse_budget
from search.task import Task

__all__ = ["CompressedModel", "apply_plan"]

STATISTICS_ITEMS = 256
STATISTICS_BATCH = 32
REPAIR_ITEMS = 256
REPAIR_BATCH = 16
REPAIR_BYTES = 2**29
CUT_ITEMS = 64
FINAL_TRIES = 5
PACE_STEPS = 3
FINAL_ROUNDS = 25

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CompressedModel:
    """The delivered network in eval mode, the plan that it has (corrected where the first missed), and its report."""

    model: nn.Module
    plan: Plan
    report: dict[str, Any]
    folder: Path

    @property
    def met(self) -> bool:
        """Whether the delivered latency keeps the budget."""
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
    networks, latency.measure unless a test brings its clock. notify: told one line per stage.
    A run in `out` that was cut off goes on by itself when plan, weights and choices are the same; `resume` insists.
    Under torchrun or `accelerate launch` the processes share every batch, and the first does the rest.
    Raises StoreError before any work if `out` cannot be written, PlanError for a plan of another network,
    BudgetError when no plan keeps the budget, InputError when training diverges.
    """
    recipe, out = Recipe(**choices), Path(out)
    check_plan(plan, model, net)
    processes.join()
    notify = notify if processes.leads() else _silent
    processes.decided(lambda: check_writable(out))
    key = identity(plan.to_json(), recipe.as_dict(), table.device.id)
    ledger = Ledger(out / "run", key, resume=resume, notify=notify)
    run = _Run(plan, model, net, (table, *others), task, out, recipe, ledger, measure or latency.measure, notify)
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
        measure: Measure,
        notify: Callable[[str], Any],
    ):
        self.plan, self.net, self.task, self.out = plan, net, task, out
        self.table, *self.others = tables
        self.recipe, self.ledger, self.measure, self.notify = recipe, ledger, measure, notify
        self.source = model
        self.original = _formatted(copy.deepcopy(model).eval(), torch.channels_last)
        self.device = str(next(iter(model.parameters())).device)
        self.batch_size = recipe.batch_size or task.batch_size
        self.stages: dict[str, Stage] = {}

    def finished(self) -> CompressedModel | None:
        """The result of a run that had come to its end."""
        report = self.out / "report.json"
        if self.ledger.notes("report") is None or not processes.decided(report.exists):
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
        self.batches = Batches(self.task.train, self.batch_size, seed=self.recipe.seed, device=self.device)
        if processes.leads():
            self.examiner = Examiner(
                self.original, self.task, limit=self._heldout(), batch_size=self.batch_size, device=self.device
            )
        self.bf16 = self._choose_precision()
        condensing, distilling = self.recipe.split(self._step_seconds())
        self._stage("original", self.original, lambda model: {}, keep=False)
        condensed = self._condense(condensing)
        pruned = self._stage(
            "pruned", prune(self.plan, condensed, self.net), lambda m: self._alone(m, lambda: self._cut(condensed, m))
        )
        name, teacher = self._teacher(condensed, pruned)
        repaired = self._stage(
            "repaired", copy.deepcopy(pruned), lambda m: self._alone(m, lambda: self._repair(m, pruned, teacher))
        )
        final = self._stage(
            "distilled", copy.deepcopy(repaired), lambda m: self._distill(m, repaired, teacher, distilling)
        )
        final = _formatted(final, torch.contiguous_format).cpu().eval()
        models = {"original": self.original, "condensed": condensed, "pruned": pruned, "repaired": repaired}
        done = {stage: model for stage, model in (models | {"distilled": final}).items() if stage in self.stages}
        report = processes.decided(lambda: self._hand_over(final, found, name, done))
        return CompressedModel(final, self.plan, report, self.out)

    def _heldout(self) -> int:
        with torch.no_grad():
            output = tensors(forward(self.original, self.batches.batch(0)[0]))[0]
        return self.recipe.heldout or (PICTURES if output.dim() == 4 else ITEMS)

    def _deliver(self) -> Delivery:
        """Decided by the first process, whose machine is the one that is measured."""
        found = processes.decided(self._delivered)
        self.plan = found.plan
        return found

    def _delivered(self) -> Delivery:
        notes = self.ledger.notes("delivery")
        path = self.ledger.folder / "plan.json"
        if notes is None:
            found = deliver(
                self.plan,
                self.source,
                self.net,
                self.table,
                self.measure,
                self.others,
                corrections=self.recipe.corrections,
                notify=self.notify,
            )
            self.ledger.folder.mkdir(parents=True, exist_ok=True)
            found.plan.save(path)
            chosen = found.rounds.index(found.chosen)
            self.ledger.finish("delivery", {"rounds": [asdict(r) for r in found.rounds], "chosen": chosen})
        else:
            rounds = tuple(Round(**fields) for fields in notes["rounds"])
            found = Delivery(load_plan(path), rounds[notes["chosen"]], rounds)
        return found

    def _choose_precision(self) -> bool:
        """Timed once per run: a resumed run must go on in the precision that it began in."""
        notes = self.ledger.notes("precision")
        if notes is None:
            auto, trial = self.recipe.autocast == "auto", copy.deepcopy(self.original)
            faster = processes.decided(lambda: auto and faster_in_bf16(trial, self.batches.batch(0)[0]))
            self.ledger.finish("precision", notes := {"bf16": faster})
        return bool(notes["bf16"])

    def _step_seconds(self) -> float:
        """How long a step of condensation takes, where that decides whether there will be one."""
        if self.recipe.condense != "auto" or self.recipe.minutes is None:
            return 0.0
        notes = self.ledger.notes("pace")
        if notes is None:
            model, lesson = copy.deepcopy(self.original), self._lesson(self.original)
            trial = self._trainer(model, lesson, Allowance(steps=PACE_STEPS), 1e-6, "timing a step")
            trial.run()
            self.ledger.finish("pace", notes := {"step_s": trial.seconds / PACE_STEPS})
        return float(notes["step_s"])

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
            notes = processes.decided(lambda: asdict(self.examiner.judge(model, full=True))) | {
                "seconds": max(seconds, detail.get("curve", {}).get("seconds", 0.0)),
                "detail": detail,
            }
            self.ledger.finish(name, notes, _state(model) if keep else None)
            self.notify(f"{name}: " + ", ".join(f"{metric} {value:.4g}" for metric, value in notes["quality"].items()))
        processes.share_state(model)
        self.stages[name] = Stage(**notes)
        return model.eval()

    def _alone(self, model: nn.Module, work: Callable[[], T]) -> T:
        """What the first process alone does to a model, which all then have."""
        found = processes.decided(work)
        processes.share_state(model)
        return found

    def _condense(self, allowance: Allowance) -> nn.Module:
        if allowance.empty:
            return self.original
        model = copy.deepcopy(self.original)
        return self._stage("condensed", model, lambda m: self._condensed(m, allowance))

    def _condensed(self, model: nn.Module, allowance: Allowance) -> dict[str, Any]:
        costs = costs_per_channel({layer.name: layer.baseline_ms for layer in self.plan.layers}, self.net)

        def condenser(model: nn.Module) -> Condenser:
            return Condenser(model, self.net, self.plan.keep, costs=costs, entries=self.recipe.condense == "l1")

        mine = condenser(model)
        curve = self._train(
            "condensed", model, self.original, allowance, lambda m: (mine if m is model else condenser(m)).after_step
        )
        mine.after_step(1.0)
        self._alone(model, lambda: self._settle(model))
        return {"curve": curve} | asdict(mine.report())

    def _cut(self, condensed: nn.Module, pruned: nn.Module) -> dict[str, Any]:
        """Compare the network before and after the cut: what condensation was to make small."""
        before = Examiner(condensed, self.task, limit=CUT_ITEMS, batch_size=self.batch_size, device=self.device)
        return {"against_condensed": before.judge(pruned).quality}

    def _teacher(self, condensed: nn.Module, pruned: nn.Module) -> tuple[str, nn.Module]:
        candidate = condensed if "condensed" in self.stages else None
        wanted, error = self.recipe.teacher, self.stages["pruned"].error
        name = processes.decided(lambda: choose_teacher(wanted, self.original, candidate, error, self.examiner)[0])
        teacher = candidate if name == "condensed" and candidate is not None else self.original
        if name != self.recipe.teacher and candidate is not None:
            self.notify("teacher: the original, as the condensed network is no better than what was cut from it")
        return name, teacher

    def _repair(self, model: nn.Module, pruned: nn.Module, teacher: nn.Module) -> dict[str, Any]:
        """Refit and recalibrate; a repair that raises the held-out error is undone."""
        refits = []
        if self.recipe.repair:
            size = min(self.batch_size, REPAIR_BATCH)
            item = sum(x[0].numel() * x.element_size() for x in self.batches.batch(0)[0])
            count = max(2 * REPAIR_BATCH, min(REPAIR_ITEMS, REPAIR_BYTES // item))
            calibration = list(self.batches.plain(count, size))
            refits = repair(model, teacher, self.net, self.plan.keep, calibration)
            self._settle(model)
            before = self.stages["pruned"].error
            if not self.examiner.judge(model).error <= before:
                model.load_state_dict(pruned.state_dict())
                self._settle(model)
        return {"layers": [asdict(refit) for refit in refits]}

    def _distill(
        self, model: nn.Module, repaired: nn.Module, teacher: nn.Module, allowance: Allowance
    ) -> dict[str, Any]:
        """Train; a student that ends worse than it began gives way to what it began as."""
        curve = self._train("distilled", model, teacher, allowance)
        self._alone(model, lambda: self._settle(model))
        kept = processes.decided(lambda: self.examiner.judge(model).error <= self.stages["repaired"].error)
        if not kept:
            model.load_state_dict(repaired.state_dict())
            self.notify(f"distillation at --lr {curve['lr']:g} gained nothing; the repaired network is delivered")
        return {"curve": curve, "kept": kept}

    def _train(
        self,
        stage: str,
        model: nn.Module,
        teacher: nn.Module,
        allowance: Allowance,
        hook: Callable[[nn.Module], Callable[[float], None] | None] = lambda model: None,
    ) -> dict[str, Any]:
        """Train `model` in place to imitate `teacher`; `hook` makes what runs after each of a model's steps."""

        def trainer(student: nn.Module, rate: float, allowed: Allowance) -> Trainer:
            name = stage if student is model else f"{stage}, trying --lr {rate:g}"
            checkpoint = self.ledger.checkpoint(stage) if student is model else None
            lesson = self._lesson(teacher, student if stage == "distilled" else None)
            return self._trainer(student, lesson, allowed, rate, name, checkpoint, hook(student))

        notes = self.ledger.notes(f"{stage} rate")
        if notes is None:
            given = self.recipe.lr
            choice = choose_rate(model, trainer, allowance) if given is None else Choice(given)
            self.ledger.finish(f"{stage} rate", notes := asdict(choice))
        choice = Choice(**notes)
        curve = trainer(model, choice.rate, choice.rest(allowance)).run()
        return curve.as_dict() | {"lr": choice.rate, "trials": choice.losses}

    def _lesson(self, teacher: nn.Module, narrow: nn.Module | None = None) -> Distillation:
        """What a network learns from its teacher; a narrow one with adaptors and a judge where they are asked for."""
        teaching, sample = self.recipe.teaching, self.batches.batch(0)
        if narrow is None:
            return Distillation(teacher, self.task, teaching.plain, sample)
        judge = self.recipe.discriminator and network.load_model(self.recipe.discriminator)
        with seeded(self.recipe.seed):
            lesson = Distillation(teacher, self.task, teaching, sample)
            return lesson.accompany(narrow, self.net, self.plan.keep, sample, judge or None)

    def _trainer(
        self,
        student: nn.Module,
        lesson: Distillation,
        allowance: Allowance,
        rate: float,
        name: str,
        checkpoint: Path | None = None,
        after_step: Callable[[float], None] | None = None,
    ) -> Trainer:
        return Trainer(
            student,
            lesson,
            self.batches,
            allowance,
            lr=rate,
            name=name,
            checkpoint=checkpoint,
            after_step=after_step,
            bf16=self.bf16,
            ema=self.recipe.ema,
        )

    def _settle(self, model: nn.Module) -> None:
        """Recalibrate running statistics where that lowers the held-out error."""
        if has_statistics(model):
            before, state = self.examiner.judge(model).error, copy.deepcopy(model.state_dict())
            recalibrate(model, self.batches.plain(STATISTICS_ITEMS, max(self.batch_size, STATISTICS_BATCH)))
            if not self.examiner.judge(model).error <= before:
                model.load_state_dict(state)

    def _hand_over(
        self, final: nn.Module, found: Delivery, teacher: str, models: dict[str, nn.Module]
    ) -> dict[str, Any]:
        last = self._measure(final)
        save(self.out, final, self.plan, self.net)
        self.plan.save(self.out / "plan.json")
        example = network.example_inputs(self.net.input_shapes)
        files = {
            "model.pt2": export_torch(self.out, final, example),
            "model.onnx": export_onnx(self.out, final, example),
        }
        notes = {"teacher": teacher, "bf16": self.bf16, "held_out_items": self.examiner.count, "files": files}
        notes["not_measured"] = list(self.examiner.absent)
        report = build_report(self.plan, self.net, found, last, self.stages, self.recipe, notes)
        write_json(self.out / "report.json", report)
        write_page(self.out / "report.html", report, self.task, self.examiner, models)
        self.ledger.finish("report", {})
        self.ledger.clear()
        return dict(read_json(self.out / "report.json"))

    def _measure(self, final: nn.Module) -> Round:
        """The delivered latency; the median of FINAL_TRIES measurements when the first is over the budget."""
        budget, example = parse_budget(self.plan.budget), network.example_inputs(self.net.input_shapes)
        tries: list[Round] = []
        while not tries or (tries[0].ratio > 1 and len(tries) < FINAL_TRIES):
            times = measure_pair(self.source, final, example, self.table.device, self.measure, FINAL_ROUNDS)
            baseline_ms, delivered_ms = times["original"].median_ms, times["narrow"].median_ms
            budget_ms = budget.at(baseline_ms)
            tries.append(Round(self.plan.predicted_ms, delivered_ms, budget_ms, baseline_ms, dict(self.plan.widths)))
        return sorted(tries, key=lambda found: found.ratio)[len(tries) // 2]


def _silent(line: str) -> None:
    """What the processes that follow say."""


def _formatted(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    return model.to(memory_format=memory_format)  # type: ignore[call-overload]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
