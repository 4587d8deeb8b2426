"""Honest times on a busy machine: interleaved samples, the CPU time that others took, and medians with their spread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from latency.placement import cores_of, is_virtual

__all__ = ["FILL_MS", "POLLUTED", "Clock", "Measurement", "Samples", "SystemClock", "interleave", "without_drift"]

POLLUTED = 0.05
"""A sample is polluted when more than this share of its window was taken by others."""

FILL_MS = 1000.0
"""What a batch of networks is timed for, as making them ready takes about as long anyway."""

MOST_ROUNDS = 25

WARM_MS = 50.0
"""A run shorter than this is called once, untimed, before each of its windows: in service a network follows itself, and
here it follows others, which have taken the caches and put its threads to sleep."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A time with its spread: median and interquartile range over n clean samples, in ms.

    `contention` is the mean share of the windows that other processes or the hypervisor took (0 = quiet machine),
    over all samples, also those that were dropped.
    """

    median_ms: float
    iqr_ms: float
    n: int
    contention: float


class Clock(Protocol):
    """What measuring needs from the system; tests inject a fake."""

    def now_ms(self) -> float:
        """Monotonic time."""
        ...

    def stolen_ms(self) -> float:
        """Milliseconds, ever growing, in which this process was ready to run and others had the processor."""
        ...

    def settle(self, threads: int) -> bool:
        """Wait until so many threads' cores are near one another (`latency.placement`); whether it ran any to know."""
        ...


class SystemClock:
    """The real clock. Stolen time is the scheduler's run delay over all threads plus the hypervisor's steal."""

    def now_ms(self) -> float:
        return time.perf_counter() * 1e3

    def stolen_ms(self) -> float:
        delay_ns = 0
        with suppress(OSError):
            for entry in os.scandir("/proc/self/task"):
                with suppress(OSError, IndexError, ValueError):
                    delay_ns += int(Path(entry.path, "schedstat").read_text().split()[1])
        return delay_ns / 1e6 + _steal_ms()

    def settle(self, threads: int) -> bool:
        moving = threads > 1 and is_virtual()
        if moving:
            cores_of(threads).settle()
        return moving


def _steal_ms() -> float:
    with suppress(OSError, IndexError, ValueError), open("/proc/stat") as stat:
        return int(stat.readline().split()[8]) * 1e3 / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw samples of one run: `ms` and `contention` of shape (n,), and what each returned, if that was kept."""

    ms: np.ndarray
    contention: np.ndarray
    results: tuple[Any, ...] = ()

    @property
    def clean(self) -> np.ndarray:
        """Indices of the clean samples; of the least polluted third where fewer than that are clean."""
        order = np.argsort(self.contention, kind="stable")
        return order[: max(int(np.sum(self.contention <= POLLUTED)), -(-len(order) // 3))]

    def measurement(self) -> Measurement:
        """Median and spread of the clean samples."""
        low, median, high = np.percentile(self.ms[self.clean], [25, 50, 75])
        return Measurement(float(median), float(high - low), len(self.clean), float(np.mean(self.contention)))


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    threads: int,
    warmup: int = 2,
    window_ms: float = 4.0,
    fill_ms: float = 0.0,
    keep: bool = False,
    clock: Clock | None = None,
) -> dict[str, Samples]:
    """Time several callables in turn, so that drift of the machine meets all of them alike.

    Each round waits until the cores are near one another, for which it makes amends by a call of the quickest run that
    does not count. Then it calls every run, short ones several times to fill `window_ms`, by the last of its
    `warmup` ≥ 1 calls, and after one more that does not count (WARM_MS).
    Where `rounds` would take less than `fill_ms`, there are more, MOST_ROUNDS at the most. Rounds go on, up to twice as
    many, while a run has fewer clean samples than that. `threads` scales stolen time to a share of the window. `keep`:
    also what the last call of each sample returned. Returns one sample per round and name, in ms per call.
    """
    clock = clock or SystemClock()
    once_ms: dict[str, float] = {}
    for name, run in runs.items():
        for _ in range(warmup - 1):
            run()
        start = clock.now_ms()
        run()
        once_ms[name] = max(clock.now_ms() - start, 1e-3)
    repeats = {name: max(1, min(100, round(window_ms / ms))) for name, ms in once_ms.items()}
    round_ms = sum(repeats[name] * ms for name, ms in once_ms.items())
    quickest = min(once_ms, key=once_ms.__getitem__)
    rounds = max(rounds, min(MOST_ROUNDS, int(fill_ms / round_ms)))
    taken: dict[str, list[tuple[float, float, object]]] = {name: [] for name in runs}
    for done in range(2 * rounds):
        if done >= rounds and all(sum(s <= POLLUTED for _, s, _ in each) >= rounds for each in taken.values()):
            break
        if clock.settle(threads):
            runs[quickest]()
        for name, run in runs.items():
            if once_ms[name] < WARM_MS:
                run()
            stolen, start = clock.stolen_ms(), clock.now_ms()
            for _ in range(repeats[name]):
                result = run()
            elapsed = max(clock.now_ms() - start, 1e-6)
            share = max(0.0, clock.stolen_ms() - stolen) / (threads * elapsed)
            taken[name].append((elapsed / repeats[name], share, result if keep else None))
            del result  # an output may be large
    return {
        name: Samples(np.array(ms), np.array(shares), results if keep else ())
        for name, each in taken.items()
        for ms, shares, results in [zip(*each, strict=True)]
    }


def without_drift(samples: Mapping[str, Samples]) -> dict[str, Samples]:
    """The samples of one `interleave` with each round's common factor divided out.

        log t[r, k] = level[r] + drift[k] + noise,   drift[k] = median over runs r of log t[r, k] - median_k log t[r, k]

    Levels, and so each run's median on a machine that does not drift, stay as they are. Of two runs the medians' ratio
    becomes the median of the rounds' ratios. A single one, of which all would be drift, stays as it is.
    """
    if len(samples) < 2:
        return dict(samples)
    logs = np.log(np.stack([each.ms for each in samples.values()]))
    drift = np.median(logs - np.median(logs, axis=1, keepdims=True), axis=0)
    return {name: replace(each, ms=each.ms / np.exp(drift)) for name, each in samples.items()}
