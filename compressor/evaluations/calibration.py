"""Calibration: whether a classifier is right as often as it is sure.

C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (arXiv:1706.04599), eq. 3: the expected calibration
error over equally wide bins of the confidence (M. Naeini et al., AAAI 2015), the bin m of M holding ((m-1)/M, m/M].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.checks import check_count, explains_settings
from compressor.estimate import Estimate
from compressor.evaluations.evaluation import Answers, Subject
from compressor.notes.evaluations import Evaluated

_RESAMPLES = 1000


@explains_settings
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The expected calibration error of a classifier on test data, in `bins` (>= 1) equally wide bins of confidence."""

    bins: int = 15

    def __post_init__(self) -> None:
        check_count(self.bins, "bins counts the intervals of confidence")

    def evaluate(self, subject: Subject) -> Sequence[Evaluated]:
        """One row; see `Evaluation`."""
        files = [subject.onnx_bytes] if subject.is_reference else [subject.onnx_bytes, subject.reference]
        answers = [subject.known.answers(each) for each in files]
        value, *others = calibration_errors(answers, bins=self.bins, seed=subject.seed)
        reference, worse = others or (None, None)
        what = f"expected calibration error, {self.bins} bins"
        return [Evaluated(evaluation="calibration", what=what, value=value, reference=reference, worse=worse)]


def calibration_error(answers: Answers, *, bins: int) -> float:
    """The expected calibration error, in [0, 1]."""
    return _error(*_gaps(answers, bins), bins)


def calibration_errors(answers: Sequence[Answers], *, bins: int, seed: int) -> list[Estimate]:
    """The error of one file with its 95 % interval; of two also that of the second, and how much more the first's is.

    From 1000 resamples of the samples, the same for both. A resample seems less calibrated than its samples, for it
    adds noise to every bin; so the percentiles are moved by the mean difference between resamples and samples.
    """
    gaps = [_gaps(each, bins) for each in answers]
    generator = np.random.default_rng(seed)
    count = len(gaps[0][0])
    picks = (generator.integers(count, size=count) for _ in range(_RESAMPLES))
    drawn = np.array([[_error(gap[pick], places[pick], bins) for gap, places in gaps] for pick in picks])
    values = [_error(*gap, bins) for gap in gaps]
    found = [_around(value, column, least=0.0) for value, column in zip(values, drawn.T, strict=True)]
    if len(values) == 2:
        found.append(_around(values[0] - values[1], drawn[:, 0] - drawn[:, 1], least=-1.0))
    return found


def _gaps(answers: Answers, bins: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How far each sample is from as right as it is sure, and its bin."""
    confidences = answers.confidences.numpy()
    places = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    return answers.right.numpy() - confidences, places


def _error(gaps: NDArray[np.float64], places: NDArray[np.int64], bins: int) -> float:
    # |B_m| / n times |accuracy - confidence| is the sum of the gaps in the bin over n.
    return float(np.abs(np.bincount(places, weights=gaps, minlength=bins)).sum() / len(gaps))


def _around(value: float, drawn: NDArray[np.float64], *, least: float) -> Estimate:
    low, high = np.percentile(drawn - (drawn.mean() - value), [2.5, 97.5])
    return Estimate(value, max(least, min(float(low), value)), max(float(high), value))
