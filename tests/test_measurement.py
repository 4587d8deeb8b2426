"""Times on a machine where others run too, with the clock injected."""

import copy

import numpy as np
import pytest
import torch

from benchmarks.isolated import Isolated
from benchmarks.prediction import CountingClock
from latency import Device
from latency.measurement import POLLUTED, Samples, interleave, without_drift
from latency.runtimes.replay import StepModule, steps
from network import export, trace
from tests.helpers import FP32, Mobile, Residual


class FakeClock:
    """Time advances only when a run says so; `busy` rounds lose a share of the window to others."""

    def __init__(self):
        self.now, self.stolen = 0.0, 0.0

    def now_ms(self):
        return self.now

    def stolen_ms(self):
        return self.stolen

    def settle(self, threads):
        return False

    def spend(self, ms, stolen=0.0):
        self.now += ms + stolen
        self.stolen += stolen


def test_runs_are_interleaved_round_by_round():
    clock, order = FakeClock(), []

    def run(name):
        return lambda: (order.append(name), clock.spend(100.0))

    interleave({"a": run("a"), "b": run("b")}, rounds=3, threads=1, warmup=1, clock=clock)
    assert order == ["a", "b"] + ["a", "b"] * 3


def test_a_short_run_is_timed_after_itself_and_not_after_another():
    """Whoever follows another pays for what that left in the caches: 3 ms here."""
    clock, last = FakeClock(), [""]

    def run(name, ms):
        return lambda: (clock.spend(ms + 3.0 * (last[0] != name)), last.__setitem__(0, name))

    taken = interleave({"a": run("a", 10.0), "b": run("b", 5.0)}, rounds=3, threads=1, clock=clock)
    assert [each.measurement().median_ms for each in taken.values()] == pytest.approx([10.0, 5.0])


def test_short_runs_are_repeated_to_fill_the_window():
    clock = FakeClock()
    samples = interleave({"a": lambda: clock.spend(0.5)}, rounds=4, threads=1, window_ms=5.0, clock=clock)["a"]
    np.testing.assert_allclose(samples.ms, 0.5)


@pytest.mark.parametrize(("ms", "rounds"), [(50.0, 3), (5.0, 10), (1.0, 25)])
def test_short_networks_are_timed_in_more_rounds(ms, rounds):
    """Two runs in turn fill 100 ms, in 3 rounds at least and 25 at most."""
    clock = FakeClock()
    runs = {name: lambda: clock.spend(ms) for name in "ab"}
    taken = interleave(runs, rounds=3, threads=1, window_ms=1.0, fill_ms=100.0, clock=clock)
    assert [len(each.ms) for each in taken.values()] == [rounds, rounds]


def test_polluted_samples_are_dropped_and_taken_again():
    clock, calls = FakeClock(), iter(range(100))
    samples = interleave(
        {"a": lambda: clock.spend(100.0, stolen=50.0 if next(calls) % 2 else 0.0)},
        rounds=6,
        threads=1,
        warmup=1,
        clock=clock,
    )["a"]
    measured = samples.measurement()
    assert measured.median_ms == pytest.approx(100.0)
    assert measured.n == 6
    assert measured.contention > POLLUTED


def test_a_machine_that_is_never_quiet_still_gives_an_answer_that_says_so():
    clock = FakeClock()
    measured = interleave({"a": lambda: clock.spend(10.0, stolen=10.0)}, rounds=3, threads=1, warmup=1, clock=clock)[
        "a"
    ].measurement()
    assert measured.n >= 1
    assert measured.contention == pytest.approx(0.5)


def test_stolen_time_is_a_share_of_all_threads():
    clock = FakeClock()
    taken = interleave({"a": lambda: clock.spend(10.0, stolen=2.0)}, rounds=2, threads=4, warmup=1, clock=clock)["a"]
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


def test_of_a_single_run_nothing_is_taken_for_drift():
    alone = {"a": Samples(np.array([1.0, 2.0, 6.0]), np.zeros(3))}
    assert without_drift(alone)["a"].measurement() == alone["a"].measurement()


def test_the_ratio_of_two_runs_is_the_median_of_their_ratios_round_by_round():
    a, ratios = np.array([10.0, 50.0, 30.0, 40.0, 20.0]), np.array([2.0, 2.0, 1.5, 1.5, 2.0])
    b = a / ratios
    samples = {"a": Samples(a, np.zeros(5)), "b": Samples(b, np.zeros(5))}
    steady = without_drift(samples)
    ratio = steady["a"].measurement().median_ms / steady["b"].measurement().median_ms
    assert np.median(a) / np.median(b) == pytest.approx(1.5)
    assert ratio == pytest.approx(2.0)


def test_outputs_are_kept_where_that_is_asked_for_and_nowhere_else():
    clock, number = FakeClock(), iter(range(100))
    runs = {"a": lambda: (clock.spend(100.0), next(number))[1]}
    assert interleave(runs, rounds=3, threads=1, warmup=1, clock=clock)["a"].results == ()
    assert interleave(runs, rounds=3, threads=1, warmup=1, keep=True, clock=clock)["a"].results == (5, 6, 7)


def test_a_layer_alone_computes_what_it_computes_in_its_network():
    model, example = Mobile().eval(), (torch.randn(1, 3, 16, 16),)
    values = {}
    with torch.no_grad():
        for step in steps(export(model, example)):
            if step.function is None:
                values[step.name] = example[0]
                continue
            args, kwargs = step.arguments(values)
            values[step.name] = step.function(*args, **kwargs)
            alone = copy.deepcopy(StepModule(step)).double()
            result = alone(*(values[name].double() for name in step.reads))
            torch.testing.assert_close(result.float(), values[step.name], rtol=FP32, atol=FP32)
    assert len(values) > 20


def test_isolated_layers_of_equal_widths_are_timed_once(monkeypatch):
    model, example = Residual().eval(), (torch.randn(1, 3, 16, 16),)
    net = trace(model, example)
    device = Device("here", "torch", "fp32", 1, "1")
    isolated = Isolated(model, net, example, device)
    whole = isolated.milliseconds(net.widths)
    assert whole > 0
    monkeypatch.setattr("benchmarks.isolated._timed", lambda *_: pytest.fail("timed again"))
    assert isolated.milliseconds(net.widths) == whole


def test_the_counting_clock_adds_up_what_lies_between_every_other_question():
    clock = CountingClock()
    times = [clock.now_ms() for _ in range(6)]
    assert clock.windows_ms == pytest.approx(sum(times[1::2]) - sum(times[::2]), abs=1e-6)
