"""How often a cross-validation's verdict is wrong, on networks that cost milliseconds: it is a property of the test.

A try cross-validates one small network twice in the same folds, by other seeds: the two differ by chance alone, and an
interval that excludes 0 has claimed a difference that is not there. Beside it the same network trained for a part of
the time: a test that claims nothing at all would miss that, too.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.aa import describe
from compressor import Fold
from compressor.estimate import Estimate
from compressor.report.folds.record import FoldRow, FoldsRecord
from compressor.running.folds.fold import Parts

EPOCHS, HIDDEN, BATCH, RATE = 12, 32, 128, 0.01
# Of the epochs, what the other network has that is to be called worse.
SHORTER = 6
_SIDE = Estimate(1.0, 1.0, 1.0)


def tried(inputs: Tensor, targets: Tensor, *, tries: int, folds: int) -> dict[str, Any]:
    """How many of `tries`, each in folds of its own, call a network different from itself, and from a shorter training.

    `inputs` (samples, ...) are read as rows of numbers, `targets` (samples,) are classes.
    """
    rows, equal, shorter = inputs.flatten(1), [], []
    for parting in range(tries):
        first, second = crossed(rows, targets, folds=folds, parting=parting, seeds=(0, 1))
        (brief,) = crossed(rows, targets, folds=folds, parting=parting, seeds=(2,), epochs=SHORTER)
        equal.append(second.difference(first))
        shorter.append(brief.difference(first))
    return {
        "tries": tries,
        "epochs": EPOCHS,
        "shorter_epochs": SHORTER,
        "score": vars(first.score),
        "claimed": describe("a network called different from itself", _excluding(equal), tries),
        "found": describe("one of half the epochs called different", _excluding(shorter), tries),
        "shorter_by": sum(each.value for each in shorter) / tries,
    }


def _excluding(differences: list[Estimate]) -> int:
    return sum(each.excludes(0) for each in differences)


def crossed(
    rows: Tensor, targets: Tensor, *, folds: int, parting: int, seeds: tuple[int, ...], epochs: int = EPOCHS
) -> list[FoldsRecord]:
    """A cross-validation of one small network for each of `seeds`, by which its trainings begin, in the same folds."""
    parted = [
        Fold(number=number, folds=folds, repeat=1, repeats=1, seed=parting, folder=Path())
        for number in range(1, folds + 1)
    ]
    parts = [fold.split(targets) for fold in parted]
    # All networks learn at once, from as many samples each.
    least = min(len(part.train) for part in parts)
    train = torch.stack([torch.from_numpy(part.train[:least]) for part in parts])
    found = []
    for seed in seeds:
        torch.manual_seed(1000 * parting + seed)
        answers = _trained(rows, targets, train, epochs=epochs)
        scores = [
            float((answer[part.test] == targets[part.test]).double().mean())
            for answer, part in zip(answers, parts, strict=True)
        ]
        found.append(
            FoldsRecord(
                workload={"name": "verdicts", "metric": "accuracy"},
                folds=folds,
                repeats=1,
                seed=parting,
                given=False,
                budgeted=False,
                stages=(),
                rows=tuple(_row(fold, part, score) for fold, part, score in zip(parted, parts, scores, strict=True)),
            )
        )
    return found


def _row(fold: Fold, parts: Parts, right: float) -> FoldRow:
    score = Estimate(right, right, right)
    return FoldRow(
        name=fold.name,
        tested=len(parts.test),
        rest=len(parts.train) + len(parts.validation),
        split=fold.digest,
        reference=score,
        score=score,
        drop=None,
        speedup=_SIDE,
        size_bytes=0,
        reference_bytes=0,
        seconds=0.0,
        budget_met=True,
        kept=True,
        report="",
    )


def _trained(rows: Tensor, targets: Tensor, train: Tensor, *, epochs: int) -> Tensor:
    """The classes (networks, samples) that networks tell of all samples, each trained on its own row of `train`."""
    count, size = train.shape
    sizes = (rows.shape[1], HIDDEN, int(targets.max()) + 1)
    layers = [
        ((2 * torch.rand(count, before, after) - 1) / before**0.5).requires_grad_() for before, after in pairwise(sizes)
    ]
    biases = [torch.zeros(count, 1, after, requires_grad=True) for after in sizes[1:]]

    def answers(inputs: Tensor) -> Tensor:
        hidden = torch.baddbmm(biases[0], inputs, layers[0]).relu()
        return torch.baddbmm(biases[1], hidden, layers[1])

    optimizer = torch.optim.AdamW([*layers, *biases], lr=RATE)
    for _ in range(epochs):
        order = torch.stack([torch.randperm(size) for _ in range(count)])
        for batch in order.split(BATCH, dim=1):
            chosen = train.gather(1, batch)
            optimizer.zero_grad()
            losses = F.cross_entropy(answers(rows[chosen]).flatten(0, 1), targets[chosen].flatten())
            (count * losses).backward()
            optimizer.step()
    with torch.no_grad():
        return answers(rows.expand(count, *rows.shape)).argmax(2)
