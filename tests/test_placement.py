"""Cores that a hypervisor moves apart and together, with their hand-over scripted and nobody asleep."""

import pytest
import torch

import latency.measurement
import latency.placement
from latency.measurement import SystemClock, interleave
from latency.placement import APART, PAUSE_S, Cores, cores_of

ALONE = 100.0
NEAR, FAR = 0.99 * APART * ALONE, 1.01 * APART * ALONE


class Hours:
    """Time that passes when it is told to, or by sleeping."""

    def __init__(self):
        self.now, self.sleeps = 0.0, []

    def sleep(self, seconds):
        self.now += seconds
        self.sleeps.append(seconds)

    def monotonic(self):
        return self.now


@pytest.fixture
def hours(monkeypatch):
    """Patience is two pauses."""
    there = Hours()
    monkeypatch.setattr(latency.placement, "time", there)
    monkeypatch.setattr(latency.placement, "PATIENCE_S", 2 * PAUSE_S)
    return there


def scripted(monkeypatch, *handovers):
    """Two cores whose hand-overs take so many microseconds, one after the other."""
    script = iter(handovers)
    cores = Cores(2)
    monkeypatch.setattr(cores, "handover_us", lambda threads: ALONE if threads == 1 else next(script))
    return cores


def test_cores_that_are_near_are_not_waited_for(monkeypatch, hours):
    cores = scripted(monkeypatch, NEAR, NEAR)
    cores.settle()
    cores.settle()
    assert cores.met.waited_s == 0
    assert PAUSE_S not in hours.sleeps


def test_cores_that_were_moved_apart_are_waited_for(monkeypatch, hours):
    cores = scripted(monkeypatch, FAR, FAR, NEAR)
    cores.settle()
    assert hours.sleeps.count(PAUSE_S) == 2
    assert cores.met.waited_s == pytest.approx(2 * PAUSE_S)


def test_cores_that_stay_apart_are_taken_as_they_are_until_they_were_near(monkeypatch, hours):
    cores = scripted(monkeypatch, FAR, FAR, FAR, FAR, NEAR, FAR, NEAR)
    waited = []
    for _ in range(4):
        cores.settle()
        waited.append(cores.met.waited_s / PAUSE_S)
        hours.now += 60
    assert waited == pytest.approx([2, 2, 2, 3])
    assert (cores.met.rounds, cores.met.share_apart) == (4, 0.5)
    assert cores.met.since(cores.met).share_apart == 0.0


def test_of_cores_that_come_and_go_half_of_the_time_at_most_is_waiting(monkeypatch, hours):
    cores = scripted(monkeypatch, *[FAR, NEAR] * 100)
    for _ in range(100):
        cores.settle()
        hours.now += 0.1 * PAUSE_S
    assert 2 * PAUSE_S <= cores.met.waited_s <= 0.5 * hours.now + 2 * PAUSE_S


def test_a_hand_over_takes_time_and_leaves_torch_its_threads():
    usual, cores = torch.get_num_threads(), Cores(2)
    assert 0 < cores.handover_us(1) < 1e6
    assert 0 < cores.handover_us(2) < 1e6
    assert torch.get_num_threads() == usual


def test_before_every_round_of_several_threads_the_quickest_run_wakes_them(monkeypatch):
    asked, called = [], []
    monkeypatch.setattr(Cores, "settle", lambda self: asked.append(self.threads))
    monkeypatch.setattr(latency.measurement, "WARM_MS", 0.0)
    monkeypatch.setattr(latency.measurement, "is_virtual", lambda: True)
    runs = {"slow": lambda: called.append("slow") or sum(range(100_000)), "quick": lambda: called.append("quick")}
    for threads in (1, 2):
        interleave(runs, rounds=3, threads=threads, warmup=1, window_ms=0.0, clock=SystemClock())
    rounds = asked.count(2)
    assert asked == [2] * rounds
    assert rounds >= 3
    assert called[-3 * rounds :] == ["quick", "slow", "quick"] * rounds
    assert cores_of(2) is cores_of(2)


def test_nobody_moves_the_cores_of_a_machine_without_a_hypervisor(monkeypatch):
    monkeypatch.setattr(Cores, "settle", lambda self: pytest.fail("waited"))
    monkeypatch.setattr(latency.measurement, "is_virtual", lambda: False)
    assert not SystemClock().settle(2)
