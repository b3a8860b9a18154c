"""A choice is judged by what was measured of it; the report is told the same, rounded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import nn

from compressor.estimate import Estimate
from compressor.pruning.choice.goals import CountGoal, Efficiency, EfficientGoal, LatencyGoal
from compressor.pruning.choice.measured_choice import Proposal, measured_choice
from compressor.pruning.choice.targets import Latency, Macs
from compressor.stage import Context

TARGET = Macs(0.6, efficiency=0.9, forms=("float32",))


@dataclass(frozen=True, kw_only=True)
class Scripted(EfficientGoal):
    """A goal of 600 of 1000 products that hands out what is said to have been measured, one model after another."""

    products: list[float] = field(default_factory=list)
    found: list[Efficiency] = field(default_factory=list)

    def measured(self, model: nn.Module) -> Estimate:
        value = self.products.pop(0)
        return Estimate(value, value, value)

    def efficiencies(self, model: nn.Module, predicted: Mapping[str, float]) -> dict[str, Efficiency]:
        return {"float32": self.found.pop(0)}


def chosen(products: list[float], found: list[Efficiency]) -> tuple[int, dict[str, Any], Scripted]:
    """Which proposal was taken (1 or 2), the details, and the goal, for what the proposals are measured to be."""
    nothing: Any = None
    counted = CountGoal(
        kind=Macs, workload=nothing, context=nothing, unit="MACs", reference=1000.0, start=1000.0, limit=600.0
    )
    timed = LatencyGoal(
        target=Latency(0.6), workload=nothing, context=nothing, reference_file=b"", start_file=b"", start_sizes=(),
        unit="ms", reference=1.0, start=1.0, limit=0.6,
    )  # fmt: skip
    goal = Scripted(counted=counted, timed=(timed,), efficiency=0.9, products=products, found=found)
    proposals = [Proposal(entries=[], state={"layer": width}, predicted=600.0) for width in (1, 2)]
    context = Context(progress=False)
    taken = measured_choice(goal, TARGET, nn.Identity(), lambda _: proposals.pop(0), context.tell)
    return taken.state["layer"], context.details, goal


def test_an_efficiency_within_tolerance_is_not_made_to_fall_short_by_rounding() -> None:
    """0.87004 of 0.9 lacks less than 0.03, and the first choice stays; four digits of it would lack a hair more."""
    taken, details, _ = chosen([600.0], [Efficiency(predicted=0.912345, measured=0.87004)])
    assert taken == 1
    assert details["target"]["efficiency"] == {"asked": 0.9, "float32": {"predicted": 0.9123, "measured": 0.87}}
    assert set(details) == {"target"}


def test_what_was_measured_is_learned_to_the_last_digit() -> None:
    """After 0.8 in place of 0.912345 everything counts as 1.14043 times as slow, and the better choice is taken."""
    second = Efficiency(predicted=0.9, measured=0.89996)
    taken, details, goal = chosen([600.0, 600.0], [Efficiency(predicted=0.912345, measured=0.8), second])
    assert goal.slower["float32"] == pytest.approx(0.912345 / 0.8, rel=1e-12)
    assert taken == 2
    assert details["target"]["efficiency"]["float32"] == {"predicted": 0.9, "measured": 0.9}
    assert details["first_choice"]["efficiency"]["float32"] == {"predicted": 0.9123, "measured": 0.8}


def test_a_second_choice_beyond_the_limit_is_not_brought_within_by_rounding() -> None:
    """618.004 products are more than 600 and 3 %, though five digits of them are not: the first choice stays."""
    found = [Efficiency(predicted=0.9, measured=0.8), Efficiency(predicted=0.9, measured=0.9)]
    taken, details, _ = chosen([600.0, 618.004], found)
    assert taken == 1
    assert details["second_choice"]["measured"] == 618.0
    assert details["target"]["measured"] == 600.0
