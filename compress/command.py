"""The command `apply-plan`: a plan and photos (or a task) go in, a folder with the delivered network comes out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.recipe import ADVERSARIES, FEATURES, OUTPUTS, Recipe
from network import command_line
from network.command_line import add_image_options, add_profiles_option, positive_int
from network.errors import InputError
from network.files import check_writable

__all__ = ["main"]

EPILOG = """\
examples:
  apply-plan plan.json --weights net.pth --images photos/ -o out --steps 1000
  apply-plan plan.json --weights net.pth --task task.py:Labels -o out --minutes 30
  apply-plan plan.json --task compress.tasks:Classification --task-args '{"folder": "flowers.zip"}' -o out
  apply-plan plan.json --weights net.pth --images photos/ -o out --steps 1000 --resume

exit codes: 0 done; 2 an error that you can mend, in one line; 1 a bug.
A run that was cut off goes on by itself when the same command is given again.
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apply-plan",
        description="Condense, cut, repair and teach a network to the widths of a plan, and measure what came out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", metavar="PLAN", type=Path, help="plan.json, as search wrote it")
    parser.add_argument("--weights", metavar="FILE", help="state dict to load: .pth or .safetensors")
    add_image_options(parser)
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for what is delivered")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="optimiser steps in all (default: 400)")
    length.add_argument("--minutes", type=float, metavar="M", help="minutes of training instead of steps")
    parser.add_argument(
        "--condense",
        metavar="KIND",
        default="auto",
        help="auto (if time allows), group-l2, l1, hard-concrete or none",
    )
    parser.add_argument("--teacher", metavar="KIND", default="condensed", help="condensed (the default) or original")
    parser.add_argument(
        "--outputs", metavar="LOSSES", default="auto",
        help=f"distances to the teacher's outputs, such as l1,ssim=0.5: {', '.join(OUTPUTS)} (auto: KL for class "
        "scores, else L1)",
    )  # fmt: skip
    parser.add_argument(
        "--features", metavar="LOSSES", default="none", help=f"distances to its features too: {', '.join(FEATURES)}"
    )
    parser.add_argument(
        "--adversarial", metavar="LOSS", default="none",
        help=f"a judge that learns to tell the student's pictures: {', '.join(ADVERSARIES)}",
    )  # fmt: skip
    parser.add_argument(
        "--discriminator", metavar="FILE:CALLABLE", help="that judge (default: a PatchGAN that starts with the student)"
    )
    parser.add_argument(
        "--mix", metavar="KIND", default="none", help="mix a classifier's pictures: mixup, cutmix or none"
    )
    parser.add_argument("--no-repair", action="store_true", help="leave out the least-squares repair")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="default: the task's")
    parser.add_argument(
        "--crop", type=positive_int, metavar="N",
        help="train on N x N windows of the pictures, where the network takes any size: quicker steps (default: whole)",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, metavar="X", help="peak step relative to the weights (default: by trial)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of crops and order (default: 0)")
    parser.add_argument("--heldout", type=positive_int, metavar="N", help="items that quality is measured on")
    parser.add_argument(
        "--autocast", metavar="WHEN", default="off",
        help="auto: train in bf16, and run the teacher in OpenVINO, where that is faster; off",
    )  # fmt: skip
    add_profiles_option(parser)
    parser.add_argument("--resume", action="store_true", help="insist on going on with the run in OUT")
    parser.add_argument("--json", action="store_true", help="print report.json on stdout")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    return command_line.run(_main, argv)


def _main(argv: list[str] | None) -> int:
    arguments = parser().parse_args(argv)
    from compress.processes import leads
    from search.plan import load_plan

    plan = load_plan(arguments.plan)
    report = _apply(plan, arguments)
    if not leads():
        return 0
    if arguments.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    _summary(report, arguments.output)
    return 0


def _apply(plan: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    import network
    from compress.pipeline import apply_plan
    from compress.processes import leads
    from search.tables import open_tables

    choices = _choices(arguments)
    Recipe(**choices)
    check_writable(arguments.output)
    model = network.load_model(plan.model.ref, plan.model.args, arguments.weights)
    net = network.trace(model, network.example_inputs(plan.model.input))
    table, *others = open_tables(arguments.profiles, net, plan)
    if table.fingerprint != plan.table_fingerprint and leads():
        _say("the latency table has changed since the plan was made; the rounds will tell")
    plan = dataclasses.replace(plan, feed=_feed(plan.feed, arguments))
    task, model = _task(plan), _placed(model, plan.runtime)
    done = apply_plan(
        plan, model, net, table, task, arguments.output, others, resume=arguments.resume, notify=_say, **choices
    )
    return done.report


def _placed(model: Any, runtime: str) -> Any:
    """The model on this process's GPU, where the plan's runtime runs on GPUs and there is one for every process."""
    import torch

    from latency.runtimes import RUNTIMES

    rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = runtime in RUNTIMES and RUNTIMES[runtime].accelerator and rank < torch.cuda.device_count()
    return model.to(f"cuda:{rank}") if gpu else model


def _choices(arguments: argparse.Namespace) -> dict[str, Any]:
    names = (
        "steps", "minutes", "condense", "teacher", "outputs", "features", "adversarial", "discriminator", "mix",
        "batch_size", "crop", "lr", "seed", "heldout", "autocast",
    )  # fmt: skip
    return {name: getattr(arguments, name) for name in names} | {"repair": not arguments.no_repair}


def _feed(planned: Any, arguments: argparse.Namespace) -> Any:
    """The data to train on: what the command line says, else what the plan's importance was measured on."""
    told = bool(arguments.images or arguments.task)
    images, task = (arguments.images, arguments.task) if told else (planned.images, planned.task)
    known = planned.task_args if task == planned.task else "{}"
    said = {"preprocess": arguments.preprocess, "bgr": arguments.bgr, "task_args": arguments.task_args}
    found = {"images": images, "task": task, "task_args": known}
    return dataclasses.replace(planned, **found | {name: value for name, value in said.items() if value is not None})


def _task(plan: Any) -> Any:
    """The task of the plan's feed, which is in its JSON: the run's identity, and what the delivered plan says."""
    from search.task import task_of_feed

    task = task_of_feed(plan.feed, plan.model.input)
    if task is None:
        raise InputError("there is nothing to train on; give --images DIR, or --task FILE:CLASS")
    return task


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _summary(report: Mapping[str, Any], folder: Path) -> None:
    ratio = report["delivered_ms"] / report["budget_ms"]
    verdict = "" if report["met"] else ": MISSED"
    if not report["measured"]:
        verdict += f", as predicted for {report['device']}; measure it there"
    _say(
        f"{report['baseline_ms']:.2f} ms → {report['delivered_ms']:.2f} ms, {ratio:.3f} of the budget of "
        f"{report['budget_ms']:.2f} ms{verdict}; see {os.path.join(folder, 'report.html')}"
    )


if __name__ == "__main__":
    sys.exit(main())
