"""What is to be left of a network, in the unit that the choice of its structure is made in."""

from dataclasses import dataclass

from compressor.checks import check_fraction, check_one_of, check_positive

FORMS = ("float32", "int8")


@dataclass(frozen=True)
class Latency:
    """The time of one call: `fraction`, in (0, 1), of the reference's, or at most `ms` milliseconds (> 0).

    Exactly one of both. `form` is the form that ships, "float32" or "int8": the widths that pay differ between them.
    """

    fraction: float | None = None
    ms: float | None = None
    form: str = "float32"

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.ms is None):
            raise ValueError(
                "a latency is a fraction of the reference's or a number of milliseconds, exactly one of both; got "
                f"fraction={self.fraction} and ms={self.ms}; write Latency(0.5) or Latency(ms=1.2)"
            )
        if self.fraction is not None:
            _check_fraction("latency", self.fraction)
        if self.ms is not None:
            check_positive(self.ms, "ms is the time of one call")
        check_one_of(self.form, "form is the form that ships", FORMS)


@dataclass(frozen=True)
class Macs:
    """The `fraction`, in (0, 1), of the reference's multiply-accumulates that is left.

    With `efficiency`, in (0, 1], milliseconds have to fall in step: speed-up over the ratio of multiply-accumulates is
    predicted to be at least that, in each of `forms`, "float32" and "int8". What no choice has is approached as nearly
    as steps of 0.05 allow; the predicted and the measured values stand in the report. None: time is not looked at.
    """

    fraction: float
    efficiency: float | None = None
    forms: tuple[str, ...] = FORMS

    def __post_init__(self) -> None:
        _check_fraction("multiply-accumulates", self.fraction)
        if self.efficiency is not None:
            check_fraction(
                self.efficiency,
                "efficiency is speed-up over the ratio of multiply-accumulates",
                within="(0, 1]",
                way_out="write Macs(0.5, efficiency=0.95), or leave it out",
            )
        if isinstance(self.forms, str) or not self.forms or not {*self.forms} <= {*FORMS}:
            raise ValueError(f"forms is a tuple of one or more of {', '.join(FORMS)}; got {self.forms!r}")

    def __repr__(self) -> str:
        """The call that makes it, without what is left at its default: messages and reports quote it."""
        more = f", efficiency={self.efficiency!r}" if self.efficiency is not None else ""
        more += f", forms={self.forms!r}" if self.forms != FORMS else ""
        return f"Macs(fraction={self.fraction!r}{more})"


@dataclass(frozen=True)
class Parameters:
    """The `fraction`, in (0, 1), of the reference's parameters that is left."""

    fraction: float

    def __post_init__(self) -> None:
        _check_fraction("parameters", self.fraction)


PruningTarget = Latency | Macs | Parameters


def _check_fraction(what: str, fraction: float) -> None:
    check_fraction(fraction, f"fraction is what is left of the reference's {what}", within="(0, 1)")
