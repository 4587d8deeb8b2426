"""The command `profile-device`: measure this machine once, so that any plan's milliseconds can be looked up."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from latency.device import Device
from latency.measurement import POLLUTED
from latency.placement import cores_of
from latency.profiler import profile
from latency.runtimes import RUNTIMES, here
from latency.store import Store
from latency.table import LatencyTable, device_table
from latency.verification import verify
from network import Network, trace
from network.command_line import add_model_options, add_profiles_option, positive_int, run, share
from network.errors import DeviceError, InputError
from network.files import write_atomically
from network.quantisers import quantises
from network.reference import example_inputs, load_model, parse_input

__all__ = ["main"]

MOST = 128
"""Configurations, where --error says when there are enough."""

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
    options.add_argument(
        "--runtime", default="torch", metavar="R", help=f"{', '.join(RUNTIMES)}, or all (default: torch)"
    )
    options.add_argument(
        "--precision",
        default="fp32",
        metavar="P",
        help="fp32, bf16, fp16, or int8 for a network that is quantised (default: fp32)",
    )
    options.add_argument("--threads", type=positive_int, metavar="N", help="default: every core it may run on")
    options.add_argument(
        "--configurations",
        type=positive_int,
        metavar="N",
        help="networks to time (default: 32; 128 with --error)",
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
    if options.list:
        return _list(Store(options.profiles), options.json)
    if options.export or options.source:
        return _carry(Store(options.profiles), options)
    if options.push and options.model is None:
        return _push(options, None)
    if (options.plot or options.exhaustive) and options.model is None:
        raise InputError("--plot and --exhaustive are of a layer of a network; name MODEL and --input")
    Store(options.profiles).machines()  # refused now, not after the measuring, if it is of another schema
    if options.push:
        _pusher()(options.profiles, options.push, [], 0.0)  # whether it is there: better said now than after the work
    devices = _devices(options.runtime, options.precision, options.threads)
    reports = [
        _profile(name, model, net, example, device, options)
        for name, model, net, example in _networks(options)
        for device in devices
        if options.runtime != "all" or _suits(device, net)
    ]
    if options.push:
        _push(options, devices)
    if options.json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=2))
    return 0


def _devices(runtime: str, precision: str, threads: int | None) -> list[Device]:
    if runtime != "all":
        return [here(runtime, precision, threads)]
    found = [
        here(r.name, p, threads)
        for r in RUNTIMES.values()
        if r.missing() is None
        for p in r.precisions
        if r.supports(p)
    ]
    if not found:
        raise DeviceError("no runtime can be used on this machine; install torch")
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
        configurations=options.configurations or (MOST if options.error else 32),
        exhaustive=exhaustive,
        minutes=options.minutes,
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
    runs = table.rows[table.rows.kind == "network"]
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
    """--import, then --export."""
    if options.model is not None:
        raise InputError("--import and --export carry what is measured; leave out MODEL")
    if options.source:
        store.check_writable()
        print(f"{store.absorb(options.source)} rows of {options.source} are new in {store.folder}", file=sys.stderr)
    if options.export:
        print(f"{store.export_csv(options.export)} rows written to {options.export}", file=sys.stderr)
    return 0


def _push(options: argparse.Namespace, devices: list[Device] | None) -> int:
    """Send the rows of these devices, or of all that the store holds, to a service."""
    print(_pusher()(options.profiles, options.push, devices), file=sys.stderr)
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
