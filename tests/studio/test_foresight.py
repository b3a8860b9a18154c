"""What is foretold of a choice: curves and intervals from what was measured, times that are there at once."""

import json
import math

import numpy as np
import pytest

from compressor.estimate import Estimate
from compressor.latency.operators import linear
from compressor.studio.foresight import background as beside
from compressor.studio.foresight.background import Background
from compressor.studio.foresight.forecast import Curve, Forecast, Observed
from compressor.studio.foresight.prompt_times import PromptTimes
from compressor.studio.foresight.recovery import Recovery, Trained
from compressor.studio.foresight.sensitivities import drawn_state


def _observed(loss, drop=None, error=0.01):
    return Observed(loss=loss, drop=loss if drop is None else drop, error=error)


def test_a_curve_rises_from_nothing():
    """Neighbours that fall are pooled at their mean; no change loses nothing, and beyond the last one it is level."""
    curve = Curve([_observed(1.0, 0.3), _observed(2.0, 0.1), _observed(4.0, 0.5)])
    assert curve.drop(0.0) == 0.0
    assert curve.drop(1.5) == pytest.approx(0.2)
    assert curve.drop(2.75) == pytest.approx(0.35)
    assert curve.drop(100.0) == pytest.approx(0.5)


def _drawn(source):
    """A drop that saturates, of a sum that is off by a factor of its own."""
    loss = 5 * source.random() ** 2
    drop = 0.8 * (1 - math.exp(-loss * math.exp(source.normal(0, 0.4))))
    return _observed(loss, drop + source.normal(0, 0.01))


def test_nine_in_ten_drops_lie_within():
    """Of choices like the probes: the interval neither misses more nor covers all of them by being wide."""
    source = np.random.default_rng(0)
    inside, widths = 0, []
    for _ in range(20):
        forecast = Forecast(singles=(), probes=tuple(_drawn(source) for _ in range(32)))
        for new in (_drawn(source) for _ in range(20)):
            told = forecast.drop(new.loss)
            inside += told.low <= new.drop <= told.high
            widths.append(told.high - told.low)
    assert 0.88 <= inside / 400 <= 0.985
    assert sum(widths) / 400 < 0.5


def test_few_probes_give_no_interval():
    """Of eight no nine tenths can be told: the value stands alone."""
    forecast = Forecast(singles=(), probes=tuple(_observed(0.1 * number) for number in range(8)))
    assert not forecast.has_interval
    told = forecast.drop(0.35)
    assert (told.value, told.low, told.high) == pytest.approx((0.35,) * 3)
    assert Forecast(singles=(), probes=(*forecast.probes, _observed(1.0))).has_interval


class _Table:
    """A latency table that knows what it was told, and counts what it measures."""

    def __init__(self):
        self.times, self.measured = {}, []

    def known(self, operators, _form):
        return [self.times.get(operator) for operator in operators]

    def milliseconds(self, operators, _form="float32"):
        self.measured += [operator for operator in operators if operator not in self.times]
        self.times |= {operator: operator.macs / 1000 for operator in operators}
        return [self.times[operator] for operator in operators]


class _Costs:
    """One linear layer whose outputs are the state's width."""

    def operators(self, state):
        return [linear(100, state.get("width", 40), 32)]

    def origins(self, _state):
        return self.operators({})


def test_a_width_that_was_never_timed_counts_by_the_whole_one_and_is_timed_then():
    """At once half of the whole layer's time for half of its products; behind the measurement what was measured."""
    table = _Table()
    times = PromptTimes(table, _Costs(), "float32")
    table.measured.clear()
    table.times[linear(100, 40, 32)] = 10.0
    whole = times._whole[linear(100, 40, 32)]
    assert times.lacks({"width": 20})
    assert times([_Costs().operators({"width": 20})]) == [whole / 2]
    assert table.measured == []
    assert times.measure(8)
    assert table.measured == [linear(100, 20, 32)]
    assert not times.lacks({"width": 20})
    assert not times.wanted
    assert not times.measure(8)


def test_the_latest_question_is_timed_first():
    """What a slider stands at now counts more than what it went past."""
    table = _Table()
    times = PromptTimes(table, _Costs(), "float32")
    for width in (10, 20, 30):
        times.lacks({"width": width})
    table.measured.clear()
    times.measure(2)
    assert table.measured == [linear(100, 30, 32), linear(100, 20, 32)]


def test_what_training_won_back_is_told_by_the_worst_and_the_best():
    """Half and nine tenths won back of a drop of 0.2 [0.1, 0.3]: 0.06 left, from 0.01 to 0.15."""
    runs = [Trained(before=0.4, after=0.2, epochs=4), Trained(before=0.1, after=0.01, epochs=8)]
    recovery = Recovery.of([*runs, Trained(before=0.001, after=0.0, epochs=8)])
    assert recovery.shares == pytest.approx((0.5, 0.9))
    assert recovery.epochs == (4, 8)
    left = recovery.after(Estimate(0.2, 0.1, 0.3))
    assert (left.value, left.low, left.high) == pytest.approx((0.06, 0.01, 0.15))
    assert Recovery.of([Trained(before=0.0, after=0.0, epochs=8)]) is None


def test_a_job_that_raises_is_left_out_and_the_others_go_on():
    """The first that has something to do goes first; settled is when none has."""
    done, failed = [], []

    def first():
        if len(done) >= 2:
            raise ValueError("a metric's own")
        return False

    def second():
        done.append("second")
        return len(done) < 4

    background = Background([first, second], failed.append)
    background.start()
    assert background.settle(10)
    assert len(done) == 4
    assert [str(error) for error in failed] == ["a metric's own"]
    background.wake()
    assert background.settle(10)
    assert len(done) == 5
    background.end()


def test_who_asks_goes_first(clock, monkeypatch):
    """Steps beside a page are followed by no rest worth the name, beside twenty by a longer one; and it has an end."""
    monkeypatch.setattr(beside.time, "monotonic", clock)
    background = Background([], lambda _: None)
    assert background._rest(0.1) == 0
    background.asked()
    assert background._rest(0.1) < 0.003
    for _ in range(400):
        clock.now += 1 / 200
        background.asked()
    assert 0.2 < background._rest(0.1) < 0.4
    assert background._rest(10.0) == 0.5
    clock.now += 10
    assert background._rest(0.1) < 0.001


def test_plans_by_chance_are_of_every_size():
    """From one change to all of them, as likely few as many, and nothing but what may be."""
    widths, blocks = {f"g{number}": (32, 16, 8) for number in range(20)}, [f"b{number}" for number in range(10)]
    counts = []
    for seed in range(300):
        state = drawn_state(seed, widths, blocks)
        counts.append(sum(state[name] < 32 for name in widths) + sum(not state[f"block:{name}"] for name in blocks))
        assert all(state[name] in stops for name, stops in widths.items())
    assert min(counts) == 1
    assert max(counts) == 30
    assert 0.35 < sum(count <= 5 for count in counts) / 300 < 0.6
    assert json.dumps(drawn_state(3, widths, blocks)) == json.dumps(drawn_state(3, widths, blocks))
