"""Scores by which an attacker tells training samples from others: a model's alone, beside others', before and after.

Shares are what a classifier gives each class. The logit of the share of the own class, log(p / (1 - p)), is nearly
normal over models: N. Carlini et al., Membership Inference Attacks From First Principles (arXiv:2112.03570), sec. V-A.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """What a file says of samples, (samples,) each: the log of the share of the own class, of those of all others
    together, and of the largest share.
    """

    own: Scores
    others: Scores
    largest: Scores

    @property
    def logits(self) -> Scores:
        """log(p / (1 - p)) of the share p of the own class."""
        return self.own - self.others

    def features(self) -> Scores:
        """(samples, 2): how sure the file is of the own class, and of any."""
        return np.stack([self.logits, self.largest], axis=1)


def beside_references(asked: Asked, references: Sequence[Asked]) -> Scores:
    """How far the logit of each sample's own class lies above those of models that were not trained on it, (samples,).

    In standard deviations of all of their logits around each sample's mean: the offline attack of Carlini et al. with
    one variance for all samples, as they advise for few models (sec. V-B and VI-C); by one model, the difference.
    """
    logits = np.stack([each.logits for each in references])
    deviation = float((logits - logits.mean(axis=0)).std()) if len(references) > 1 else 0.0
    score: Scores = (asked.logits - logits.mean(axis=0)) / (deviation or 1.0)
    return score


def learned(members: Sequence[Asked], others: Sequence[Asked], *, seed: int) -> tuple[Scores, Scores]:
    """Scores of `members` and of `others`, as an attacker gives them who knows half of each.

    A logistic regression on what the files say together tells the halves that it was not fitted on. With two files,
    the one before compression and the one after, it is the attack on both at once: CompLeak (2025, arXiv:2507.16872),
    whose attacker, too, learns from what the two models say of one sample.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    sets = [_columns(members), _columns(others)]
    generator = np.random.default_rng(seed)
    halves = [generator.permutation(len(each)) < len(each) // 2 for each in sets]
    found = [np.empty(len(each)) for each in sets]
    for first in (True, False):
        known = [each[half == first] for each, half in zip(sets, halves, strict=True)]
        scaler = StandardScaler().fit(np.concatenate(known))
        labels = np.repeat([1, 0], [len(each) for each in known])
        attack = LogisticRegression(class_weight="balanced").fit(scaler.transform(np.concatenate(known)), labels)
        for each, half, scores in zip(sets, halves, found, strict=True):
            scores[half != first] = attack.decision_function(scaler.transform(each[half != first]))
    return found[0], found[1]


def _columns(files: Sequence[Asked]) -> Scores:
    """(samples, features) of all files, and of two how much they differ."""
    columns = [each.features() for each in files]
    if len(columns) == 2:
        columns.append(np.abs(columns[0] - columns[1]))
    return np.concatenate(columns, axis=1)
