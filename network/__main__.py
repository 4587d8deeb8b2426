"""`python -m network MODEL --input SHAPE`: the network as a person wants to see it."""

from __future__ import annotations

import argparse
import json
import sys
from math import prod
from pathlib import Path

from network.command_line import add_model_options, run
from network.drawing import draw
from network.errors import InputError
from network.files import write_atomically
from network.reference import example_inputs, load_model, parse_input
from network.tracing import trace
from network.types import Network

EXAMPLES = """examples:
  python -m network torchvision.models:resnet18 --input 1x3x224x224
  python -m network generator.py:Generator --model-args '{"width": 64}' --input 1x3x256x256 --json
  python -m network generator.py:Generator --input 1x3x256x256 --svg generator.svg

exit codes: 0 done, 2 the user's error (one line on stderr), 1 a bug"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m network",
        description="Show a network's channel groups: what is coupled, what is frozen and why, MACs and parameters.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw it: a line a layer, a colour a group")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Trace the network and print its groups, or one JSON document."""
    options = parser().parse_args(argv)
    if not options.input:
        raise InputError("--input is missing; give the input's shape, such as --input 1x3x224x224")
    model = load_model(options.model, options.model_args, options.weights)
    net = trace(model, example_inputs([parse_input(text) for text in options.input]))
    if options.svg:
        write_atomically(options.svg, draw(net, options.model).encode())
    print(json.dumps(describe(net), indent=1, ensure_ascii=False) if options.json else listing(net))
    return 0


def describe(net: Network) -> dict[str, object]:
    """The network as plain JSON data."""
    return {
        "groups": [
            {
                "name": group.name,
                "width": group.width,
                "producers": list(group.producers),
                "consumers": list(group.consumers),
                "soft": list(group.soft),
                "remains": dict(group.remains),
            }
            for group in net.groups
        ],
        "frozen": [{"group": each.name, "width": each.width, "reasons": list(each.reasons)} for each in net.frozen],
        "layers": [
            {
                "name": layer.name,
                "module": layer.module,
                "op": layer.spec.op,
                "c_in": layer.c_in.at(net.widths),
                "c_out": layer.c_out.at(net.widths),
                "macs": layer.macs(net.widths),
            }
            for layer in net.layers
        ],
        "macs": net.macs(),
        "parameters": net.parameter_count(),
        "prunable_share": prunable_share(net),
    }


def prunable_share(net: Network) -> float:
    """The share of all parameters that lie in a slice of some group."""
    touched = {member.parameter for group in net.groups for member in group.members}
    sliced = sum(prod(net.parameters[name]) for name in touched & net.trainable)
    return sliced / max(1, net.parameter_count())


def listing(net: Network) -> str:
    """A table of groups, then what is frozen, then totals."""
    lines = [f"{'group':<32} {'width':>6}  made by → read by"]
    for group in net.groups:
        notes = [f"soft: {', '.join(group.soft)}"] * bool(group.soft) + ["may go"] * group.removable
        flow = f"{_few(group.producers)} → {_few(group.consumers) or 'nothing'}"
        lines.append(f"{group.name:<32} {group.width:>6}  {flow}{''.join(f'  ({n})' for n in notes)}")
    lines += ["", f"{'frozen':<32} {'width':>6}  because"]
    lines += [f"{each.name:<32} {each.width:>6}  {'; '.join(each.reasons)}" for each in net.frozen]
    lines += [
        "",
        f"{len(net.layers)} layers, {len(net.groups)} groups, {net.macs() / 1e9:.3f} GMAC, "
        f"{net.parameter_count() / 1e6:.3f} M parameters, {prunable_share(net):.1%} of them in prunable groups",
    ]
    return "\n".join(lines)


def _few(names: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")


if __name__ == "__main__":
    sys.exit(run(main))
