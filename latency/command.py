"""The command `profile-device`: measure this machine once, so that any plan's milliseconds can be looked up."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from latency.device import Device
from latency.measurement import POLLUTED
from latency.placement import cores_of
from latency.profiler import MOST, USUAL, profile
from latency.runtimes import RUNTIMES, here
from latency.store import Store
from latency.table import LatencyTable, device_table, fingerprint
from latency.verification import verify
from network import Network, trace
from network.command_line import add_model_options, add_profiles_option, positive_int, run, share
from network.errors import DeviceError, InputError
from network.files import write_atomically
from network.quantisers import quantises
from network.reference import example_inputs, load_model, parse_input

__all__ = ["main"]

LEAST = 4
"""Configurations, of which fewer do not say how a layer's time follows its widths."""

OF_A_NETWORK = ("model_args", "weights", "input")
MEASURING = ("runtime", "precision", "threads", "configurations", "minutes", "error", "verify", "plot", "exhaustive")
CARRYING = {"list": "--list", "source": "--import", "export": "--export", "push": "--push without MODEL"}
WORDS = {"model": "MODEL", "source": "--import"}

EPILOG = """examples:
  profile-device                                           the built-in reference networks, torch fp32
  profile-device net.py:Generator --input 1x3x256x256      that network's layers
  profile-device torchvision.models:resnet50 --input 1x3x224x224 --runtime openvino --precision bf16
  profile-device net.py:Generator --input 1x3x256x256 --error 5% --minutes 5 --verify 20 --json
  profile-device net.py:Generator --input 1x3x256x256 --plot up.0
  profile-device net.py:Generator --input 1x3x256x256 --exhaustive up.0    every width of it, and the picture
  profile-device --list
  profile-device --import their-machine.csv
  profile-device --push http://127.0.0.1:8765

A killed run goes on where it stopped. Exit codes: 0 done, 2 a mistake that one line explains, 1 a bug."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        prog="profile-device",
        description="Measure how long every layer takes at every width on this machine, and store it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(options, optional=True)
    options.add_argument("--runtime", metavar="R", help=f"{', '.join(RUNTIMES)}, or all (default: torch)")
    options.add_argument(
        "--precision",
        metavar="P",
        help="fp32, bf16, fp16, or int8 for a network that is quantised (default: fp32; of --runtime all every one)",
    )
    options.add_argument("--threads", type=positive_int, metavar="N", help="default: every core it may run on")
    options.add_argument(
        "--configurations",
        type=_configurations,
        metavar="N",
        help=f"networks to time, {LEAST} or more (default: {USUAL}, few where others have filled the table; {MOST} "
        "with --error)",
    )
    options.add_argument("--minutes", type=float, metavar="M", help="stop after this time, with what there is")
    options.add_argument(
        "--error",
        type=share,
        metavar="E",
        help="stop when the others predict 95%% of the networks timed within E, such as 5%% (default: at none)",
    )
    options.add_argument(
        "--verify", type=positive_int, metavar="N", help="compare predicted with measured for N random plans"
    )
    options.add_argument("--plot", metavar="LAYER", help="draw that layer's milliseconds over its widths, as SVG")
    options.add_argument(
        "--exhaustive", metavar="LAYER", help="also measure every width of that layer, one network each, and draw it"
    )
    options.add_argument("--list", action="store_true", help="show what the store holds")
    options.add_argument("--export", metavar="FILE", type=Path, help="write everything that the store holds as CSV")
    options.add_argument(
        "--import", dest="source", metavar="FILE|DIR", type=Path, help="add an exported CSV or another store's rows"
    )
    options.add_argument(
        "--push", metavar="URL", help="then send what the store holds of the devices measured, or of all, to a service"
    )
    options.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    add_profiles_option(options)
    return options


def main(argv: list[str] | None = None) -> int:
    """Console script: see `parser`."""
    return run(_main, argv)


def _main(argv: list[str] | None) -> int:
    options = parser().parse_args(argv)
    _check(options)
    if options.list:
        return _list(Store(options.profiles), options.json)
    if options.export or options.source or (options.push and options.model is None):
        return _carry(Store(options.profiles), options)
    Store(options.profiles).machines()  # refused now, not after the measuring, if it is of another schema
    if options.push:
        _pusher()(options.profiles, options.push, [], 0.0)  # whether it is there: better said now than after the work
    devices = _devices(options.runtime, options.precision, options.threads)
    reports = list(_reports(devices, options))
    if options.push:
        print(_pusher()(options.profiles, options.push, devices), file=sys.stderr)
    if options.json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=2))
    return 0


def _configurations(text: str) -> int:
    """An argparse type: an integer of at least LEAST."""
    value = int(text)
    if value < LEAST:
        raise argparse.ArgumentTypeError(f"{text} networks do not say how time follows width; give {LEAST} or more")
    return value


def _check(options: argparse.Namespace) -> None:
    """Raises InputError where an option would have no effect."""
    usual = parser().parse_args([])
    given = [name for name in vars(options) if getattr(options, name) != getattr(usual, name)]
    carried = [name for name in CARRYING if name in given and (name != "push" or options.model is None)]
    useless: dict[str, Sequence[str]] = {}
    if carried:
        useless[f"{CARRYING[carried[0]]} measures nothing;"] = ("model", *OF_A_NETWORK, *MEASURING)
    if options.list:
        useless["--list only shows;"] = carried[1:]
    if options.model is None:
        useless["without MODEL built-in networks are measured; name MODEL, or"] = (*OF_A_NETWORK, "plot", "exhaustive")
    for why, names in useless.items():
        if lost := next((name for name in given if name in names), None):
            raise InputError(f"{why} leave out {WORDS.get(lost, '--' + lost.replace('_', '-'))}")


def _reports(devices: Sequence[Device], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of every network on every device; of all runtimes those that cannot run it are passed over, with a warning."""
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    for name, model, net, example in _networks(options):
        refused: list[DeviceError] = []
        suited = [device for device in devices if options.runtime != "all" or _suits(device, net)]
        if not suited:
            raise DeviceError(f"no runtime here suits {name} in {options.precision}; leave --precision out")
        for device in suited:
            try:
                yield _profile(name, model, net, example, device, options, deadline)
            except DeviceError as error:
                refused.append(error)
                if len(refused) == len(suited):
                    raise
                print(f"warning: {' '.join(str(error).split())}", file=sys.stderr)


