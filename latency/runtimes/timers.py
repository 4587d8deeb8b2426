"""Times between marks, on the CPU by the clock and in a CUDA stream by its events."""

from __future__ import annotations

import time

import torch

from latency.runtimes.base import Counters

__all__ = ["EventTimer", "WallTimer", "timer_of"]


class WallTimer:
    """Marks on the CPU, where every operation is done when it returns."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._times: list[float] = []

    def mark(self, name: str) -> None:
        self._times.append(time.perf_counter())
        self._names.append(name)

    def milliseconds(self) -> Counters:
        spans = zip(self._names[1:], self._times, self._times[1:], strict=False)
        return {name: (end - start) * 1e3 for name, start, end in spans}

    @staticmethod
    def synchronise() -> None:
        """Nothing is pending on the CPU."""


class EventTimer(WallTimer):
    """Marks in the CUDA stream; `external` ones stay in a CUDA graph and are made anew by every replay."""

    def __init__(self, *, external: bool = False) -> None:
        self._names = []
        self._events: list[torch.cuda.Event] = []
        self._external = external

    def mark(self, name: str) -> None:
        event = torch.cuda.Event(enable_timing=True, external=self._external)
        event.record()
        self._events.append(event)
        self._names.append(name)

    def milliseconds(self) -> Counters:
        torch.cuda.synchronize()
        spans = zip(self._names[1:], self._events, self._events[1:], strict=False)
        return {name: start.elapsed_time(end) for name, start, end in spans}

    @staticmethod
    def synchronise() -> None:
        torch.cuda.synchronize()


def timer_of(device: str) -> type[WallTimer]:
    """The timer of a torch device, by its name."""
    return EventTimer if device == "cuda" else WallTimer
