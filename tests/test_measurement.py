"""Times on a machine where others run too, with the clock injected."""

import numpy as np
import pytest

from latency.measurement import POLLUTED, Samples, interleave, without_drift


class FakeClock:
    """Time advances only when a run says so; `busy` rounds lose a share of the window to others."""

    def __init__(self):
        self.now, self.stolen = 0.0, 0.0

    def now_ms(self):
        return self.now

    def stolen_ms(self):
        return self.stolen

    def spend(self, ms, stolen=0.0):
        self.now += ms + stolen
        self.stolen += stolen


def test_runs_are_interleaved_round_by_round():
    clock, order = FakeClock(), []

    def run(name):
        return lambda: (order.append(name), clock.spend(10.0))

    interleave({"a": run("a"), "b": run("b")}, rounds=3, threads=1, warmup=0, clock=clock)
    assert order == ["a", "b"] + ["a", "b"] * 3


def test_short_runs_are_repeated_to_fill_the_window():
    clock = FakeClock()
    samples = interleave({"a": lambda: clock.spend(0.5)}, rounds=4, threads=1, window_ms=5.0, clock=clock)["a"]
    np.testing.assert_allclose(samples.ms, 0.5)


def test_polluted_samples_are_dropped_and_taken_again():
    clock, calls = FakeClock(), iter(range(100))
    samples = interleave(
        {"a": lambda: clock.spend(10.0, stolen=5.0 if next(calls) % 2 else 0.0)},
        rounds=6,
        threads=1,
        warmup=0,
        clock=clock,
    )["a"]
    measured = samples.measurement()
    assert measured.median_ms == pytest.approx(10.0)
    assert measured.n == 6
    assert measured.contention > POLLUTED


def test_a_machine_that_is_never_quiet_still_gives_an_answer_that_says_so():
    clock = FakeClock()
    measured = interleave({"a": lambda: clock.spend(10.0, stolen=10.0)}, rounds=3, threads=1, warmup=0, clock=clock)[
        "a"
    ].measurement()
    assert measured.n >= 1
    assert measured.contention == pytest.approx(0.5)


def test_stolen_time_is_a_share_of_all_threads():
    clock = FakeClock()
    taken = interleave({"a": lambda: clock.spend(10.0, stolen=2.0)}, rounds=2, threads=4, warmup=0, clock=clock)["a"]
    np.testing.assert_allclose(taken.contention, 2.0 / (4 * 12.0))


def test_the_least_polluted_third_is_used_when_all_are_polluted():
    samples = Samples(np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.1, 0.5]), (None,) * 3)
    assert samples.clean.tolist() == [1]


def test_a_machine_that_slows_down_half_way_does_not_change_a_ratio():
    drift = np.array([1.0, 1.0, 1.0, 2.0, 2.0])
    none = np.zeros(5)
    samples = {"a": Samples(10 * drift, none, (None,) * 5), "b": Samples(3 * drift, none, (None,) * 5)}
    a, b = (each.measurement() for each in without_drift(samples).values())
    assert b.median_ms / a.median_ms == pytest.approx(0.3)
    assert a.median_ms == pytest.approx(10)
    assert a.iqr_ms == pytest.approx(0)