def _devices(runtime: str | None, precision: str | None, threads: int | None) -> list[Device]:
    if runtime != "all":
        return [here(runtime or "torch", precision or "fp32", threads)]
    found = [
        here(r.name, p, threads)
        for r in RUNTIMES.values()
        if r.missing() is None
        for p in r.precisions
        if r.supports(p) and precision in (None, p)
    ]
    if not found:
        raise DeviceError(f"no runtime here has {precision or 'any'} precision; leave --precision out, or install one")
    return found


def _suits(device: Device, net: Network) -> bool:
    """int8 is for networks that quantise themselves, and OpenVINO runs those in nothing else."""
    quantised = any(quantises(layer.spec.op) for layer in net.layers)
    return device.runtime != "openvino" or quantised == (device.precision == "int8")


def _networks(
    options: argparse.Namespace,
) -> Iterator[tuple[str, nn.Module, Network, tuple[torch.Tensor, ...]]]:
    """(name, model, what it is, example inputs) of the network that is asked for, else of the built-in ones."""
    if options.model is None:
        from latency.reference_networks import REFERENCES

        torch.manual_seed(0)
        for name, (build, shape) in REFERENCES.items():
            model, example = build().eval(), example_inputs([shape])
            yield name, model, trace(model, example), example
        return
    if not options.input:
        raise InputError("--input is missing; say the shape of the network's input, such as --input 1x3x224x224")
    model = load_model(options.model, options.model_args, options.weights)
    example = example_inputs([parse_input(text) for text in options.input])
    yield options.model, model, trace(model, example), example


def _profile(
    name: str,
    model: nn.Module,
    net: Network,
    example: tuple[torch.Tensor, ...],
    device: Device,
    options: argparse.Namespace,
    deadline: float | None,
) -> dict[str, Any]:
    exhaustive = net.find_layer(options.exhaustive) if options.exhaustive else None
    drawn = net.find_layer(options.plot) if options.plot else exhaustive
    before = cores_of(device.threads).met
    measured = profile(
        model,
        net,
        example,
        device,
        options.profiles,
        configurations=options.configurations,
        exhaustive=exhaustive,
        minutes=None if deadline is None else max(0.0, deadline - time.monotonic()) / 60,
        error=options.error,
    )
    table = device_table(options.profiles, net, device)
    met = cores_of(device.threads).met.since(before)
    report = _quality(name, net, table) | {"measured_configurations": measured}
    report |= {"waited_s": met.waited_s, "apart": met.share_apart}
    _say(report)
    if drawn is not None:
        from latency.plot import plot_stairs

        path = Path(f"stairs-{drawn.name}-{device.runtime}-{device.precision}.svg")
        write_atomically(path, plot_stairs(table, net, drawn).encode())
        print(f"  drawn: {path}", file=sys.stderr)
    if options.verify:
        report |= verify(model, net, example, device, options.profiles, options.verify)
        _say_verified(report)
    return report


