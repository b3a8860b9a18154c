"""The rate of a training, found by some dozens of batches whose rate rises from far too low to far too high.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, sec. 3.3. Losses of different
batches differ by more than a few updates change. So every batch is shown twice: to the model as it is, and to the one
that learns at the rising rate. Their difference says what learning did, and where it begins to do harm.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn

from compressor.progress.bars import progress_bar
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer, Known, Optimizer
from compressor.training.optimizers.composition import suits_sgd
from compressor.training.optimizers.groups import optimizer_for
from compressor.training.optimizers.stepping import DivergedError, Updates, check_finite
from compressor.training.passes.losses import Passes
from compressor.training.replay import replayed
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import capture, restore_

# The first rates hardly move anything, and the last ones break everything, in any network that was trained before.
_LOWEST: dict[type[SGD | AdamW], float] = {SGD: 1e-3, AdamW: 3e-5}
_HIGHEST: dict[type[SGD | AdamW], float] = {SGD: 1.0, AdamW: 0.1}
# What is taken where there are too few updates for a test, which would cost as much as they do.
_USUAL: dict[type[SGD | AdamW], float] = {SGD: 0.01, AdamW: 1e-3}
_FEWEST_UPDATES = 24
_FEWEST_BATCHES, _MOST_BATCHES, _SHARE = 16, 48, 1 / 8
# Learning that lowers the loss by less than this part of it is none.
_GAINS = 0.02
# Losses of the model before differ by more than a rise of this part of them, which is harm beyond noise.
_HARMS = 0.1
# Where there is little left to learn, how far below the rate that does harm a training stays.
_CAREFUL = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Found:
    """The optimizer of a training, at the rate that is used, and where both come from in words."""

    optimizer: Known
    why: str

    def to_facts(self) -> dict[str, Any] | None:
        """What a snapshot keeps; None where the settings alone say it."""
        if not isinstance(self.optimizer, SGD | AdamW):
            return None
        return {"kind": type(self.optimizer).__name__, "rate": self.optimizer.rate, "why": self.why}

    @classmethod
    def from_facts(cls, facts: dict[str, Any] | None, asked: Optimizer) -> "Found | None":
        """What `to_facts` gave, of a training that was asked for the optimizer `asked`."""
        if facts is None or not isinstance(asked, AutoOptimizer):
            return None
        kind = {"SGD": SGD, "AdamW": AdamW}[facts["kind"]]
        return cls(optimizer=kind(rate=facts["rate"]), why=facts["why"])


def found_for(model: nn.Module, passes: Passes, settings: TrainingSettings, *, seed: int) -> Found:
    """The optimizer of the settings, or what suits `model` and its data where they leave that open.

    `passes` are those of the training, of which `model` is the part that says what suits. The test is replayed by the
    seed, looks at training data alone, and leaves every parameter and buffer as it was.
    """
    if not isinstance(settings.optimizer, AutoOptimizer):
        return Found(optimizer=settings.optimizer, why="asked for")
    sgd, made_of = suits_sgd(model)
    kind: type[SGD | AdamW] = SGD if sgd else AdamW
    count = batches_of_test(passes.rounds.total)
    if not count:
        return Found(optimizer=kind(rate=_USUAL[kind]), why=f"{made_of}; too few updates for a range test")
    rates, before, after = _tried(passes, kind, settings, count=count, seed=seed)
    rate, why = judged(rates, before, after)
    if rate is None:
        return Found(optimizer=kind(rate=_USUAL[kind]), why=f"{made_of}; {why}")
    return Found(optimizer=kind(rate=rate), why=f"{made_of}; a range test of {len(before)} batches: {why}")


def batches_of_test(updates: int) -> int:
    """How many batches the test of a training of so many updates runs: an eighth, 16 to 48; or none."""
    if updates < _FEWEST_UPDATES:
        return 0
    return max(_FEWEST_BATCHES, min(_MOST_BATCHES, int(updates * _SHARE)))


def judged(rates: Sequence[float], before: Sequence[float], after: Sequence[float]) -> tuple[float | None, str]:
    """(rate, why) of a test: at rising `rates`, the losses `before` any learning and those `after` what was learned.

    `after` may be shorter, where the losses became infinite. The rate lies midway, in its logarithm, between the one up
    to which learning gained and the one from which it lost; where nothing was gained, it is a third of the
    one from which harm was done. None where there was nothing to see.
    """
    scale = sum(map(abs, before)) / max(1, len(before))
    if len(after) < 2 or not math.isfinite(scale):
        return None, "a range test found no finite losses"
    changes = [later - first for first, later in zip(before, after, strict=False)]
    # Over three neighbours: one lucky batch says little.
    smooth = [sum(part) / len(part) for i in range(len(changes)) if (part := changes[max(0, i - 1) : i + 2])]
    best = min(range(len(smooth)), key=smooth.__getitem__)
    last = len(smooth) - 1
    if smooth[best] < -_GAINS * scale:
        lost = next((i for i in range(best, last) if smooth[i] > _HARMS * scale), last)
        # What falls furthest in so few steps is not yet the rate that takes a cycle furthest, which ends low.
        why = f"the loss fell up to {rates[best]:.2g}, and was above where it began at {rates[lost]:.2g}"
        return math.sqrt(rates[best] * rates[lost]), why
    harmful = next((i for i, change in enumerate(smooth) if change > _HARMS * scale), last)
    return rates[harmful] * _CAREFUL, "the loss did not fall, and this is a third of the rate from which it rises"


def _tried(
    passes: Passes, kind: type[SGD | AdamW], settings: TrainingSettings, *, count: int, seed: int
) -> tuple[list[float], list[float], list[float]]:
    """(rates, losses of the model as it is, losses of the one that learns) of the first `count` batches."""
    model, computed_in = passes.model, passes.form.autocast
    start = capture(model)
    bar = progress_bar(desc="looking for a rate", unit="batch", total=2 * count)
    try:
        before = []
        with replayed(seed, 0):
            for _, loss, own in islice(passes.losses(0, 0, computed_in), count):
                before.append(passes.value(loss, own))
                bar.update()
        restore_(model, start)
        low, high = _LOWEST[kind], _HIGHEST[kind]
        rates = [low * (high / low) ** (number / max(1, len(before) - 1)) for number in range(len(before))]
        optimizer = optimizer_for(
            model, kind(rate=1.0), weight_decay=settings.weight_decay, layer_rates=settings.layer_rates
        )
        updates = Updates(optimizer=optimizer, clip=settings.clip, divides=passes.weighing.divides, team=passes.team)
        after: list[float] = []
        with replayed(seed, 0), suppress(DivergedError):
            for rate, (_, loss, samples) in zip(rates, passes.losses(0, 0, computed_in), strict=False):
                after.append(check_finite(passes.value(loss, samples), "loss"))
                updates.add_(loss, samples, rate, "the range test")
                bar.update()
    finally:
        bar.close()
        restore_(model, start)
    return rates, before, after
