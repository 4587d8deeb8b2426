"""Who was measured: a device is machine × runtime × precision × threads, with the runtime's version."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from network.errors import DeviceError

__all__ = ["Device", "Machine", "available_cores", "choose_device", "cpu_fields", "this_machine"]


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
    where: str,
) -> Device:
    """The measured device that matches; raises DeviceError naming what there is in `where`.

    machine: its id, or a device's whole one, which then says the rest. Without it `mine`, or the only one there is;
    without threads as many as `cores`, or the most measured; of several versions the newest.
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
        return max(matches, key=lambda d: (d.threads == cores, d.threads, _version(d.version)))
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
    """What /proc/cpuinfo says of the first processor; nothing where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def this_machine(accelerator: str = "") -> Machine:
    """The machine that this process runs on; `accelerator` names the GPU that a CUDA runtime uses."""
    fields = cpu_fields()
    vector = ("sse4_2", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    family = "-".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return Machine(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=available_cores(),
        features=f"{platform.machine()} {family} " + " ".join(flag for flag in vector if flag in flags),
        accelerator=accelerator,
    )