def _quality(name: str, net: Network, table: LatencyTable) -> dict[str, Any]:
    device = table.device
    errors = np.abs(table.held_out_error(net))
    runs = table.rows[(table.rows.kind == "network") & (table.rows.spec == fingerprint(net))]
    return {
        "network": name,
        "device": device.machine,
        "runtime": device.runtime,
        "precision": device.precision,
        "threads": device.threads,
        "table_fingerprint": table.fingerprint,
        "table_rows": len(table.rows),
        "baseline_ms": table.predict_ms(net),
        "held_out_median_error": float(np.median(errors)) if len(errors) else None,
        "held_out_worst_error": float(np.max(errors)) if len(errors) else None,
        "contention": float(runs.contention.mean()),
    }


def _say(report: dict[str, Any]) -> None:
    line = f"{report['network']} on {report['device']} {report['runtime']} {report['precision']}: "
    line += f"{report['table_rows']} rows, whole network {report['baseline_ms']:.4g} ms"
    if report["held_out_median_error"] is not None:
        line += (
            f"; held-out error median {report['held_out_median_error']:.1%}, worst {report['held_out_worst_error']:.1%}"
        )
    print(line, file=sys.stderr)
    if report["contention"] > POLLUTED:
        print(
            f"warning: others took {report['contention']:.0%} of the time; measure again on a quieter machine",
            file=sys.stderr,
        )
    if report["waited_s"] >= 1.0:
        print(f"  waited {report['waited_s']:.0f} s for cores that the machine had moved apart", file=sys.stderr)
    if report["apart"] > POLLUTED:
        print(
            f"warning: {report['apart']:.0%} of it was measured with the cores apart, where networks are slower, "
            "small ones up to twice; measure again",
            file=sys.stderr,
        )


def _say_verified(report: dict[str, Any]) -> None:
    def errors(of: dict[str, Any]) -> str:
        within = f"{of['within_5_percent']:.0%} within 5 %, {of['within_10_percent']:.0%} within 10 %"
        return f"median error {of['median_abs_error']:.1%}, {within}"

    print(f"  {report['plans']} random plans: {errors(report)}", file=sys.stderr)
    if report["without_drift"]:
        print(
            f"  the machine took {report['drift']:.2f} times what it took when profiled; with that divided out: "
            f"{errors(report['without_drift'])}",
            file=sys.stderr,
        )


def _carry(store: Store, options: argparse.Namespace) -> int:
    """--import, then --export, then --push of all that the store holds."""
    done: dict[str, Any] = {"profiles": str(store.folder)}
    if options.source:
        store.check_writable()
        done["imported"] = {"from": str(options.source), "new_rows": store.absorb(options.source)}
        print(f"{done['imported']['new_rows']} rows of {options.source} are new in {store.folder}", file=sys.stderr)
    if options.export:
        done["exported"] = {"to": str(options.export), "rows": store.export_csv(options.export)}
        print(f"{done['exported']['rows']} rows written to {options.export}", file=sys.stderr)
    if options.push:
        done["pushed"] = {"to": options.push, "said": _pusher()(options.profiles, options.push, None)}
        print(done["pushed"]["said"], file=sys.stderr)
    if options.json:
        print(json.dumps(done, indent=2))
    return 0


def _pusher() -> Callable[..., str]:
    """The client's function, by name: it belongs to a package that this one may not import."""
    try:
        return next(iter(importlib.metadata.entry_points(group="narrowgauge.push", name="profiles"))).load()
    except ImportError as error:
        raise DeviceError(f"--push needs {error.name}; pip install 'narrowgauge[service]'") from None


def _list(store: Store, as_json: bool) -> int:
    machines = store.machines()
    listed = [
        {
            "device": device.machine,
            "processor": machines.get(device.machine, {}).get("processor"),
            "runtime": device.runtime,
            "version": device.version,
            "precision": device.precision,
            "threads": device.threads,
            "layer_kinds": int(part[part.kind == "layer"].spec.nunique()),
            "rows": len(part),
            "networks": int(part.network.nunique()),
            "measured_at": str(part.measured_at.max()),
        }
        for device, part in store.by_device()
    ]
    if as_json:
        print(json.dumps({"profiles": str(store.folder), "devices": listed}, indent=2))
        return 0
    if not listed:
        print(f"{store.folder} holds no tables; run profile-device MODEL --input SHAPE")
    for each in listed:
        print(
            f"{each['device']}  {each['runtime']} {each['version']} {each['precision']} {each['threads']} threads: "
            f"{each['layer_kinds']} layer kinds, {each['rows']} rows, {each['networks']} networks, "
            f"{each['measured_at']}"
        )
    return 0
