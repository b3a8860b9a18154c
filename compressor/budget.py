"""What a stage may cost and must bring: the rules by which the pipeline keeps it or rolls it back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.checks import check_max_drop, check_positive, explains_settings
from compressor.estimate import Estimate
from compressor.metrics import Metric
from compressor.notes.quantization import KeptOutput
from compressor.scoring.decibels import decibels, reported_db


@explains_settings
@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits that decide on validation data and measured time.

    `max_drop`: how much worse than the reference the score may become, in points for metrics in [0, 1] (0.01 is one
    point of accuracy), as a fraction of the reference's score for others; None does not look. `min_others_db`: what
    integers must leave of every output that the metric does not read, in decibels of its signal around the mean, in its
    worst channel where it has channels (10 is a tenth of noise); None does not look. `not_slower`: stages that
    make the file slower, or neither faster nor smaller, are rolled back. The three goals are about the final file and
    decide whether the budget is met: `min_speedup` over the reference, `max_latency_ms`, `max_size_bytes`.
    """

    max_drop: float | None = 0.01
    min_others_db: float | None = 10.0
    not_slower: bool = True
    min_speedup: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None

    def __post_init__(self) -> None:
        check_max_drop(self.max_drop)
        if self.min_others_db is not None:
            check_positive(self.min_others_db, "min_others_db is the decibels that other outputs keep")
        for name in ("min_speedup", "max_latency_ms", "max_size_bytes"):
            value = getattr(self, name)
            if value is not None:
                check_positive(value, f"{name} is a goal of the final file", way_out="leave it out to set no such goal")


@dataclass(frozen=True)
class Verdict:
    """Whether something may stay, and why in a sentence; `way_out` is what would keep it, "" where nothing is known."""

    keep: bool
    reason: str
    way_out: str = ""


_NOT_SCORED = Verdict(keep=True, reason="not scored: there were no data")


def judge_gain(speedup: Estimate, size_bytes: int, base_size_bytes: int, *, given_bytes: int | None = None) -> Verdict:
    """Whether a stage that changes structure or encoding pays: faster or smaller than before it, and not slower.

    `speedup` is the measured ratio of the time before it to the time after it; a difference counts when the interval
    excludes 1. What is larger than the file that the user gave, of `given_bytes`, is not said to be smaller alone.
    """
    shrink = base_size_bytes / size_bytes
    smaller = f"{shrink:.2f}x smaller"
    if given_bytes is not None and given_bytes < size_bytes < base_size_bytes:
        smaller += f" than the given one as it was read, {size_bytes / given_bytes:.2f}x larger than it is"
    times = f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"
    if speedup.high < 1:
        reason = f"slower: {times} the speed of the model before it"
        if round(shrink, 2) <= 1:
            return Verdict(keep=False, reason=reason)
        way_out = "`not_slower: false` in the budget would keep it"
        return Verdict(keep=False, reason=f"{reason}, though the file is {smaller}", way_out=way_out)
    if round(speedup.low, 2) > 1:  # what reads as 1.00 is not told as faster
        return Verdict(keep=True, reason=f"{times} faster, file {smaller}")
    if size_bytes < base_size_bytes:
        return Verdict(keep=True, reason=f"file {smaller}; no difference in time ({times})")
    return Verdict(keep=False, reason=f"neither faster ({times}) nor smaller ({shrink:.2f}x)")


def judge_drop(drop: Estimate, max_drop: float, metric: Metric) -> Verdict:
    """Whether the measured `drop` from the reference, on validation, is within `max_drop`."""
    if not metric.scored:
        return _NOT_SCORED
    amount = describe_drop(drop, metric)
    if drop.value > max_drop:
        return Verdict(keep=False, reason=f"validation {amount}; the budget allows {_amount(max_drop, metric)}")
    return Verdict(keep=True, reason=f"validation {amount}")


def judge_others(others: Sequence[KeptOutput], least_db: float) -> Verdict:
    """Whether the outputs that the metric does not read keep `least_db`; the one that keeps least comes first."""
    missed = [each for each in others if each.worst_db < least_db]
    told = "; ".join(each.says() for each in missed or others[:1])
    if missed:
        return Verdict(keep=False, reason=f"outputs beside the judged one: {told}; the budget asks for {least_db:g} dB")
    return Verdict(keep=True, reason=f"outputs beside the judged one: {told}" if told else "")


def judge_values(change: Estimate, metric: Metric) -> Verdict:
    """Whether a stage that only changes weights may stay: `change` is its drop from the model before it."""
    if not metric.scored:
        return _NOT_SCORED
    amount = describe_drop(change, metric)
    if change.low > 0:
        return Verdict(keep=False, reason=f"made the model worse than before it: validation {amount}")
    return Verdict(keep=True, reason=f"against the model before it: validation {amount}")


def unmet_goals(budget: Budget, *, speedup: float, latency_ms: float, size_bytes: int) -> list[str]:
    """The goals of `budget` that the final file misses, a sentence each."""
    missed = []
    if budget.min_speedup is not None and speedup < budget.min_speedup:
        missed.append(f"speed-up {speedup:.2f}x is below the wanted {budget.min_speedup:.2f}x")
    if budget.max_latency_ms is not None and latency_ms > budget.max_latency_ms:
        missed.append(f"latency {latency_ms:.3f} ms is above the wanted {budget.max_latency_ms:.3f} ms")
    if budget.max_size_bytes is not None and size_bytes > budget.max_size_bytes:
        missed.append(f"size {size_bytes} bytes is above the wanted {budget.max_size_bytes} bytes")
    return missed


def describe_drop(drop: Estimate, metric: Metric) -> str:
    """`drop` in words: "accuracy fell 0.4 points [-0.2, 1.0]", or "rose" where it is negative."""
    worse = drop.value >= 0
    verb = "fell" if worse == metric.higher_is_better else "rose"
    low, high = (drop.low, drop.high) if worse else (-drop.high, -drop.low)
    if not math.isfinite(drop.value):
        return f"{metric.name} {verb} from nothing"
    if metric.decibels:
        share = drop.value
        return (
            f"{metric.name} is {_db(share)} [{_db(drop.high)}, {_db(drop.low)}]"
            if share > 0
            else (f"{metric.name} is no worse")
        )
    # Adding zero turns -0.0 into 0.0.
    span = f"[{100 * low + 0:.1f}, {100 * high + 0:.1f}]"
    return f"{metric.name} {verb} {_amount(abs(drop.value), metric)} {span}"


def _amount(value: float, metric: Metric) -> str:
    if metric.decibels:
        return _db(value)
    return f"{100 * value:.1f} points" if metric.bounded else f"{100 * value:.1f} %"


def _db(share: float) -> str:
    """Noise that is such a share of the signal, in decibels."""
    return f"{reported_db(decibels(1.0, max(share, 0.0))):.1f} dB"
