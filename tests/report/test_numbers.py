import pytest

from compressor.estimate import Estimate
from compressor.report.numbers import drop_tone


@pytest.mark.parametrize(
    ("drop", "tone"),
    [
        (Estimate(0.02, 0.01, 0.03), "warn"),
        (Estimate(-0.02, -0.03, -0.01), "good"),
        (Estimate(0.02, -0.01, 0.05), ""),
        (Estimate(0.02, 0.0, 0.04), ""),
        (Estimate(0.02, 0.02, 0.02), ""),
    ],
)
def test_only_what_the_interval_proves_has_a_colour(drop: Estimate, tone: str) -> None:
    """A drop is a warning and a gain is good where 0 lies outside the interval; without an interval nothing is sure."""
    assert drop_tone(drop) == tone
