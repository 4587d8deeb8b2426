"""`search`: the second command. From a latency budget to plan.json."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from network.command_line import (
    add_image_options,
    add_model_options,
    add_profiles_option,
    positive_int,
    run,
)
from network.errors import BudgetError, InputError, StoreError
from network.files import check_writable, write_atomically
from search.budget import Budget, parse_budget
from search.plan import LEAST, Feed, ModelReference, Plan, Settings, load_plan
from search.summary import plans_table, summary

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from latency import LatencyTable
    from network import Network
    from search.planner import Problem
    from search.service.remote import RemoteProblem

__all__ = ["main"]

Number = TypeVar("Number", int, float)

_EPILOG = """\
examples:
  search my_model.py:build --input 1x3x256x256 --latency-budget 20ms -o plan.json
  search torchvision.models:resnet18 --input 1x3x224x224 --latency-budget 0.5x --weights w.pth --images photos/
  search my_model.py:build --input 1x3x32x32 --latency-budget 0.5x --task my_task.py:MyTask --runtime openvino
  search net.py:build --input 1x3x64x64 --latency-budget 0.5x -o plan.json --task compress.tasks:Denoising \\
    --task-args '{"folder": "photos.zip", "sigma": 15}'
  search my_model.py:build --input 1x3x256x256 --images photos/ --front 64 -o plan.json
  search my_model.py:build --input 1x3x256x256 --latency-budget 20ms --keep 'encoder.0' --multiple-of 'up*=16' -o p.json
  search my_model.py:build --input 1x3x64x64 --device a --latency-budget 20ms --device b --latency-budget 9ms -o p.json
  search --explain plan.json
  search my_model.py:build --input 1x3x64x64 --latency-budget 20ms --server http://127.0.0.1:8765 -o plan.json

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
    add_model_options(parser, optional=True)
    parser.add_argument(
        "--latency-budget",
        metavar="20ms|0.5x",
        action="append",
        default=[],
        help="milliseconds, or a ratio of the full network's; once for every --device",
    )
    parser.add_argument(
        "--front",
        metavar="N",
        type=positive_int,
        help="also N plans from the fastest to the full network, in OUT-front/; without a budget OUT is the knee's",
    )
    parser.add_argument(
        "--top",
        metavar="K",
        type=positive_int,
        help="also K plans of this budget, in OUT-top/: the best, and the best of those that are well apart from it",
    )
    parser.add_argument(
        "--explain",
        metavar="PLAN",
        type=Path,
        help="say where that plan's milliseconds went and where the next would come from; with a plot beside it",
    )
    parser.add_argument(
        "--device",
        metavar="ID",
        action="append",
        default=[],
        help="a device of the store, as profile-device --list names it (default: this one); several: one plan for all",
    )
    parser.add_argument("--runtime", metavar="R", default="torch", help="what runs the network (default: %(default)s)")
    parser.add_argument("--precision", metavar="P", default="fp32", help="fp32, bf16, … (default: %(default)s)")
    parser.add_argument(
        "--threads", metavar="N", type=positive_int, help="the runtime's threads (default: as measured)"
    )
    add_image_options(parser)
    _add_search_options(parser)
    add_profiles_option(parser)
    parser.add_argument("--push", metavar="URL", help="also send the network with its importance to a service")
    parser.add_argument("--server", metavar="URL", help="let that service search, in its tables; the network is pushed")
    parser.add_argument("--network", metavar="ID", help="with --server, instead of MODEL: a network that it has")
    parser.add_argument("--json", action="store_true", help="print the plan, the plans or the explanation on stdout")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="where to write the plan, such as plan.json")
    return parser


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    defaults = Settings()
    parser.add_argument(
        "--importance",
        choices=("sensitivity", "taylor", "magnitude"),
        help="what a channel is worth (default: sensitivity with --images or --task, else magnitude)",
    )
    parser.add_argument(
        "--batches",
        metavar="N",
        type=positive_int,
        default=16,
        help="minibatches for taylor, which also ranks channels for sensitivity (default: %(default)s)",
    )
    parser.add_argument("--options", metavar="N", type=positive_int, help="widths per group (default: up to 32, by 8)")
    parser.add_argument(
        "--min-width",
        metavar="[NAME=]F",
        action="append",
        default=[],
        help="least share of a group's channels to keep (default: 0.1); NAME: a module or group, such as 'layer1*'",
    )
    parser.add_argument(
        "--multiple-of", metavar="[NAME=]N", action="append", default=[], help="widths are multiples of N, or full"
    )
    parser.add_argument(
        "--no-removal",
        action="store_true",
        help="keep a few channels of residual branches and gates that could go whole",
    )
    parser.add_argument("--keep", metavar="NAME", action="append", default=[], help="keep every channel this makes")
    parser.add_argument("--frozen", metavar="NAME", action="append", default=[], help="nor narrow what it reads")
    parser.add_argument("--max-params", metavar="N", type=positive_int, help="most parameters")
    parser.add_argument(
        "--max-bytes",
        metavar="BYTES",
        type=positive_int,
        help="most bytes of weights: all parameters and buffers, each number of the precision (fp32: 4 bytes, bf16: 2)",
    )
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
    if arguments.explain:
        return _explain(arguments)
    _check(arguments)
    _settings(arguments)
    net, problem = _remote(arguments) if arguments.server else _local(arguments)
    budgets = _budgets(arguments)
    plan: Plan | None = None
    documents: dict[str, Any] = {}
    if budgets:
        plan, documents = _top(problem, budgets[0], arguments.top, arguments.output)
        _save(plan, arguments.output)
    if arguments.front:
        knee, document = _front(problem, arguments.front, arguments.output)
        documents["front"] = document
        if plan is None:
            _save(plan := knee, arguments.output)
    assert plan is not None, "_check lets no command through that has neither a budget nor a front"
    print(summary(plan, net, arguments.output), file=sys.stderr)
    if arguments.json:
        sys.stdout.write(_document(plan, documents))
    return 0


