"""Who was measured: a device is machine × runtime × precision × threads, with the runtime's version."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Device", "Machine", "available_cores", "this_machine"]


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


def _cpu_fields() -> dict[str, str]:
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
    fields = _cpu_fields()
    vector = ("sse4_2", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    family = "-".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return Machine(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=available_cores(),
        features=f"{platform.machine()} {family} " + " ".join(flag for flag in vector if flag in flags),
        accelerator=accelerator,
    )
