"""`search`: the second command. From a latency budget to plan.json."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from network.command_line import (
    add_image_options,
    add_model_options,
    add_profiles_option,
    positive_int,
    run,
)
from network.errors import BudgetError, InputError, StoreError
from search.budget import parse_budget
from search.plan import Feed, ModelReference, Plan, Settings

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from network import Network
    from search.task import Task

__all__ = ["main"]

SLOWEST = 8

_EPILOG = """\
examples:
  search my_model.py:build --input 1x3x256x256 --latency-budget 20ms -o plan.json
  search torchvision.models:resnet18 --input 1x3x224x224 --latency-budget 0.5x --weights w.pth --images photos/
  search my_model.py:build --input 1x3x32x32 --latency-budget 0.5x --task my_task.py:MyTask --runtime openvino
  search my_model.py:build --input 1x3x256x256 --images photos/ --front 64 -o plan.json

The layers must have been measured on the device: profile-device MODEL --input SHAPE.

exit codes: 0 done; 2 something to mend, said in one line; 1 a bug
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="search",
        description="Choose the width of every channel group: most importance within a latency budget, with a proof.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument("--latency-budget", metavar="20ms|0.5x", help="milliseconds, or a ratio of the full network's")
    parser.add_argument(
        "--front",
        metavar="N",
        type=positive_int,
        help="also N plans from the fastest to the full network, in OUT-front/; without a budget OUT is the knee's",
    )
    parser.add_argument("--device", metavar="ID", help="a device of the store (default: this machine)")
    parser.add_argument("--runtime", metavar="R", default="torch", help="what runs the network (default: %(default)s)")
    parser.add_argument("--precision", metavar="P", default="fp32", help="fp32, bf16, … (default: %(default)s)")
    parser.add_argument(
        "--threads", metavar="N", type=positive_int, help="the runtime's threads (default: as measured)"
    )
    add_image_options(parser)
    _add_search_options(parser)
    add_profiles_option(parser)
    parser.add_argument("--json", action="store_true", help="print the plan, or the front, on stdout")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="where to write the plan, such as plan.json")
    return parser


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    defaults = Settings()
    parser.add_argument(
        "--importance",
        choices=("taylor", "magnitude"),
        help="what a channel is worth (default: taylor with --images or --task, else magnitude)",
    )
    parser.add_argument(
        "--batches", metavar="N", type=positive_int, default=16, help="minibatches for taylor (default: %(default)s)"
    )
    parser.add_argument("--options", metavar="N", type=positive_int, help="widths per group (default: up to 32, by 8)")
    parser.add_argument(
        "--min-width",
        metavar="F",
        type=float,
        default=defaults.min_width,
        help="least share of a group's channels to keep (default: %(default)s)",
    )
    parser.add_argument("--max-params", metavar="N", type=positive_int, help="most parameters")
    parser.add_argument("--max-macs", metavar="N", type=float, help="most multiply-accumulates, such as 2e9")
    parser.add_argument("--max-memory", metavar="BYTES", type=positive_int, help="most bytes of activations at once")
    parser.add_argument(
        "--time-limit",
        metavar="S",
        type=float,
        default=defaults.time_limit_s,
        help="seconds to prove the plan best; the plan states the gap left (default: %(default)s)",
    )


