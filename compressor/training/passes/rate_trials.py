"""Which part of the rate that a range test found takes a small training furthest: it is run whole at each, on a copy.

A range test sees a few dozen batches of training data. A network that has few samples learns them by heart in the
updates that follow, the sooner the higher the rate, which no loss on training data shows. Small trainings are cheap
enough to do what a practitioner does: sweep the rate, and keep what is best on validation.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from compressor.metrics import Metric
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer, Known
from compressor.training.passes.range_test import Found, batches_of_test
from compressor.training.passes.rounds import SHORT
from compressor.training.settings import TrainingSettings

PARTS = (1.0, 1 / 3, 1 / 9)


def tries_rates(settings: TrainingSettings, updates: int) -> bool:
    """Whether a training of so many `updates` has its rate tried: those that a range test is for, but for long ones.

    These are not run several times, and see enough of their data in a range test.
    """
    return isinstance(settings.optimizer, AutoOptimizer) and bool(batches_of_test(updates)) and updates <= SHORT


def best_of(found: Found, score: Callable[[Known], float | None], metric: Metric) -> Found:
    """`found` at the part of its rate whose training `score` says is best on validation, the first of equals.

    `score` is None where a training does not converge; `found` stays as it is where none does.
    """
    if not isinstance(found.optimizer, SGD | AdamW):
        return found
    tried = [replace(found.optimizer, rate=found.optimizer.rate * part) for part in PARTS]
    scores = [score(optimizer) for optimizer in tried]
    sign = 1 if metric.higher_is_better else -1
    came = [(sign * value, -number) for number, value in enumerate(scores) if value is not None]
    if not came:
        return found
    _, place = max(came)
    return Found(optimizer=tried[-place], why=f"{found.why}; {_says(tried, scores, metric)}")


def _says(tried: Sequence[SGD | AdamW], scores: Sequence[float | None], metric: Metric) -> str:
    each = [
        f"{optimizer.rate:.2g} gives {'no number' if score is None else f'{score:.4g}'}"
        for optimizer, score in zip(tried, scores, strict=True)
    ]
    return f"the whole training was tried on copies, and on validation ({metric.name}) {', '.join(each)}"