def _document(plan: Plan, several: Mapping[str, Any]) -> str:
    """What --json prints: the plan, or the table of several plans; by name where --top and --front both gave one."""
    if not several:
        return plan.to_json()
    return json.dumps(several if len(several) > 1 else next(iter(several.values())), indent=1) + "\n"


def _save(plan: Plan, output: Path | None) -> None:
    if output is not None:
        plan.save(output)


def _traced(arguments: argparse.Namespace) -> tuple[nn.Module, Network, ModelReference]:
    """The network, and how a plan names it."""
    # After the checks that need no model, so that a typing error costs no time.
    from network import example_inputs, load_model, parse_input, trace
    from search.weights import weights_sha256

    shapes = tuple(parse_input(text) for text in arguments.input)
    model = load_model(arguments.model, arguments.model_args, arguments.weights)
    reference = ModelReference(arguments.model, arguments.model_args, shapes, weights_sha256(model))
    return model, trace(model, example_inputs(shapes)), reference


def _local(arguments: argparse.Namespace) -> tuple[Network, Problem]:
    """The problem in this machine's store of tables; --push sends the network to a service too."""
    from search.planner import Problem
    from search.task import feed_of

    model, net, reference = _traced(arguments)
    table, *others = _tables(arguments, net)
    budgets, feed = _budgets(arguments), feed_of(arguments)
    limits = list(zip(others, budgets[1:], strict=True))
    about: dict[str, Any] = {"reference": reference, "feed": feed, "settings": _settings(arguments), "others": limits}
    if arguments.images or arguments.task:  # what cannot be met is said now, and not after minutes of measuring
        trial = Problem(net, table, {group.name: [0.0] * group.width for group in net.groups}, **about)
        for budget in budgets[:1]:
            trial.plan(budget)
    importance = _importance(arguments, feed, model, net, reference.input)
    if arguments.push:
        pushed = _service().push_network(arguments.push, net, importance, reference, feed)
        print(f"pushed     network {pushed} to {arguments.push}", file=sys.stderr)
    return net, Problem(net, table, importance, **about)


def _remote(arguments: argparse.Namespace) -> tuple[Network, RemoteProblem]:
    """The problem in the tables of a service, of a network that it has or is given now."""
    remote, url, pushed = _service(), arguments.server, arguments.network
    named = (arguments.runtime, arguments.precision, arguments.threads)
    devices = remote.choose_devices(url, arguments.device or [None], *named)
    if pushed is None:
        from search.task import feed_of

        feed = feed_of(arguments)
        model, net, reference = _traced(arguments)
        importance = _importance(arguments, feed, model, net, reference.input)
        pushed = remote.push_network(url, net, importance, reference, feed)
    problem = remote.RemoteProblem(url, pushed, devices, _budgets(arguments)[1:], _settings(arguments))
    return problem.network, problem