def main(argv: list[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    return run(_search, argv)


def _search(argv: list[str] | None) -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    arguments = parser().parse_args(_with_budget_joined(sys.argv[1:] if argv is None else argv))
    _check(arguments)
    # After the checks that need no model, so that a typing error costs no time.
    from latency import open_table
    from network import example_inputs, load_model, load_weights, parse_input, trace
    from search.front import front, save_front
    from search.planner import Problem

    shapes = tuple(parse_input(text) for text in arguments.input)
    model = load_model(arguments.model, arguments.model_args)
    if arguments.weights:
        load_weights(model, arguments.weights)
    net = trace(model, example_inputs(shapes))
    table = open_table(
        arguments.profiles,
        net,
        device=arguments.device,
        runtime=arguments.runtime,
        precision=arguments.precision,
        threads=arguments.threads,
    )
    importance = _importance(arguments, model, net, shapes)
    problem = Problem(
        model,
        net,
        table,
        importance,
        reference=ModelReference(arguments.model, arguments.model_args, shapes),
        feed=Feed(arguments.images, arguments.preprocess or "unit", bool(arguments.bgr), arguments.task),
        settings=_settings(arguments),
    )
    plan = problem.plan(parse_budget(arguments.latency_budget)) if arguments.latency_budget else None
    document = None
    if arguments.front:
        plans = front(problem, arguments.front)
        document = save_front(_front_folder(arguments.output), plans)
        plan = plan or plans[document["knee"] - 1]
    assert plan is not None, "_check lets no command through that has neither a budget nor a front"
    if arguments.output:
        plan.save(arguments.output)
    if document:
        print(_front_table(document, _front_folder(arguments.output)), file=sys.stderr)
    print(_summary(plan, net, arguments.output), file=sys.stderr)
    if arguments.json:
        sys.stdout.write(plan.to_json() if document is None else json.dumps(document, indent=1) + "\n")
    return 0


def _front_folder(output: Path) -> Path:
    """plan.json → plan-front/ beside it."""
    return output.with_name(f"{output.stem}-front")


def _front_table(document: Mapping[str, Any], folder: Path) -> str:
    lines = [f"{'plan':>4} {'ms':>9} {'speed-up':>9} {'importance':>10}  proof"]
    for row in document["plans"]:
        lines.append(
            f"{row['plan']:4} {row['predicted_ms']:9.4g} {row['speedup']:8.2f}x {row['importance_kept']:10.2%}  "
            f"{row['status']}, gap {row['gap']:.1e}{'  ← knee' if row['plan'] == document['knee'] else ''}"
        )
    return "\n".join([*lines, f"front      {folder}: front.svg, front.csv, front.json, plan-*.json for apply-plan"])


def _with_budget_joined(argv: list[str]) -> list[str]:
    """The arguments with --latency-budget and its value as one: argparse takes "-5ms" for an option of its own."""
    flag = "--latency-budget"
    if flag not in argv[:-1]:
        return argv
    at = argv.index(flag)
    return [*argv[:at], f"{flag}={argv[at + 1]}", *argv[at + 2 :]]


def _check(arguments: argparse.Namespace) -> None:
    """What can be said before any work."""
    if arguments.latency_budget is not None:
        parse_budget(arguments.latency_budget)
    elif arguments.front is None:
        raise BudgetError("no budget; give --latency-budget 20ms or 0.5x, or --front 64 for all of them")
    if not arguments.input:
        raise InputError("no --input; give the shape of the network's input, such as --input 1x3x224x224")
    if arguments.images and arguments.task:
        raise InputError("--images and --task together; give one of them")
    if arguments.importance == "taylor" and not (arguments.images or arguments.task):
        raise InputError("--importance taylor needs data; give --images DIR or --task FILE:CLASS")
    if not 0 <= arguments.min_width <= 1:
        raise InputError(f"--min-width {arguments.min_width} is no share; give a number from 0 to 1")
    for option, value in (("--max-macs", arguments.max_macs), ("--time-limit", arguments.time_limit)):
        if value is not None and not value > 0:
            raise BudgetError(f"{option} {value} is not positive; raise it or leave it out")
    _check_output(arguments)


def _check_output(arguments: argparse.Namespace) -> None:
    output: Path | None = arguments.output
    if arguments.front is not None and arguments.front < 2:
        raise InputError(f"--front {arguments.front} is no front; give 2 plans or more")
    if output is None:
        if arguments.front is not None:
            raise StoreError("--front writes a file per plan; give -o plan.json")
        if not arguments.json:
            raise StoreError("the plan would be lost; give -o plan.json, or --json to print it")
    elif not output.parent.is_dir():
        raise StoreError(f"cannot write {output}: no folder {output.parent}; make it first")
    elif output.is_dir():
        raise StoreError(f"cannot write {output}: it is a folder; name a file, such as plan.json")


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        options=arguments.options,
        min_width=arguments.min_width,
        max_params=arguments.max_params,
        max_macs=arguments.max_macs,
        max_memory=arguments.max_memory,
        time_limit_s=arguments.time_limit,
    )


def _importance(
    arguments: argparse.Namespace, model: nn.Module, net: Network, shapes: Sequence[tuple[int, ...]]
) -> dict[str, np.ndarray]:
    from search.importance import magnitude, taylor

    task = _task(arguments, shapes)
    if task is None:
        print("note: no --images or --task, so channels are ranked by the norm of their weights", file=sys.stderr)
    if task is None or arguments.importance == "magnitude":
        return magnitude(model, net)
    return taylor(model, net, task, arguments.batches, progress=True)


def _task(arguments: argparse.Namespace, shapes: Sequence[tuple[int, ...]]) -> Task | None:
    from search.task import Imitation, load_task

    if arguments.task:
        return load_task(arguments.task)
    if not arguments.images:
        return None
    from network import open_images

    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise InputError("--images feeds networks of one input NxCxHxW; give --task FILE:CLASS for others")
    size = shapes[0][1:]
    return Imitation(open_images(arguments.images, size, arguments.preprocess or "unit", bgr=bool(arguments.bgr)))


def _summary(plan: Plan, net: Network, output: Path | None) -> str:
    """What a reader wants to know of a plan, in a dozen lines."""
    parameters, macs = net.parameter_count(plan.widths), net.macs(plan.widths)
    ratio, full = plan.predicted_ms / plan.baseline_ms, net.parameter_count()
    lines = [
        f"budget     {plan.budget_ms:.4g} ms ({plan.budget}) on {plan.device}",
        f"predicted  {plan.predicted_ms:.4g} ms, {ratio:.0%} of {plan.baseline_ms:.4g} ms",
        f"proof      {plan.status}, gap {plan.gap:.1e}",
        f"searched   10^{plan.choices_log10:.0f} plans in {plan.solve_seconds:.1f} s",
        f"parameters {parameters / 1e6:.3g} M of {full / 1e6:.3g} M",
        f"MACs       {macs / 1e9:.3g} G of {net.macs() / 1e9:.3g} G",
        f"frozen     {len(plan.frozen)} of {len(plan.frozen) + len(plan.widths)} channel groups",
        "slowest layers                             ms → ms        c_in → c_out",
    ]
    for layer in sorted(plan.layers, key=lambda layer: -layer.baseline_ms)[:SLOWEST]:
        name = f"{layer.module} {layer.name}".strip()
        lines.append(f"  {name:36.36} {layer.baseline_ms:8.3f} → {layer.ms:<8.3f} {layer.c_in} → {layer.c_out}")
    return "\n".join([*lines, *([f"plan       {output}"] if output else [])])


if __name__ == "__main__":
    sys.exit(main())
