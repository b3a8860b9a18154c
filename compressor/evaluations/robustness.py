"""Robustness: what is left of the score where inputs are corrupted as they commonly are.

D. Hendrycks, T. Dietterich, ICLR 2019 (arXiv:1903.12261); the corruptions are in `corruptions.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compressor.batches import Batch, Inputs
from compressor.checks import check_count, check_one_of, explains_settings
from compressor.evaluations.corruptions import IMAGES, SIGNALS, WORDS, corruption, kind_of, range_of
from compressor.evaluations.evaluation import Subject
from compressor.intervals import paired_drop, score_estimate
from compressor.notes.evaluations import Evaluated
from compressor.workload import batches_of

_SUITING = {"images": IMAGES, "words": WORDS, "signals": SIGNALS}


@explains_settings
@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The score on test data whose first input is corrupted, a row for each of `corruptions`.

    They are "gaussian_noise", "gaussian_blur" and "contrast" for images, "word_drop" for tokens, "signal_noise" for
    audio and other signals; none given are those that suit the input. `severity` is 1 to 5. A dropped word becomes the
    token `padding`. Both files see the same corrupted samples.
    """

    corruptions: tuple[str, ...] = ()
    severity: int = 3
    padding: int = 0

    def __post_init__(self) -> None:
        for name in self.corruptions:
            check_one_of(name, "corruptions are known by name", (*IMAGES, *WORDS, *SIGNALS))
        check_count(self.severity, "severity is 1 to 5")
        if self.severity > 5:
            raise ValueError(f"severity is 1 to 5, got {self.severity}")

    def evaluate(self, subject: Subject) -> Sequence[Evaluated]:
        """A row for each corruption; see `Evaluation`."""
        workload, metric = subject.workload, subject.workload.metric
        kind = kind_of(workload)
        names = self.corruptions or _SUITING[kind]
        wrong = [name for name in names if name not in _SUITING[kind]]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} is not for {kind}; for them there is {', '.join(_SUITING[kind])}")
        extent = range_of(workload) if kind == "images" else None
        found = []
        for name in names:
            change = corruption(name, self.severity, extent=extent, padding=self.padding)
            data = _Corrupted(workload.test, change, subject.seed)
            told = f"{name} {self.severity} {self.padding}"
            own, base = (subject.known.rows(file, told, data) for file in (subject.onnx_bytes, subject.reference))
            alone = subject.is_reference
            found.append(
                Evaluated(
                    evaluation="robustness",
                    what=f"{name.replace('_', ' ')}, severity {self.severity}",
                    unit="score",
                    value=score_estimate(own, metric, seed=subject.seed),
                    reference=None if alone else score_estimate(base, metric, seed=subject.seed),
                    worse=None if alone else paired_drop(own, base, metric, seed=subject.seed),
                )
            )
        return found


@dataclass(frozen=True)
class _Corrupted:
    """`data` with the first input of every batch changed, by a seed of its own."""

    data: Iterable[Any]
    change: Callable[[Tensor, int], Tensor]
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        for number, (inputs, targets) in enumerate(batches_of(self.data)):
            yield self._changed(inputs, 1_000_003 * self.seed + number), targets

    def _changed(self, inputs: Inputs, seed: int) -> Inputs:
        if isinstance(inputs, Mapping):
            first = next(iter(inputs))
            return {**inputs, first: self.change(inputs[first], seed)}
        if isinstance(inputs, tuple):
            return (self.change(inputs[0], seed), *inputs[1:])
        return self.change(inputs, seed)
