"""How near to one another the cores are that measure: a hypervisor moves them, and no clock of stolen time tells.

Where two virtual cores come to lie on two caches, what one writes reaches the other ten times later, for seconds or
minutes, until they are moved back. Each alone is as fast as ever and nothing is stolen from it, but a network slows
down by as much as its threads read of one another: by a fifth, on the machine of docs/notes/2026-11-30-placement.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch

from latency.device import cpu_fields

__all__ = ["Cores", "Met", "cores_of", "is_virtual"]

HALF = 2**18
"""Numbers of fp32 that change hands: 1 MiB, as large a part of an activation as a core keeps in a cache of its own."""

SWAPS = 10

APART = 1.5
"""Cores are apart when handing over to one another takes so many times what one takes to do all of it alone."""

PATIENCE_S = 60.0
PAUSE_S = 0.2

SLEEP_S = 0.005
"""After which the threads that handed over no longer spin; a longer sleep would make them slow to wake."""


@dataclass(frozen=True, slots=True)
class Met:
    """What `Cores.settle` met so far: seconds of waiting, rounds, and those of them that began with the cores apart."""

    waited_s: float = 0.0
    rounds: int = 0
    apart: int = 0

    def since(self, before: Met) -> Met:
        """What was met after `before`."""
        return Met(self.waited_s - before.waited_s, self.rounds - before.rounds, self.apart - before.apart)

    @property
    def share_apart(self) -> float:
        """Of the rounds, those that were measured with the cores apart; 0 if there were none."""
        return self.apart / max(self.rounds, 1)


class Cores:
    """The cores under `threads` ≥ 2 threads of this process, and what they `met`."""

    def __init__(self, threads: int):
        self.threads = threads
        self.met = Met()
        self._were_near = True
        self._patience_s, self._asked_s = PATIENCE_S, time.monotonic()
        self._halves = torch.zeros(2, HALF)

    def handover_us(self, threads: int) -> float:
        """Microseconds in which the halves of an array, each written by other threads than read it, change places.

        The median of SWAPS, after one that wakes the threads. One thread hands over to itself.
        """
        usual, taken = torch.get_num_threads(), []
        torch.set_num_threads(threads)
        try:
            for _ in range(1 + SWAPS):
                start = time.perf_counter()
                self._halves.copy_(self._halves.flip(0))
                taken.append(1e6 * (time.perf_counter() - start))
        finally:
            torch.set_num_threads(usual)
        return median(taken[1:])

    def apart(self) -> bool:
        """Whether the cores would do better each alone."""
        return self.handover_us(self.threads) > APART * self.handover_us(1)

    def settle(self) -> None:
        """Wait until the cores are near, PATIENCE_S at most. Then they are taken as they are, until they were near.

        Patience that was spent comes back as time passes: of cores that come and go, no more than half is waiting.
        """
        waited_s = 0.0
        patience_s = min(PATIENCE_S, self._patience_s + time.monotonic() - self._asked_s)
        while (apart := self.apart()) and self._were_near and waited_s < patience_s:
            time.sleep(PAUSE_S)
            waited_s += PAUSE_S
        time.sleep(SLEEP_S)
        self._were_near = not apart
        self._patience_s, self._asked_s = patience_s - waited_s, time.monotonic()
        self.met = Met(self.met.waited_s + waited_s, self.met.rounds + 1, self.met.apart + apart)


@cache
def is_virtual() -> bool:
    """Whether this machine's cores are a hypervisor's, which may move them."""
    return "hypervisor" in cpu_fields().get("flags", "").split()


@cache
def cores_of(threads: int) -> Cores:
    """The cores under so many threads; one for the whole process, which remembers."""
    return Cores(threads)
