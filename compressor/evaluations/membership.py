"""Membership inference: how well one can tell from a model's answers which samples it was trained on.

The attack by a threshold on the loss: S. Yeom et al., Privacy Risk in Machine Learning (arXiv:1709.01604), sec. 3.2.
What it reaches at few false alarms says more than how often it is right: N. Carlini et al., Membership Inference
Attacks From First Principles (arXiv:2112.03570), sec. IV. Stronger attacks are in `membership_attacks`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.checks import check_count, explains_settings
from compressor.estimate import Estimate
from compressor.evaluations.evaluation import Subject, shares_of
from compressor.evaluations.generalisation import seen_samples
from compressor.evaluations.membership_attacks import Asked, Scores, beside_references, learned
from compressor.files.opening import open_file
from compressor.measuring.scores import predictions
from compressor.notes.evaluations import Evaluated
from compressor.outputs.kinds import IGNORED
from compressor.scoring.classes import ByClass
from compressor.training.replay import replayed
from compressor.workload import input_tensors

_RESAMPLES = 1000
# Of samples that were not trained on, so many may be taken for ones that were.
FALSE_ALARMS = 0.01
# Fewer cannot show one false alarm in a hundred.
_FEWEST = 100


@explains_settings
@dataclass(frozen=True, kw_only=True)
class MembershipInference:
    """How well answers tell `samples` (>= 100) training samples, drawn by the seed, from test samples.

    The area under the curve, one half for guessing, and the fraction of training samples that are found while 1 % of
    the others are taken for such: by the loss; for a compressed file, by what it and the reference say together,
    beside what the reference says alone; and, with `references`, beside other models. Those are paths of ONNX files of
    models of the same kind that saw neither set. Training samples are read without their augmentations where the
    workload tells them apart. Both sets have to be of one kind: samples from elsewhere are told apart for what they
    are.
    """

    samples: int = 2000
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count(self.samples, "samples counts the training samples that are looked at")
        if self.samples < _FEWEST:
            raise ValueError(f"samples is at least {_FEWEST}, for one false alarm in a hundred; got {self.samples}")
        object.__setattr__(self, "references", tuple(map(str, self.references)))

    def evaluate(self, subject: Subject) -> Sequence[Evaluated]:
        """Two rows for each attack; see `Evaluation`."""
        train, how = seen_samples(subject.workload.train, self.samples, subject.seed)
        sets = train, subject.workload.test
        files = [subject.onnx_bytes] if subject.is_reference else [subject.onnx_bytes, subject.reference]
        members, others = ([_asked(file, data, subject) for file in files] for data in sets)
        rows = _rows("by loss", [[each.own for each in part] for part in (members, others)], subject, how)
        if not subject.is_reference:
            both, alone = (learned(members[first:], others[first:], seed=subject.seed) for first in (0, 1))
            found = [[together, single] for together, single in zip(both, alone, strict=True)]
            rows += _rows("by this file and the reference, beside the reference alone", found, subject, how)
        if self.references:
            sample = [values.numpy() for values in input_tensors(subject.workload.example_inputs)]
            known = [open_file(Path(path), sample).onnx_bytes for path in self.references]
            beside = [[_asked(file, data, subject) for file in known] for data in sets]
            found = [
                [beside_references(each, models) for each in part]
                for part, models in zip((members, others), beside, strict=True)
            ]
            rows += _rows(f"beside {len(known)} other models", found, subject, how)
        return rows


def _rows(by: str, scores: Sequence[Sequence[Scores]], subject: Subject, how: str) -> list[Evaluated]:
    areas, fractions = told_apart(*scores, seed=subject.seed)
    return [
        _row(f"training samples told from test samples {by}, area under the curve (50: guessing){how}", areas),
        _row(f"training samples found {by} at 1 % false alarms (1: guessing){how}", fractions),
    ]


def _row(what: str, found: Sequence[Estimate]) -> Evaluated:
    value, *others = found
    reference, worse = others or (None, None)
    return Evaluated(evaluation="membership_inference", what=what, value=value, reference=reference, worse=worse)


def told_apart(
    members: Sequence[Scores], others: Sequence[Scores], *, seed: int
) -> tuple[list[Estimate], list[Estimate]]:
    """Areas under the curve, and fractions of `members` found at 1 % false alarms, of one file or of two.

    Scores are higher for what looks more like a member, (samples,) for each file. Each list has the file's value with
    its 95 % interval and, of two, that of the second, and how much more the first's is: from 1000 resamples of both
    sets, the same for both files. Raises ValueError for fewer than 100 of either.
    """
    if min(len(members[0]), len(others[0])) < _FEWEST:
        raise ValueError(
            f"asked where there are {_FEWEST} samples of either kind, got {len(members[0])} for training and "
            f"{len(others[0])} for test"
        )
    attacks = [_Attack(own, else_) for own, else_ in zip(members, others, strict=True)]
    generator = np.random.default_rng(seed)
    sizes = len(members[0]), len(others[0])
    drawn = []
    for _ in range(_RESAMPLES):
        weights = [np.bincount(generator.integers(size, size=size), minlength=size) for size in sizes]
        drawn.append([attack.result(*weights) for attack in attacks])
    ones = [np.ones(size, dtype=np.int64) for size in sizes]
    values = np.array([attack.result(*ones) for attack in attacks])
    resampled = np.array(drawn)  # (resamples, files, 2)
    first, second = (_estimates(values[:, number], resampled[:, :, number]) for number in range(2))
    return first, second


class _Attack:
    """The scores of one file, sorted once: every resample only counts anew."""

    def __init__(self, members: Scores, others: Scores) -> None:
        self.members, self.order = members, np.argsort(others, kind="stable")
        self.sorted = others[self.order]
        self.below = np.searchsorted(self.sorted, members, side="left")
        self.upto = np.searchsorted(self.sorted, members, side="right")

    def result(self, members: NDArray[np.int64], others: NDArray[np.int64]) -> tuple[float, float]:
        """(area under the curve, fraction found) where samples count as often as these say."""
        held = others[self.order]
        until = np.concatenate([[0], np.cumsum(held)])
        total = until[-1]
        # Mann and Whitney's statistic; ties are half a win.
        wins = (until[self.below] + until[self.upto]) / 2
        area = float((members * wins).sum() / (members.sum() * total))
        # The lowest score above which no more than the allowed ones lie.
        from_here = total - until[:-1]
        threshold = self.sorted[np.flatnonzero(from_here > int(FALSE_ALARMS * total))[-1]]
        return area, float(members[self.members > threshold].sum() / members.sum())


def _estimates(values: Scores, resampled: Scores) -> list[Estimate]:
    found = [_estimate(float(value), column) for value, column in zip(values, resampled.T, strict=True)]
    if len(values) == 2:
        found.append(_estimate(float(values[0] - values[1]), resampled[:, 0] - resampled[:, 1]))
    return found


def _estimate(value: float, resampled: Scores) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _asked(file: bytes, data: Iterable[Any], subject: Subject) -> Asked:
    """What the file says of the samples in `data`."""
    judged = subject.workload.metric.per_sample
    if not isinstance(judged, ByClass):
        raise ValueError(f"asked of classifiers alone, and {subject.workload.metric.name} does not judge classes")
    found = []
    with replayed(0, 0), subject.known.threads.kept():
        for outputs, targets in predictions(file, data, subject.known.threads):
            if outputs.ndim != 2 or targets.ndim != 1:
                raise ValueError("asked where a sample has one class alone, and these have several positions")
            asked = ~torch.isin(targets, torch.tensor(judged.ignored or (IGNORED,)))
            shares = shares_of(outputs, judged)[asked]
            labels = targets[asked].long()[:, None]
            rest = shares.scatter(1, labels, 0.0).sum(dim=1)
            parts = shares.gather(1, labels)[:, 0], rest, shares.max(dim=1).values
            found.append(torch.stack([part.clamp_min(torch.finfo(torch.float64).tiny).log() for part in parts]))
    own, others, largest = torch.cat(found, dim=1).numpy()
    return Asked(own, others, largest)
