"""Samples parted in two or in folds, the same way for the same seed, with every class in all parts if there are some.

Folds are those of scikit-learn: stratified where targets are classes (R. Kohavi, A Study of Cross-Validation and
Bootstrap for Accuracy Estimation and Model Selection, IJCAI 1995, sec. 2.3), plain ones otherwise.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.batches import judged_target
from compressor.errors import FoldsError


def strata_of(targets: Tensor) -> list[int] | None:
    """The classes of `targets` as a split keeps them; None where they are none, or one is seen once."""
    if targets.ndim != 1 or targets.is_floating_point():
        return None
    targets = targets.long()  # of truth values, two classes
    counts = torch.bincount(targets - targets.min())
    # A class seen once cannot be on both sides of a split.
    return None if int(counts[counts > 0].min()) < 2 else [int(target) for target in targets]


def parted(indices: list[int], size: int, strata: list[int] | None, seed: int) -> tuple[list[int], list[int]]:
    """(the rest, `size` of `indices`), each in order. Raises ValueError where nothing would be left.

    They are the samples that scikit-learn's `train_test_split` takes; importing it for them takes as long as torch.
    """
    if size >= len(indices):
        raise ValueError(f"cannot hold out {size} of {len(indices)} samples; give more data or a smaller fraction")
    draw = np.random.RandomState(seed)
    if strata is not None:
        _, classes = np.unique([strata[index] for index in indices], return_inverse=True)
        counts = np.bincount(classes)
        if len(counts) <= min(size, len(indices) - size):
            held_out = _of_every_class(classes, counts, size, draw)
            return _apart(indices, held_out)
    return _apart(indices, draw.permutation(len(indices))[:size])


def _of_every_class(
    classes: NDArray[np.int64], counts: NDArray[np.int64], size: int, draw: np.random.RandomState
) -> NDArray[np.int64]:
    """The places of `size` samples, of every one of `classes`, which are so many, its share."""
    rest = _shares(counts, len(classes) - size, draw)
    held = _shares(counts - rest, size, draw)
    places = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    drawn = [own[draw.permutation(len(own))] for own in places]
    return np.concatenate([own[first : first + more] for own, first, more in zip(drawn, rest, held, strict=True)])


def _shares(counts: NDArray[np.int64], size: int, draw: np.random.RandomState) -> NDArray[np.int64]:
    """How many of each class `size` samples have: its share rounded down, and one more for those that lost the most."""
    exact = counts / counts.sum() * size
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = size - int(shares.sum())
    lost = exact - np.floor(exact)
    for value in np.unique(lost)[::-1]:
        equal = np.flatnonzero(lost == value)
        more = min(missing, len(equal))
        if more <= 0:
            break
        shares[draw.choice(equal, size=more, replace=False)] += 1
        missing -= more
    return shares


def _apart(indices: list[int], held_out: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """`indices` without those at the places `held_out`, and those, each in order."""
    there = np.zeros(len(indices), dtype=bool)
    there[held_out] = True
    return (
        sorted(index for index, held in zip(indices, there, strict=True) if not held),
        sorted(index for index, held in zip(indices, there, strict=True) if held),
    )


def labels_of(targets: Any) -> NDArray[Any]:
    """What a split goes by, as an array: of a list an entry a sample, else what metrics judge by.

    Raises FoldsError without any.
    """
    found = targets if isinstance(targets, list) else judged_target(targets)
    if isinstance(found, np.ndarray) and found.dtype.kind == "O":
        found = found.tolist()  # which says what they are: whole numbers, texts or something else
    if found is None or (isinstance(found, list) and any(entry is None for entry in found)):
        raise FoldsError("folds need the targets of all samples, got none; give the labels, or the numbers to predict")
    if isinstance(found, list) and not all(map(_is_plain, found)):
        # Of any lengths: what they are does not matter, as they are no classes.
        return np.arange(len(found), dtype=np.float64)
    return np.asarray(found)


def _is_plain(entry: Any) -> bool:
    return isinstance(entry, str | int | float | np.generic) or (isinstance(entry, Tensor) and entry.ndim == 0)


def in_fold(targets: Any, *, folds: int, number: int, seed: int, stratified: bool | None) -> NDArray[np.int64]:
    """The samples of fold `number` (from 1) of `folds`, in order; `seed` decides which samples share a fold.

    `targets` hold one entry a sample. Stratified (None: where `targets` are integers or texts in one dimension) every
    fold has its share of every class. Raises FoldsError where a fold would be empty or lack a class, where the rest
    would hold fewer than two samples of one, and without targets.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    labels = labels_of(targets)
    if labels.ndim == 0:
        raise FoldsError(f"folds need one target a sample, got a single {labels.dtype}; give those of all samples")
    if len(labels) < folds:
        raise FoldsError(
            f"{folds} folds need at least as many samples, got {len(labels)}; ask for fewer folds, or give more samples"
        )
    places = np.zeros(len(labels))
    if stratified is None:
        stratified = labels.ndim == 1 and labels.dtype.kind in "biuUSO"
    if not stratified:
        parts = KFold(folds, shuffle=True, random_state=seed).split(places)
        return np.sort(list(parts)[number - 1][1])
    if labels.ndim != 1:
        raise FoldsError(
            f"stratified folds need one class a sample, got targets of shape {labels.shape}; leave stratified out"
        )
    _check_classes(labels, folds)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(places, labels)
    return np.sort(list(parts)[number - 1][1])


def _check_classes(labels: NDArray[Any], folds: int) -> None:
    """Raises FoldsError where a fold, or what is left beside one, would lack a class."""
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2:
        raise FoldsError(
            f"all {len(labels)} targets are {names.tolist()[0]!r}, which nothing can be right or wrong about; give "
            "samples of at least two classes"
        )
    # Beside a fold the class must be there to be trained on and to decide by.
    least = max(folds, 4 if folds == 2 else 3)
    rare = [(name, int(count)) for name, count in zip(names.tolist(), counts, strict=True) if count < least]
    if rare:
        told = ", ".join(f"{name!r} has {count}" for name, count in rare[:4])
        more = f" and {len(rare) - 4} others fewer than that" if len(rare) > 4 else ""
        raise FoldsError(
            f"{folds} stratified folds need at least {least} samples of every class, or a fold would lack it, and "
            f"class {told}{more}; ask for fewer folds, leave the class out, or say stratified=False where targets are "
            "no classes"
        )
