"""How often a cross-validation's verdict is wrong, on networks that cost milliseconds: it is a property of the test.

A try cross-validates one small network twice in the same folds, by other seeds: the two differ by chance alone, and an
interval that excludes 0 has claimed a difference that is not there. Beside it the same network trained for a part of
the time: a test that claims nothing at all would miss that, too.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.aa import describe
from compressor import Fold
from compressor.estimate import Estimate
from compressor.report.folds.record import FoldRow, FoldsRecord

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
        first, second = (crossed(rows, targets, folds=folds, parting=parting, seed=seed) for seed in (0, 1))
        brief = crossed(rows, targets, folds=folds, parting=parting, seed=2, epochs=SHORTER)
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


def crossed(rows: Tensor, targets: Tensor, *, folds: int, parting: int, seed: int, epochs: int = EPOCHS) -> FoldsRecord:
    """The cross-validation of one small network whose trainings begin by `seed`, in the folds of `parting`."""
    return FoldsRecord(
        workload={"name": "verdicts", "metric": "accuracy"},
        folds=folds,
        repeats=1,
        seed=parting,
        given=False,
        budgeted=False,
        stages=(),
        rows=tuple(
            _row(
                rows,
                targets,
                Fold(number=number, folds=folds, repeat=1, repeats=1, seed=parting, folder=Path()),
                seed,
                epochs,
            )
            for number in range(1, folds + 1)
        ),
    )


def _row(rows: Tensor, targets: Tensor, fold: Fold, seed: int, epochs: int) -> FoldRow:
    parts = fold.split(targets)
    torch.manual_seed(1000 * seed + fold.index)
    right = _right(rows, targets, train=torch.from_numpy(parts.train), test=torch.from_numpy(parts.test), epochs=epochs)
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


def _right(rows: Tensor, targets: Tensor, *, train: Tensor, test: Tensor, epochs: int) -> float:
    """The share of the samples `test` that a network trained on `train` tells right."""
    model = nn.Sequential(nn.Linear(rows.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, int(targets.max()) + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(rows[batch]), targets[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return float((model(rows[test]).argmax(1) == targets[test]).double().mean())
