"""`python -m search.importance --oracle MODEL --input S`: how well each importance predicts what removal does."""

from __future__ import annotations

import argparse
import json
import sys

from network import example_inputs, load_model, parse_input, trace
from network.command_line import add_image_options, add_model_options, positive_int, run
from network.errors import InputError
from search.importance import MEASURES, importance_of
from search.importance.oracle import agreement, oracle
from search.task import feed_of, task_of_feed

EXAMPLES = """examples:
  python -m search.importance --oracle net.py:Generator --weights net.pth --input 1x3x256x256 --images photos/
  python -m search.importance --oracle net.py:Classifier --weights net.pth --input 1x3x32x32 --task task.py:Labels

The truth: the damage that removing one channel, part of one group, or part of every group really does, before any
repair or training. Pearson's r is of the logarithms. Exit codes: 0 done, 2 a mistake that one line explains, 1 a bug.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m search.importance",
        description="Compare every measure of importance with the truth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    add_image_options(parser)
    parser.add_argument("--oracle", action="store_true", required=True, help="measure the truth; it takes minutes")
    parser.add_argument(
        "--each", type=positive_int, default=6, metavar="N", help="trials per group and kind (default: 6)"
    )
    parser.add_argument("--plans", type=positive_int, default=24, metavar="N", help="whole networks (default: 24)")
    parser.add_argument(
        "--batches", type=positive_int, default=2, metavar="N", help="minibatches of truth (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print a table, or one JSON document."""
    options = parser().parse_args(argv)
    if not options.input:
        raise InputError("no --input; give the shape of the network's input, such as --input 1x3x224x224")
    shapes = tuple(parse_input(text) for text in options.input)
    task = task_of_feed(feed_of(options), shapes)
    if task is None:
        raise InputError("the truth needs data; give --images DIR or --task FILE:CLASS")
    model = load_model(options.model, options.model_args, options.weights)
    net = trace(model, example_inputs(shapes))
    found = {kind: importance_of(kind, model, net, task, progress=True) for kind in MEASURES}
    counts = {"each": options.each, "plans": options.plans, "batches": options.batches, "seed": options.seed}
    trials = oracle(model, net, task, **counts, progress=True)
    rows = [{"importance": kind} | row for kind in MEASURES for row in agreement(trials, found[kind])]
    if options.json:
        print(json.dumps({"network": options.model, "rows": rows}, indent=1))
        return 0
    print(f"{'importance':<12} {'removed':<8} {'trials':>6} {'Pearson':>8} {'Spearman':>9} {'in groups':>10}")
    for row in rows:
        numbers = (row["pearson_log"], row["spearman"], row["spearman_within_groups"])
        cells = " ".join(f"{'—' if x is None else format(x, '.3f'):>9}" for x in numbers)
        print(f"{row['importance']:<12} {row['kind']:<8} {row['trials']:6} {cells}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
