"""One reference in several folds: the samples that it has not seen are parted, into those that test and that decide.

A model that was trained before knows its training samples: tested on them it scores too well, and whatever is made of
it seems to lose what it only forgot. So folds part what the workload holds back, `validation` and `test`, and training
stays as it is. What decides in one fold tests in another, never in the same.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from compressor.batches import Batches, all_targets, gather, judged_target, target_tensors
from compressor.errors import FoldsError
from compressor.running.folds.fold import Fold, Parts
from compressor.tensor_files import raw_bytes
from compressor.workload import Workload, input_tensors

_FUNCTION = "give a function of the fold that returns the workload instead (docs/folds.md)"
# Samples that are hashed at once.
_AT_ONCE = 256


def workload_of(fold: Fold, workload: Workload) -> Workload:
    """`workload` as it stands in `fold`: what tests and what decides are parts of what it holds back.

    Raises FoldsError where its sets cannot be parted, and where what it holds back was trained on.
    """
    validation, test = _parts_of(workload)
    pool = _joined(validation, test)
    targets = torch.cat([_targets(validation), _targets(test)])
    stratified = workload.metric.classes and targets.ndim == 1 and not targets.is_floating_point()
    parts = fold.split(targets, stratified=stratified)
    # The given training set stays; all that does not test decides.
    decides = np.union1d(parts.train, parts.validation)
    fold.parts = Parts(np.array([], dtype=np.int64), decides, parts.test)

    def batches(indices: Any) -> Batches:
        return Batches(pool, indices=indices.tolist(), batch_size=test.batch_size, transform=test.transform)

    return replace(workload, validation=batches(decides), test=batches(parts.test))


def check_held_back(workload: Workload) -> None:
    """Raises FoldsError where half of what `workload` holds back for folds, or more, is among what it trains on."""
    validation, test = _parts_of(workload)
    train = workload.train
    pairs = [("validation", validation, "train", train), ("test", test, "train", train)]
    for name, part, other_name, other in [*pairs, ("test", test, "validation", validation)]:
        shared = _shared(part, other) if isinstance(other, Batches) else 0.0
        if shared >= 0.5:
            seen = "the reference has seen them" if other_name == "train" else "they would decide and test at once"
            raise FoldsError(
                f"{100 * shared:.0f} % of the samples of {name} are in {other_name}, too, and {seen}: every fold would "
                f"be told too well; hold back samples that are in no other set, or {_FUNCTION}"
            )


def check_unseen(workload: Workload, fold: Fold) -> None:
    """Raises FoldsError where half of what tests in `fold`, or more, also trains or decides, as far as can be told."""
    for name in ("train", "validation"):
        test, other = workload.test, getattr(workload, name)
        if isinstance(test, Batches) and isinstance(other, Batches) and (shared := _shared(test, other)) >= 0.5:
            raise FoldsError(
                f"{100 * shared:.0f} % of the samples that test in {fold.name} are in {name}, too, and would be told "
                f"too well; give {name} those of fold.split: {name}=(inputs[{name}], labels[{name}])"
            )


def _parts_of(workload: Workload) -> tuple[Batches, Batches]:
    for name in ("validation", "test"):
        data = getattr(workload, name)
        if not isinstance(data, Batches):
            raise FoldsError(
                f"{name} is a {type(data).__name__}, whose samples cannot be told apart, and folds part validation and "
                f"test; make the workload by Workload.from_datasets, or {_FUNCTION}"
            )
    validation, test = workload.validation, workload.test
    assert isinstance(validation, Batches)
    assert isinstance(test, Batches)
    if validation.transform is not test.transform:
        raise FoldsError(
            "validation and test have different transforms, and folds mix their samples; give both the same, or "
            f"{_FUNCTION}"
        )
    return validation, test


def _targets(batches: Batches) -> Tensor:
    return all_targets(batches.samples)[batches.indices]


def _joined(first: Batches, second: Batches) -> Any:
    """The samples of both, those of the first before those of the second."""
    if isinstance(first.samples, tuple) and isinstance(second.samples, tuple):
        left, right = (gather(batches.samples, batches.indices) for batches in (first, second))
        return _both(left[0], right[0]), _both(left[1], right[1])
    parts = [torch.utils.data.Subset(batches.samples, batches.indices.tolist()) for batches in (first, second)]
    return ConcatDataset(parts)


def _both(left: Any, right: Any) -> Any:
    if isinstance(left, Mapping):
        return {name: _both(value, right[name]) for name, value in left.items()}
    if isinstance(left, tuple | list):
        return tuple(_both(one, other) for one, other in zip(left, right, strict=True))
    if left.shape[1:] != right.shape[1:]:
        raise FoldsError(
            f"samples of validation have the shape {tuple(left.shape[1:])} and those of test {tuple(right.shape[1:])}, "
            f"and folds mix them; give both one shape, or {_FUNCTION}"
        )
    return torch.cat([left, right])


def _shared(part: Batches, other: Batches) -> float:
    """The fraction of the samples of `part` that `other` holds, too, as far as that can be told without loading."""
    if part.samples is other.samples:
        return float(np.isin(part.indices.numpy(), other.indices.numpy()).mean())
    if isinstance(part.samples, tuple) and isinstance(other.samples, tuple):
        known = set(_hashes(other))
        own = _hashes(part)
        return sum(each in known for each in own) / max(1, len(own))
    return 0.0


def _hashes(batches: Batches) -> list[int]:
    found: list[int] = []
    for start in range(0, len(batches.indices), _AT_ONCE):
        indices = batches.indices[start : start + _AT_ONCE]
        inputs, targets = gather(batches.samples, indices)
        tensors = [*input_tensors(inputs), *target_tensors(judged_target(targets))]
        found += [hash(b"".join(bytes(raw_bytes(tensor[row])) for tensor in tensors)) for row in range(len(indices))]
    return found
