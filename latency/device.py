"""Who was measured: a device is machine × runtime × precision × threads, with the runtime's version."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from network.errors import DeviceError

__all__ = ["Device", "Machine", "available_cores", "choose_device", "cpu_fields", "this_machine"]

CPUINFO, BOARD = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")

ARM = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
X86 = ("sse4_2", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
VECTOR = (*X86, "asimd", "asimdhp", "asimddp", "i8mm", "sve", "sve2", "bf16")
"""Flags that decide which kernels a runtime takes."""


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware, as far as it decides speed. `id` is a short slug: equal machines share it, and their tables."""

    processor: str
    cores: int
    features: str
    accelerator: str = ""

    @property
    def id(self) -> str:
        """Such as `amd-epyc-2c-1f3a9c`."""
        name = self.accelerator or self.processor
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "machine"
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:6]
        return f"{slug}-{self.cores}c-{digest}"


@dataclass(frozen=True, slots=True)
class Device:
    """What a latency table is for. Two devices that differ in any field share no milliseconds."""

    machine: str
    runtime: str
    precision: str
    threads: int
    version: str

    @property
    def id(self) -> str:
        """The machine's slug with runtime, precision and threads, for people and file names."""
        return f"{self.machine}/{self.runtime}-{self.precision}-{self.threads}t"

    def as_row(self) -> dict[str, Any]:
        """The columns that key this device's rows in a table."""
        return asdict(self)


def choose_device(
    known: Sequence[Device],
    machine: str | None,
    runtime: str,
    precision: str,
    threads: int | None,
    *,
    mine: str | None = None,
    cores: int | None = None,
    installed: Callable[[str], str | None] = lambda runtime: None,
    where: str,
) -> Device:
    """The measured device that matches; raises DeviceError naming what there is in `where`.

    machine: its id, or a device's whole one, which then says the rest. Without it `mine`, or the only one there is;
    without threads as many as `cores`, or the most measured; of several versions the one that is `installed`, by its
    runtime, if it is of `mine`, else the newest.
    """
    matches = [
        device
        for device in known
        if device.id == machine
        or (
            device.machine == (machine or device.machine)
            and device.runtime == runtime
            and device.precision == precision
            and device.threads == (threads or device.threads)
        )
    ]
    matches = [device for device in matches if device.machine == mine] or matches
    if len({device.machine for device in matches}) > 1:
        machines = ", ".join(sorted({device.machine for device in matches}))
        raise DeviceError(f"several machines were measured: {machines}; choose one with --device")
    if matches:
        there = installed(matches[0].runtime) if matches[0].machine == mine else None
        return max(
            matches,
            key=lambda d: (d.threads == cores, d.threads, d.version == there, _version(d.version), d.version),
        )
    wanted = f"{machine or 'this machine'}/{runtime}-{precision}" + (f"-{threads}t" if threads else "")
    if machine and "/" in machine:
        wanted = machine
    there = ", ".join(device.id for device in known) or "nothing"
    raise DeviceError(
        f"no latency table for {wanted} in {where} (there is {there}); "
        f"run profile-device MODEL --input SHAPE --runtime {runtime} --precision {precision}"
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def cpu_fields() -> dict[str, str]:
    """What /proc/cpuinfo says, each field as of the first processor that has it; nothing where there is no file."""
    return _first(_cpus())


def this_machine(accelerator: str = "") -> Machine:
    """The machine that this process runs on; `accelerator` names the GPU that a CUDA runtime uses.

    ARM's processors have numbers, and no names: there the board's name is taken, if it has one.
    """
    cpus = _cpus()
    fields = _first(cpus)
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Machine(
        processor=fields.get("model name") or _board() or _brand() or platform.processor() or platform.machine(),
        cores=available_cores(),
        features=" ".join([platform.machine(), _design(cpus), *(flag for flag in VECTOR if flag in flags)]),
        accelerator=accelerator,
    )


def _cpus() -> list[dict[str, str]]:
    """The fields of /proc/cpuinfo, processor by processor."""
    blocks = CPUINFO.read_text().split("\n\n") if CPUINFO.exists() else []
    lines = ([line.partition(":") for line in block.splitlines()] for block in blocks)
    return [{key.strip(): value.strip() for key, _, value in block} for block in lines]


def _first(cpus: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Each field as of the first processor that has it."""
    return {key: value for cpu in reversed(cpus) for key, value in cpu.items()}


def _design(cpus: Sequence[Mapping[str, str]]) -> str:
    """The numbers of the processor's design; of ARM those of every kind of core, which may differ."""
    kinds = {"-".join(cpu[key] for key in ARM if key in cpu) for cpu in cpus if "CPU part" in cpu}
    return "+".join(sorted(kinds)) or "-".join(
        _first(cpus).get(key, "?") for key in ("cpu family", "model", "stepping")
    )


def _board() -> str:
    """The board's own name, such as Raspberry Pi 5 Model B; empty where the firmware says none."""
    return BOARD.read_text(errors="replace").strip("\0\n ") if BOARD.exists() else ""


def _brand() -> str:
    """A Mac's processor, such as Apple M2; empty elsewhere."""
    if sys.platform != "darwin":
        return ""
    asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
