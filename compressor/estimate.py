"""A measured number with its 95 % interval."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval, all in the unit its field's name gives."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval needs low <= high, got [{self.low}, {self.high}]")

    def excludes(self, point: float) -> bool:
        """Whether `point` lies outside the interval: the difference from it is then significant at 5 %."""
        return point < self.low or point > self.high