def _service() -> ModuleType:
    """The part that talks to services; raises InputError naming the extra that installs it."""
    try:
        return importlib.import_module("search.service.remote")
    except ImportError as error:
        raise InputError(f"--push and --server need {error.name}; pip install 'narrowgauge[service]'") from None


def _budgets(arguments: argparse.Namespace) -> list[Budget]:
    return [parse_budget(text) for text in arguments.latency_budget]


def _top(
    problem: Problem | RemoteProblem, budget: Budget, count: int | None, output: Path
) -> tuple[Plan, dict[str, Any]]:
    """The best plan; with --top, the plans beside it are saved, said, and returned as a document named "top"."""
    from search.saving import save_plans

    plans = problem.top(budget, count or 1)
    if count is None:
        return plans[0], {}
    folder = _beside(output, "top")
    document = save_plans(folder, "top", plans)
    print(plans_table(document, folder), file=sys.stderr)
    if len(plans) < count:
        print(f"note: no more than {len(plans)} plans were found that are so far apart", file=sys.stderr)
    return plans[0], {"top": document}


def _front(problem: Problem | RemoteProblem, count: int, output: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan at the knee; the whole front is saved, drawn and said."""
    from search.front import knee, plot_front
    from search.saving import save_plans

    plans = problem.front(count)
    at, folder = knee(plans), _beside(output, "front")
    document = save_plans(folder, "front", plans, knee=at + 1)
    write_atomically(folder / "front.svg", plot_front(plans, at).encode())
    print(plans_table(document, folder), file=sys.stderr)
    return plans[at], document


def _explain(arguments: argparse.Namespace) -> int:
    if arguments.model or arguments.latency_budget or arguments.front or arguments.top:
        raise InputError("--explain looks at a plan that exists; leave out MODEL, --latency-budget, --front and --top")
    from network import example_inputs, load_model, trace
    from search.explain import explain, plot_explanation
    from search.tables import open_tables

    plan = load_plan(arguments.explain)
    output = arguments.output or arguments.explain.with_name(f"{arguments.explain.stem}-explained.svg")
    net = trace(load_model(plan.model.ref, plan.model.args), example_inputs(plan.model.input))
    table, *others = open_tables(arguments.profiles, net, plan)
    if table.fingerprint != plan.table_fingerprint:
        print("note: the latency table has changed since the plan was made", file=sys.stderr)
    found = explain(plan, net, table, others)
    write_atomically(output, plot_explanation(found).encode())
    print(json.dumps(found.as_dict(), indent=1) if arguments.json else found)
    print(f"drawn: {output}", file=sys.stderr)
    return 0


def _tables(arguments: argparse.Namespace, net: Network) -> list[LatencyTable]:
    from latency import open_table

    named = {"runtime": arguments.runtime, "precision": arguments.precision, "threads": arguments.threads}
    return [open_table(arguments.profiles, net, device=device, **named) for device in arguments.device or [None]]


def _beside(output: Path, ending: str) -> Path:
    """plan.json → plan-front, beside it."""
    return output.with_name(f"{output.stem}-{ending}")


def _with_budget_joined(argv: list[str]) -> list[str]:
    """The arguments with each --latency-budget and its value as one: argparse takes "-5ms" for an option of its own."""
    joined, flag = list(argv), "--latency-budget"
    while flag in joined[:-1]:
        at = joined.index(flag)
        joined[at : at + 2] = [f"{flag}={joined[at + 1]}"]
    return joined


def _check(arguments: argparse.Namespace) -> None:
    """What can be said before any work."""
    if arguments.network and (arguments.model or not arguments.server):
        raise InputError("--network names what a service has instead of MODEL; give it with --server, and no MODEL")
    if arguments.server and arguments.push:
        raise InputError("--server pushes the network too; leave out --push")
    if arguments.push:
        _service().reach(arguments.push)
    if arguments.model is None and not arguments.network:
        raise InputError("no MODEL; give package.module:callable or path/file.py:callable")
    for budget in arguments.latency_budget:
        parse_budget(budget)
    if not arguments.latency_budget and arguments.front is None:
        raise BudgetError("no budget; give --latency-budget 20ms or 0.5x, or --front 64 for all of them")
    devices = max(1, len(arguments.device))
    if len(arguments.latency_budget) != devices and (arguments.latency_budget or devices > 1):
        raise BudgetError(f"{len(arguments.latency_budget)} budgets for {devices} devices; give one for each, in order")
    if not arguments.input and not arguments.network:
        raise InputError("no --input; give the shape of the network's input, such as --input 1x3x224x224")
    if arguments.images and arguments.task:
        raise InputError("--images and --task together; give one of them")
    if arguments.importance not in (None, "magnitude") and not (arguments.images or arguments.task):
        raise InputError(f"--importance {arguments.importance} needs data; give --images DIR or --task FILE:CLASS")
    if arguments.top and not arguments.latency_budget:
        raise InputError("--top gives several plans of one budget; give --latency-budget 20ms or 0.5x")
    for option, value in (("--max-macs", arguments.max_macs), ("--time-limit", arguments.time_limit)):
        if value is not None and not 0 < value < math.inf:
            raise BudgetError(f"{option} {value} is no positive number; give one, or leave it out")
    _check_output(arguments)


def _check_output(arguments: argparse.Namespace) -> None:
    output: Path | None = arguments.output
    if arguments.front is not None and arguments.front < 2:
        raise InputError(f"--front {arguments.front} is no front; give 2 plans or more")
    if output is None:
        if arguments.front or arguments.top:
            raise StoreError("--front and --top write a file per plan; give -o plan.json")
        if not arguments.json:
            raise StoreError("the plan would be lost; give -o plan.json, or --json to print it")
    elif not output.parent.is_dir():
        raise StoreError(f"cannot write {output}: no folder {output.parent}; make it first")
    elif output.is_dir():
        raise StoreError(f"cannot write {output}: it is a folder; name a file, such as plan.json")
    else:
        check_writable(output.parent)


def _settings(arguments: argparse.Namespace) -> Settings:
    """Raises InputError for a share or a multiple that is none."""
    shares = _rules("--min-width", [str(LEAST), *arguments.min_width], float)
    multiples = _rules("--multiple-of", arguments.multiple_of, int)
    for pattern, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"--min-width {pattern}={share:g} is no share; give a number from 0 to 1")
    for pattern, multiple in multiples.items():
        if multiple < 1:
            raise InputError(f"--multiple-of {pattern}={multiple} is not positive; give 8, for example")
    return Settings(
        options=arguments.options,
        min_width=shares,
        multiple_of=multiples,
        removal=not arguments.no_removal,
        keep=tuple(arguments.keep),
        frozen=tuple(arguments.frozen),
        max_params=arguments.max_params,
        max_macs=arguments.max_macs,
        max_memory=arguments.max_memory,
        max_bytes=arguments.max_bytes,
        time_limit_s=arguments.time_limit,
    )


def _rules(option: str, texts: Sequence[str], kind: Callable[[str], Number]) -> dict[str, Number]:
    """["0.2", "up*=0.5"] → {"*": 0.2, "up*": 0.5}, in the order given, as the last that matches decides."""
    rules: dict[str, Number] = {}
    for text in texts:
        pattern, _, value = text.rpartition("=")
        rules.pop(pattern or "*", None)
        try:
            rules[pattern or "*"] = kind(value)
        except ValueError:
            raise InputError(f"{option} {text} is no number; write {option} 8, or {option} 'up*=8'") from None
    return rules


def _importance(
    arguments: argparse.Namespace, feed: Feed, model: nn.Module, net: Network, shapes: Sequence[tuple[int, ...]]
) -> dict[str, np.ndarray]:
    from search.importance import importance_of
    from search.importance.kept import default_folder
    from search.task import task_of_feed

    task = task_of_feed(feed, shapes)
    if task is None:
        print("note: no --images or --task, so channels are ranked by the norm of their weights", file=sys.stderr)
    kind = arguments.importance or ("magnitude" if task is None else "sensitivity")
    told = (arguments.model_args, feed.task, feed.task_args, feed.preprocess, str(feed.bgr))
    where = default_folder()
    return importance_of(kind, model, net, task, arguments.batches, progress=True, keep_in=where, told=told)


if __name__ == "__main__":
    sys.exit(main())
