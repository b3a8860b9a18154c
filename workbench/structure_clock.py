"""A clock and a latency table that count multiply-accumulates: choices by milliseconds without any timing."""

import math
from dataclasses import dataclass, field

import pytest

from compressor.estimate import Estimate
from compressor.measuring.macs import count_macs
from compressor.measuring.timing import Timing
from compressor.pruning.choice import goals


@dataclass
class Clock:
    """A file takes a microsecond for a thousand products of one sample, times `factor` where it is narrower."""

    factor: float = 1.0
    timed: list[float] = field(default_factory=list)

    def time(self, candidate: bytes, reference: bytes, inputs, **_settings) -> Timing:
        whole, ms = (count_macs(file, inputs) / 1e6 for file in (reference, candidate))
        ms *= self.factor if ms < whole else 1.0
        self.timed.append(ms)
        return Timing(
            reference_ms=Estimate(whole, whole, whole),
            candidate_ms=Estimate(ms, 0.99 * ms, 1.01 * ms),
            speedup=Estimate(whole / ms, 0.99 * whole / ms, 1.01 * whole / ms),
        )


class CountingTable:
    """A latency table that takes a microsecond for a thousand products, and nothing for anything else."""

    def __init__(self, target, **_settings) -> None:
        self.target = target

    def milliseconds(self, operators, precision: str = "float32") -> list[float]:
        return [operator.macs / 1e6 for operator in operators]

    def total(self, operators, precision: str = "float32") -> float:
        return math.fsum(self.milliseconds(operators))


def install(monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> Clock:
    """Makes structure goals read a counting clock."""
    clock = Clock(factor=factor)
    monkeypatch.setattr(goals, "time_interleaved", clock.time)
    monkeypatch.setattr(goals, "LatencyTable", CountingTable)
    return clock
