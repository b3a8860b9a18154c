"""How reports write numbers: units, digits and signs, and what may be claimed from an interval."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.estimate import Estimate
from compressor.metrics import UNSCORED
from compressor.scoring.decibels import noise_share

# Noise is told in parts of the signal's power: 10 dB are a tenth, and every 10 more a tenth of that.
DECIBEL_SCALE = (
    "Decibels (dB): how far noise lies below the signal. At 10 dB it has a tenth of the signal's power, at 20 dB a "
    "hundredth, at 40 dB a ten-thousandth: differences of 1 in 100 of the signal's size. Every 6 dB halve that size."
)
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class ScoreScale:
    """How scores of one metric are shown: bounded ones as percentages and points, decibels, others plainly.

    Changes are told in points, in percent of noise, or in percent, which needs a reference that is `based`: whose score
    is more than rounding.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    bounded: bool = True
    decibels: bool = False
    based: bool = True

    @classmethod
    def of(cls, workload: Mapping[str, Any]) -> "ScoreScale":
        """The scale of a report's `workload` entry; what it does not say follows from the metric's name."""
        metric = workload.get("metric")
        facts = {**workload, **metric} if isinstance(metric, Mapping) else dict(workload)
        name = str(facts.get("name") if isinstance(metric, Mapping) else metric or "score")
        error = name in {"mse", "mae"}
        return cls(
            name=name,
            higher_is_better=bool(facts.get("higher_is_better", not error)),
            bounded=bool(facts.get("bounded", not error)),
            decibels=bool(facts.get("decibels")),
            based=bool(facts.get("based", True)),
        )

    @property
    def scored(self) -> bool:
        """Whether there is a score to show."""
        return self.name != UNSCORED

    @property
    def change_unit(self) -> str:
        """The unit of changes, with its space."""
        return " % noise" if self.decibels else " points" if self.bounded else " %"

    def score(self, value: float, decimals: int = 1, *, unit: bool = True) -> str:
        """A score, for example "89.4 %" or "0.0123"; `decimals` as of `score_decimals`."""
        if not self.scored:
            return UNSCORED
        if self.decibels:
            return f"{value:.1f}" + (" dB" if unit else "")
        if self.bounded:
            return f"{100 * value:.{decimals}f}" + (" %" if unit else "")
        return f"{value:.{decimals}f}" if decimals <= 6 and abs(value) < 1e6 else f"{value:.3e}"

    def bounds(self, score: Estimate, decimals: int) -> str:
        """The interval of a score in brackets, in the unit of `score`."""
        if not self.scored:
            return ""
        factor = 100 if self.bounded else 1
        decimals = 1 if self.decibels else decimals
        return interval(Estimate(factor * score.value, factor * score.low, factor * score.high), decimals)

    def score_decimals(self, scores: Iterable[Estimate]) -> int:
        """The number of decimals, the same for all `scores`, that shows what their intervals can tell apart."""
        known = list(scores)
        if self.bounded:
            widths = [100 * (score.high - score.low) / 2 for score in known if score.high > score.low]
            return 2 if widths and min(widths) < 0.1 else 1
        return decimals_for((score.value for score in known), digits=4)

    def change(self, drop: Estimate) -> Estimate:
        """The change of the score itself, in points or percent: negative where the score fell, better or not."""
        sign = -100.0 if self.higher_is_better and not self.decibels else 100.0
        low, high = sorted((sign * drop.low, sign * drop.high))
        return Estimate(sign * drop.value + 0.0, low + 0.0, high + 0.0)

    def plain_drop(self, reference: float, score: float) -> Estimate | None:
        """The drop between two scores as a number without an interval (low = high = value); None without a base."""
        if self.decibels:
            drop = noise_share(score) - noise_share(reference)
            return Estimate(drop, drop, drop)
        if not self.bounded and not (reference and self.based):
            return None
        worse = reference - score if self.higher_is_better else score - reference
        drop = worse if self.bounded else worse / abs(reference)
        return Estimate(drop, drop, drop)


def decimals_for(values: Iterable[float], *, digits: int) -> int:
    """The decimals with which the smallest of `values` still shows `digits` significant digits (at most 7)."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return 0
    return min(7, max(0, digits - 1 - math.floor(math.log10(min(sizes)))))


def claim(speedup: Estimate) -> str:
    """What may be said of a ratio of times: "faster", "slower", or "same" where the interval contains 1.

    The bounds count as they are printed: a difference that two decimals do not show is not claimed.
    """
    if round(speedup.low, 2) > 1:
        return "faster"
    return "slower" if round(speedup.high, 2) < 1 else "same"


def times(value: float, *, sign: str = "x") -> str:
    """A ratio, with the digits worth reading: "1.07x", "6.1x", "118x"."""
    decimals = 2 if abs(value) < 3 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}{sign}"


def drop_tone(drop: Estimate) -> str:
    """How a drop of the score is coloured: "warn" where its interval proves it, "good" for a gain, "" for chance."""
    certain = drop.low < drop.high and drop.excludes(0)
    return "" if not certain else "good" if drop.high < 0 else "warn"


def interval(estimate: Estimate, decimals: int) -> str:
    """The bounds in brackets; empty where there is no width."""
    if estimate.low == estimate.high:
        return ""
    return f"[{_signless_zero(estimate.low, decimals)}, {_signless_zero(estimate.high, decimals)}]"


def ratio_interval(estimate: Estimate) -> str:
    """The bounds of a ratio with as many decimals as `times` gives its value."""
    return interval(estimate, 2 if abs(estimate.value) < 3 else 1 if abs(estimate.value) < 100 else 0)


def counted(count: int, what: str) -> str:
    """How many there are of something whose plural has an s: "1 recipe", "2,000 recipes"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def signed(value: float, decimals: int = 1) -> str:
    """A change with its sign; a zero has none."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def size(value: int, *, reference: int | None = None) -> str:
    """Bytes as KiB, or MiB where `reference` (by default the value) is 10 MiB or more."""
    unit, name = (2**20, "MiB") if (reference or value) >= 10 * 2**20 else (2**10, "KiB")
    amount = value / unit
    decimals = 0 if amount >= 100 else 1 if amount >= 10 else 2
    return f"{amount:,.{decimals}f} {name}"


def si(value: float) -> str:
    """A count with three significant digits and an SI prefix: 125486720 -> "125 M"."""
    for factor, prefix in _SI:
        if abs(value) >= factor * 0.9995:
            amount = value / factor
            decimals = 0 if abs(amount) >= 99.95 else 1 if abs(amount) >= 9.995 else 2
            return f"{amount:.{decimals}f} {prefix}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """A time a person reads at a glance: "0.4 s", "12 s", "3 min 05 s", "1 h 02 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def smaller(before: int, after: int) -> str:
    """How a file's size changed, in words: "11.8x smaller", "1.20x larger", "as large"."""
    ratio = before / after if after else math.inf
    if round(ratio, 2) == 1:
        return "as large"
    return f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger"


def printable(text: str) -> str:
    """`text` on one line without control characters: names come from models and may hold anything."""
    return "".join(char if char.isprintable() else " " for char in text)


def shorten(text: str, length: int) -> str:
    """`text` of at most `length` characters; where it is cut, in the middle: both ends of a layer's name tell."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (length - 1 - head) :]}"


def _signless_zero(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def shapes_in_words(shapes: Iterable[Sequence[int]]) -> str:
    """Shapes of one sample of each input: "3x224x224 and 12"; a single number is "1"."""
    return " and ".join("x".join(map(str, shape)) or "1" for shape in shapes)
