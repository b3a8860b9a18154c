"""What training won back in runs that are finished: the share of a drop that was gone in the end."""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.estimate import Estimate

# Of smaller drops, in points of a bounded metric, a share says nothing.
_LEAST_DROP = 0.01


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run: the `before` that its structure lost untrained, and what was lost `after` so many `epochs`.

    Both are drops on validation data, in the metric's own units.
    """

    before: float
    after: float
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """The shares of their drops that runs won back, from 0 to 1, and over how many epochs they trained."""

    shares: tuple[float, ...]
    epochs: tuple[int, int]

    @classmethod
    def of(cls, runs: Sequence[Trained]) -> "Recovery | None":
        """What `runs` say; None where none of them lost enough to say something."""
        telling = [run for run in runs if run.before >= _LEAST_DROP]
        if not telling:
            return None
        shares = tuple(min(1.0, max(0.0, 1 - run.after / run.before)) for run in telling)
        epochs = [run.epochs for run in telling]
        return cls(shares=shares, epochs=(min(epochs), max(epochs)))

    def after(self, untrained: Estimate) -> Estimate:
        """The drop that is left of `untrained` if training wins back as much of it as it did in these runs.

        From the best share on the mildest drop to the worst on the hardest: no interval of a probability.
        """
        mean = sum(self.shares) / len(self.shares)
        low, value, high = untrained.low, untrained.value, untrained.high
        ends = [_left(drop, share) for drop in (low, high) for share in (min(self.shares), max(self.shares))]
        return Estimate(_left(value, mean), min(ends), max(ends))


def _left(drop: float, share: float) -> float:
    # What was no drop is not won back.
    return drop * (1 - share) if drop > 0 else drop
